"""Seals an answer to the data owner, for messages that ask for it, so that the parent never reads it.

The owner's public key stands in the message's encryption context, which KMS and the message authenticate:
the parent can neither strip it, to have the answer in the clear, nor put its own key in its place. HPKE
(RFC 9180) in base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM. Answers are padded, since
their length would tell how many objects there are.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from enclave_payload.errors import PayloadError
from enclave_payload.receipt import canonical_json

SEAL_TO: Final = "necli:seal-to"
"""The pair of the encryption context: the raw public key in base64."""

_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_INFO: Final = b"necli:sealed-answer:v1"
_BLOCK_BYTES: Final = 4096
_NOT_A_KEY: Final = f"{SEAL_TO} in the message's encryption context is no usable X25519 key"


def owner_key(context: Mapping[str, str]) -> X25519PublicKey | None:
    """Whom a message wants its answer sealed to. Raises PayloadError if that is no key."""
    text = context.get(SEAL_TO)
    if text is None:
        return None
    try:
        return X25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except ValueError as exc:
        raise PayloadError("message_invalid", _NOT_A_KEY) from exc


def seal_answer(answer: Mapping[str, object], key: X25519PublicKey) -> bytes:
    plain = canonical_json(answer)
    padded = plain.ljust(-(-len(plain) // _BLOCK_BYTES) * _BLOCK_BYTES)
    try:
        return _SUITE.encrypt(padded, key, info=_INFO)
    except ValueError as exc:  # a key of small order
        raise PayloadError("message_invalid", _NOT_A_KEY) from exc
