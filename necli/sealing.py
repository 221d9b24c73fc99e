"""The data owner's side of a sealed answer: his key in the message, and the opening of what comes back.

HPKE (RFC 9180) in base mode with X25519, HKDF-SHA256 and AES-256-GCM; `enclave_payload.sealing` is its other
end. `openssl genpkey -algorithm x25519` makes a key pair.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from necli.errors import InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

SEAL_TO = "necli:seal-to"
_INFO = b"necli:sealed-answer:v1"
_MAKE_ONE = (
    "openssl genpkey -algorithm x25519 -out owner.key; openssl pkey -in owner.key -pubout -out owner.pub"
)


def seal_to(public_pem: bytes) -> dict[str, str]:
    """The pair for a message's encryption context.

    :raises InputError: no X25519 public key is in it.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(public_pem)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, X25519PublicKey):
        raise InputError("this isn't an X25519 public key in PEM", hint=_MAKE_ONE, code="not_a_key")
    return {SEAL_TO: base64.b64encode(key.public_bytes_raw()).decode()}


def load_private_key(pem: bytes) -> X25519PrivateKey:
    """:raises InputError: no unencrypted X25519 private key is in it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, X25519PrivateKey):
        raise InputError("this isn't an X25519 private key in PEM", hint=_MAKE_ONE, code="not_a_key")
    return key


def open_answer(sealed: bytes, key: X25519PrivateKey) -> dict[str, Any]:
    """:raises InputError: it was sealed to another key, or altered."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    try:
        answer = json.loads(suite.decrypt(sealed, key, info=_INFO))
    except (InvalidTag, ValueError) as exc:
        raise InputError("the answer isn't sealed to this key", code="wrong_private_key") from exc
    if not isinstance(answer, dict):
        raise InputError("the sealed answer is no JSON object", code="not_a_receipt")
    return answer
