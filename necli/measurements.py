"""What an enclave image measures to: the PCRs that an EIF determines, as values.

PCR0 covers the whole image, PCR1 the kernel with its command line and first ramdisk, PCR2 the other ramdisks,
PCR8 the certificate that signed the image. Each is the register's content after one extension from zero.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from necli.errors import InputError

DIGEST_SIZE = 48
ZERO = bytes(DIGEST_SIZE)
HASH_ALGORITHM = "Sha384 { ... }"
"""As nitro-cli prints it."""

_HEX_DIGEST = re.compile(r"[0-9a-fA-F]{96}")


def extend_from_zero(digest: bytes) -> bytes:
    """A platform configuration register after its first extension, by `digest`."""
    return hashlib.sha384(ZERO + digest).digest()


@dataclass(frozen=True)
class Measurements:
    """SHA-384 values of PCR0, PCR1, PCR2 and, for a signed image, PCR8; valid once constructed."""

    pcr0: bytes
    pcr1: bytes
    pcr2: bytes
    pcr8: bytes | None = None

    def __post_init__(self) -> None:
        for index, value in self.pcrs().items():
            if len(value) != DIGEST_SIZE:
                raise InputError(f"PCR{index} must have {DIGEST_SIZE} bytes, not {len(value)}")

    @property
    def is_zero(self) -> bool:
        """Whether an enclave in debug mode attested these: they identify no image at all."""
        return ZERO in (self.pcr0, self.pcr1, self.pcr2)

    def pcrs(self) -> dict[int, bytes]:
        pcrs = {0: self.pcr0, 1: self.pcr1, 2: self.pcr2}
        return pcrs if self.pcr8 is None else {**pcrs, 8: self.pcr8}

    def to_json(self) -> dict[str, str]:
        """The keys and the form of nitro-cli's `Measurements`."""
        registers = {f"PCR{index}": value.hex() for index, value in self.pcrs().items()}
        return {"HashAlgorithm": HASH_ALGORITHM, **registers}

    @classmethod
    def from_json(cls, value: Any) -> Measurements:
        """Read what `to_json` or `nitro-cli build-enclave` wrote.

        :raises InputError: a register is missing, or isn't 96 hexadecimal digits.
        """
        if not isinstance(value, Mapping):
            raise InputError(f"measurements must be a JSON object, not {type(value).__name__}")
        signed_by = _register(value, "PCR8") if value.get("PCR8") is not None else None
        return cls(_register(value, "PCR0"), _register(value, "PCR1"), _register(value, "PCR2"), signed_by)


def _register(value: Mapping[str, Any], name: str) -> bytes:
    digits = value.get(name)
    if digits is None:
        raise InputError(f"the measurements lack {name}")
    if not isinstance(digits, str) or not _HEX_DIGEST.fullmatch(digits):
        raise InputError(f"{name} must be 96 hexadecimal digits, not {digits!r:.120}")
    return bytes.fromhex(digits)
