"""COSE_Sign1 messages (RFC 9052, section 4.2) by ECDSA, and the strict reading of CBOR that they need."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

_TAG = 18
_ARRAY = 4
_MAP = 5
_INDEFINITE = 31
_MAX_DEPTH = 16
_ALGORITHM_LABEL = 1
_ALGORITHMS: dict[str, tuple[int, hashes.HashAlgorithm]] = {
    "secp256r1": (-7, hashes.SHA256()),
    "secp384r1": (-35, hashes.SHA384()),
    "secp521r1": (-36, hashes.SHA512()),
}
"""By the curve of the signer's key: the number and the hash of the one algorithm that goes with it."""


def load_cbor(data: bytes) -> Any:
    """The one CBOR value that `data` consists of; no map in it has a key twice.

    :raises ValueError: anything else.
    """
    file = io.BytesIO(data)
    try:
        value = _read_value(file)
    except Exception as exc:  # cbor2's decoders of tags raise whatever the tag's own type raises
        raise ValueError(f"not valid CBOR: {exc}") from exc
    if rest := len(file.read()):
        raise ValueError(f"{rest} bytes follow the CBOR value")
    return value


def _read_value(file: io.BytesIO, depth: int = 0) -> Any:
    # Arrays and maps are taken apart here and cbor2 reads what is in them, because its version 5 lets the
    # last of two equal keys win without a word, and makes a value of a stray break.
    start = file.tell()
    if _at_break(file):
        raise ValueError("a break where a value should be")
    kind, info = divmod(int.from_bytes(file.read(1)), 32)
    if kind not in (_ARRAY, _MAP):
        file.seek(start)
        return cbor2.load(file)
    if depth == _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH}")
    size = None if info == _INDEFINITE else _read_count(file, info) * (2 if kind == _MAP else 1)
    items: list[Any] = []
    while not _at_break(file) if size is None else len(items) < size:
        items.append(_read_value(file, depth + 1))
    return items if kind == _ARRAY else _unique_pairs(items[::2], items[1::2])


def _read_count(file: io.BytesIO, info: int) -> int:
    if info < 24:
        return info
    if info > 27:
        raise ValueError("a reserved length")
    return int.from_bytes(file.read(1 << (info - 24)))


def _at_break(file: io.BytesIO) -> bool:
    start = file.tell()
    if file.read(1) == b"\xff":
        return True
    file.seek(start)
    return False


def _unique_pairs(keys: list[Any], values: list[Any]) -> dict[Any, Any]:
    pairs = dict(zip(keys, values, strict=True))
    if len(pairs) != len(keys):
        raise ValueError("a map has a key twice")
    return pairs


@dataclass(frozen=True)
class Sign1:
    """A signed payload; the byte strings are as received, since they are what was signed."""

    protected: bytes
    unprotected: Mapping[Any, Any]
    payload: bytes
    signature: bytes

    @classmethod
    def parse(cls, data: bytes) -> Sign1:
        """Read a COSE_Sign1, tagged or not.

        :raises ValueError: it isn't one.
        """
        value = load_cbor(data)
        if isinstance(value, cbor2.CBORTag) and value.tag == _TAG:
            value = value.value
        match value:
            case [bytes(protected), Mapping() as unprotected, bytes(payload), bytes(signature)]:
                return cls(protected, unprotected, payload, signature)
        raise ValueError("not a COSE_Sign1 message")

    def is_signed_by(self, key: object) -> bool:
        """Whether the message holds under a public key; only ECDSA on P-256, P-384 and P-521 can."""
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _ALGORITHMS:
            return False
        number, digest = _ALGORITHMS[key.curve.name]
        half = (key.key_size + 7) // 8
        if self._algorithm() != number or len(self.signature) != 2 * half:
            return False
        r, s = (int.from_bytes(part) for part in (self.signature[:half], self.signature[half:]))
        signed = cbor2.dumps(["Signature1", self.protected, b"", self.payload])
        try:
            key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(digest))
        except InvalidSignature:
            return False
        return True

    def _algorithm(self) -> object:
        try:
            header = load_cbor(self.protected)
        except ValueError:
            return None
        return header.get(_ALGORITHM_LABEL) if isinstance(header, Mapping) else None
