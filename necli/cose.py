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
_ALGORITHM_LABEL = 1
_ALGORITHMS: dict[str, tuple[int, hashes.HashAlgorithm]] = {
    "secp256r1": (-7, hashes.SHA256()),
    "secp384r1": (-35, hashes.SHA384()),
    "secp521r1": (-36, hashes.SHA512()),
}
"""By the curve of the signer's key: the number and the hash of the one algorithm that goes with it."""


def load_cbor(data: bytes) -> Any:
    """The one CBOR value that `data` consists of.

    :raises ValueError: anything else.
    """
    file = io.BytesIO(data)
    try:
        value = cbor2.load(file)
    except Exception as exc:  # cbor2's decoders of tags raise whatever the tag's own type raises
        raise ValueError(f"not valid CBOR: {exc}") from exc
    if rest := len(file.read()):
        raise ValueError(f"{rest} bytes follow the CBOR value")
    return value


@dataclass(frozen=True)
class Sign1:
    """A signed payload; the byte strings are as received, since they are what was signed."""

    protected: bytes
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
            case [bytes(protected), Mapping(), bytes(payload), bytes(signature)]:
                return cls(protected, payload, signature)
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
