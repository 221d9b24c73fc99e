"""The local KMS's ciphertext blobs: which key, and what only that key opens.

    1 byte version | 16 bytes key id | 12 bytes nonce | AES-256-GCM ciphertext and tag

Everything before the ciphertext, and the encryption context, is authenticated.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Mapping
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from necli.local.kms_protocol import KmsError

_VERSION = b"\x01"
_HEADER = struct.Struct("=c16s12s")
_TAG_BYTES = 16


def new_key_material() -> bytes:
    return AESGCM.generate_key(256)


def seal(key_id: str, material: bytes, plaintext: bytes, context: Mapping[str, str]) -> bytes:
    nonce = secrets.token_bytes(12)
    header = _HEADER.pack(_VERSION, UUID(key_id).bytes, nonce)
    return header + AESGCM(material).encrypt(nonce, plaintext, header + _encode(context))


def key_id_of(blob: bytes) -> str:
    """The id of the key that a blob says it was made with.

    :raises KmsError: InvalidCiphertextException, not a blob of this service.
    """
    if len(blob) <= _HEADER.size + _TAG_BYTES or blob[:1] != _VERSION:
        raise KmsError("InvalidCiphertextException")
    return str(UUID(bytes=_HEADER.unpack_from(blob)[1]))


def unseal(material: bytes, blob: bytes, context: Mapping[str, str]) -> bytes:
    """:raises KmsError: InvalidCiphertextException, changed by one bit or not with this context."""
    header, nonce = blob[: _HEADER.size], _HEADER.unpack_from(blob)[2]
    try:
        return AESGCM(material).decrypt(nonce, blob[_HEADER.size :], header + _encode(context))
    except InvalidTag:
        raise KmsError("InvalidCiphertextException") from None


def _encode(context: Mapping[str, str]) -> bytes:
    """Unambiguous bytes of an encryption context, whatever the order of its pairs."""
    parts = [part.encode() for pair in sorted(context.items()) for part in pair]
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)
