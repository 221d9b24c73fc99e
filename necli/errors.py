"""What can go wrong, named for the user's world.

    NecliError
      x UsageError            2   the command line or a setting is wrong
      x InputError            3   a file that the user gave is missing, damaged or of the wrong kind
      x NotReady              4   an earlier step is missing: nothing built, enclave not running, no key
      x AccessDenied          5   KMS or its key policy refused
      x MeasurementMismatch   6   what was measured isn't what was built, locked or expected
      x AttestationInvalid    6   an attestation document or a receipt that doesn't verify
      x Conflict              7   another necli is at work, or a port, socket or name is taken
      x ServiceFailed         8   the enclave, KMS, Docker or AWS failed or can't be reached
      x HostError             9   this machine: disk full, no permission, a tool missing

Exit codes are stable and documented in docs/exit-codes.md. Anything else that is raised is a bug in
necli and keeps its traceback.
"""

from __future__ import annotations


class NecliError(Exception):
    """A failure that the user can act on: what failed and why, and the one command that helps."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
        """A stable machine-readable name, where one exists: an AWS error name or the payload's code."""


class UsageError(NecliError):
    exit_code = 2


class InputError(NecliError):
    exit_code = 3


class NotReady(NecliError):
    exit_code = 4


class AccessDenied(NecliError):
    exit_code = 5


class MeasurementMismatch(NecliError):
    exit_code = 6


class AttestationInvalid(NecliError):
    exit_code = 6


class Conflict(NecliError):
    exit_code = 7


class ServiceFailed(NecliError):
    exit_code = 8


class HostError(NecliError):
    exit_code = 9
