"""The Nitro Security Module of a local enclave: the real CBOR protocol, documents under a simulated root.

Requests and answers are those of aws-nitro-enclaves-nsm-api as serde writes them: a variant without fields is
a text, one with fields a map of one entry. On Nitro they pass through an ioctl on /dev/nsm; here each is one
packet on a SOCK_SEQPACKET socket, which keeps packets apart as the ioctl does.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from necli.cose import load_cbor
from necli.local.pki import AttestationChain, CertifiedKey, LocalPki
from necli.measurements import ZERO

MAX_REQUEST_BYTES: Final = 0x1000
MAX_ANSWER_BYTES: Final = 0x3000
MAX_PCRS: Final = 32
_PLATFORM_PCRS: Final = 16
"""PCRs 0 to 15 belong to the platform and are locked from the start."""
_MAX_USER_BYTES: Final = 512
_MAX_PUBLIC_KEY_BYTES: Final = 1024
_RANDOM_BYTES: Final = 256
_RENEWAL: Final = timedelta(minutes=10)
_VERSION: Final = (1, 0, 0)
_PAUSE_S: Final = 0.1
_U16_MAX: Final = 0xFFFF
_ES384_HEADER: Final = cbor2.dumps({1: -35})

_log = logging.getLogger(__name__)


class NsmRefusal(Exception):
    """A request is answered with one of the NSM's error codes."""


class SimulatedNsm:
    """One enclave's NSM; safe to use from several threads."""

    def __init__(
        self,
        pki: LocalPki,
        module_id: str,
        pcrs: Mapping[int, bytes],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._pki = pki
        self._module_id = module_id
        self._pcrs = [pcrs.get(index, ZERO) for index in range(MAX_PCRS)]
        self._locked = set(range(_PLATFORM_PCRS))
        self._clock = clock
        self._chain: AttestationChain | None = None
        self._lock = threading.Lock()

    def handle(self, request: bytes) -> bytes:
        """Answer one request; never raises."""
        try:
            with self._lock:
                answer = self._answer(request)
        except NsmRefusal as refusal:
            answer = {"Error": str(refusal)}
        except Exception:
            _log.exception("the NSM failed")
            answer = {"Error": "InternalError"}
        return cbor2.dumps(answer)

    def attest(self, **fields: bytes | None) -> bytes:
        """A document, as `Attestation` gives it. Raises NsmRefusal."""
        with self._lock:
            return self._attest(fields)

    def _answer(self, request: bytes) -> Any:
        if len(request) > MAX_REQUEST_BYTES:
            raise NsmRefusal("InputTooLarge")
        try:
            decoded = load_cbor(request)
        except ValueError as exc:
            raise NsmRefusal("InvalidArgument") from exc
        match decoded:
            case "DescribeNSM":
                return {"DescribeNSM": self._describe()}
            case "GetRandom":
                return {"GetRandom": {"random": secrets.token_bytes(_RANDOM_BYTES)}}
            case {"DescribePCR": {"index": index}}:
                return {"DescribePCR": self._describe_pcr(_index(index))}
            case {"ExtendPCR": {"index": index, "data": data}}:
                return {"ExtendPCR": {"data": self._extend_pcr(_index(index), _octets(data))}}
            case {"LockPCR": {"index": index}}:
                self._lock_pcr(_index(index))
                return "LockPCR"
            case {"LockPCRs": {"range": count}}:
                self._lock_pcrs(count)
                return "LockPCRs"
            case {"Attestation": dict(fields)}:
                return {"Attestation": {"document": self._attest(fields)}}
        raise NsmRefusal("InvalidOperation")

    def _describe(self) -> dict[str, Any]:
        major, minor, patch = _VERSION
        return {
            "version_major": major,
            "version_minor": minor,
            "version_patch": patch,
            "module_id": self._module_id,
            "max_pcrs": MAX_PCRS,
            "locked_pcrs": sorted(self._locked),
            "digest": "SHA384",
        }

    def _describe_pcr(self, index: int) -> dict[str, Any]:
        return {"lock": index in self._locked, "data": self._pcrs[index]}

    def _extend_pcr(self, index: int, data: bytes) -> bytes:
        if index in self._locked:
            raise NsmRefusal("ReadOnlyIndex")
        self._pcrs[index] = hashlib.sha384(self._pcrs[index] + data).digest()
        return self._pcrs[index]

    def _lock_pcr(self, index: int) -> None:
        if index in self._locked:
            raise NsmRefusal("ReadOnlyIndex")
        self._locked.add(index)

    def _lock_pcrs(self, count: object) -> None:
        if type(count) is not int or not 0 <= count <= MAX_PCRS:
            raise NsmRefusal("InvalidIndex")
        self._locked.update(range(count))

    def _attest(self, fields: Mapping[str, Any]) -> bytes:
        now = self._clock()
        chain = self._current_chain(now)
        payload = {
            "module_id": self._module_id,
            "digest": "SHA384",
            "timestamp": int(now.timestamp() * 1000),
            "pcrs": {index: self._pcrs[index] for index in sorted(self._locked)},
            "certificate": chain.leaf.der,
            "cabundle": chain.cabundle,
            "public_key": _optional(fields, "public_key", _MAX_PUBLIC_KEY_BYTES),
            "user_data": _optional(fields, "user_data", _MAX_USER_BYTES),
            "nonce": _optional(fields, "nonce", _MAX_USER_BYTES),
        }
        return sign_document(cbor2.dumps(payload), chain.leaf)

    def _current_chain(self, now: datetime) -> AttestationChain:
        if self._chain is None or now > self._chain.end - _RENEWAL:
            self._chain = self._pki.issue_attestation_chain(self._module_id, now)
        return self._chain


def sign_document(payload: bytes, signer: CertifiedKey) -> bytes:
    """An untagged COSE_Sign1 by ES384 over `payload`."""
    signed = cbor2.dumps(["Signature1", _ES384_HEADER, b"", payload])
    r, s = decode_dss_signature(signer.key.sign(signed, ec.ECDSA(hashes.SHA384())))
    return cbor2.dumps([_ES384_HEADER, {}, payload, r.to_bytes(48) + s.to_bytes(48)])


def serve_nsm(nsm: SimulatedNsm, listener: socket.socket) -> None:
    """Answer every client of a listening SOCK_SEQPACKET socket until that is closed or shut down."""
    while True:
        try:
            client, _ = listener.accept()
        except OSError as exc:
            if exc.errno in (errno.EBADF, errno.EINVAL):
                return
            _log.warning("the NSM can't accept a client: %s", exc)
            time.sleep(_PAUSE_S)  # out of file descriptors, for one; that passes
            continue
        threading.Thread(target=_serve_client, args=(nsm, client), name="nsm-client", daemon=True).start()


def _serve_client(nsm: SimulatedNsm, client: socket.socket) -> None:
    with client:
        try:
            while request := client.recv(MAX_REQUEST_BYTES + 1):
                client.sendall(nsm.handle(request))
        except OSError as exc:
            _log.debug("an NSM client went away: %s", exc)


def _index(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _U16_MAX:
        raise NsmRefusal("InvalidArgument")
    if value >= MAX_PCRS:
        raise NsmRefusal("InvalidIndex")
    return value


def _optional(fields: Mapping[str, Any], name: str, limit: int) -> bytes | None:
    value = fields.get(name)
    if value is None:
        return None
    octets = _octets(value)
    if len(octets) > limit:
        raise NsmRefusal("InputTooLarge")
    return octets


def _octets(value: object) -> bytes:
    # serde_bytes writes a byte string, and reads an array of small integers as well.
    if isinstance(value, bytes):
        return value
    if isinstance(value, list) and all(type(item) is int and 0 <= item < 256 for item in value):
        return bytes(value)
    raise NsmRefusal("InvalidArgument")
