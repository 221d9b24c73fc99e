"""A client of the Nitro Security Module: attestation documents, entropy, PCRs.

Requests and answers are CBOR. They pass through one ioctl on /dev/nsm, or as one packet each through a
SOCK_SEQPACKET socket where the NSM is given as that.

Protocol: aws/aws-nitro-enclaves-nsm-api, src/api/mod.rs and src/driver/mod.rs.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cbor2

_MAX_REQUEST_BYTES: Final = 0x1000
_MAX_ANSWER_BYTES: Final = 0x3000
_IOCTL: Final = 0xC0200A00  # _IOWR(0x0A, 0, struct of two iovecs)
_TIMEOUT_S: Final = 10


class NsmError(Exception):
    """The NSM refused, or can't be used; `code` is its own error code where it gave one."""

    def __init__(self, code: str, message: str | None = None) -> None:
        super().__init__(message or f"the NSM answered {code}")
        self.code = code


@dataclass(frozen=True)
class PcrDescription:
    locked: bool
    value: bytes


@dataclass(frozen=True)
class NsmDescription:
    version: tuple[int, int, int]
    module_id: str
    max_pcrs: int
    locked_pcrs: frozenset[int]
    digest: str


class Nsm:
    """Opens the device anew for each request, so any thread may use it. Every method raises NsmError."""

    def __init__(self, path: str | Path = "/dev/nsm") -> None:
        self._path = Path(path)

    def attest(
        self, *, public_key: bytes | None = None, user_data: bytes | None = None, nonce: bytes | None = None
    ) -> bytes:
        """A signed attestation document over all locked PCRs and these three values."""
        fields = {"user_data": user_data, "nonce": nonce, "public_key": public_key}
        match self._ask("Attestation", fields):
            case {"document": bytes(document)}:
                return document
        raise _unintelligible("Attestation")

    def random(self, count: int) -> bytes:
        entropy = b""
        while len(entropy) < count:
            match self._ask("GetRandom"):
                case {"random": bytes(more)} if more:
                    entropy += more
                case _:
                    raise _unintelligible("GetRandom")
        return entropy[:count]

    def describe_pcr(self, index: int) -> PcrDescription:
        match self._ask("DescribePCR", {"index": index}):
            case {"lock": bool(locked), "data": bytes(value)}:
                return PcrDescription(locked, value)
        raise _unintelligible("DescribePCR")

    def describe(self) -> NsmDescription:
        match self._ask("DescribeNSM"):
            case {
                "version_major": int(major),
                "version_minor": int(minor),
                "version_patch": int(patch),
                "module_id": str(module_id),
                "max_pcrs": int(max_pcrs),
                "locked_pcrs": list(locked),
                "digest": str(digest),
            }:
                version = (major, minor, patch)
                return NsmDescription(version, module_id, max_pcrs, frozenset(locked), digest)
        raise _unintelligible("DescribeNSM")

    def _ask(self, operation: str, fields: Mapping[str, Any] | None = None) -> object:
        # As serde writes an enum: a variant without fields is a text, one with fields a map of one entry.
        request = cbor2.dumps(operation if fields is None else {operation: fields})
        if len(request) > _MAX_REQUEST_BYTES:
            raise NsmError("InputTooLarge")
        try:
            answer = cbor2.loads(self._exchange(request))
        except OSError as exc:
            code = "InputTooLarge" if exc.errno == errno.EMSGSIZE else "InternalError"
            raise NsmError(code, f"the NSM at {self._path} can't be used: {exc}") from exc
        except cbor2.CBORDecodeError as exc:
            raise _unintelligible(operation) from exc
        match answer:
            case {"Error": str(code)}:
                raise NsmError(code)
            case dict():
                return answer.get(operation)
        raise _unintelligible(operation)

    def _exchange(self, request: bytes) -> bytes:
        if stat.S_ISSOCK(self._path.stat().st_mode):
            return self._exchange_packets(request)
        device = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return _ioctl(device, request)
        finally:
            os.close(device)

    def _exchange_packets(self, request: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.connect(str(self._path))
            connection.sendall(request)
            return connection.recv(_MAX_ANSWER_BYTES)


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    _fields_ = (("request", _IoVec), ("answer", _IoVec))


def _ioctl(device: int, request: bytes) -> bytes:
    question = ctypes.create_string_buffer(request, len(request))
    answer = ctypes.create_string_buffer(_MAX_ANSWER_BYTES)
    message = _Message(
        _IoVec(ctypes.addressof(question), len(request)), _IoVec(ctypes.addressof(answer), _MAX_ANSWER_BYTES)
    )
    fcntl.ioctl(device, _IOCTL, message)
    return answer.raw[: message.answer.length]


def _unintelligible(operation: str) -> NsmError:
    return NsmError("InvalidResponse", f"the NSM's answer to {operation} can't be understood")
