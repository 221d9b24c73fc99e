"""Writes `CiphertextForRecipient` in the very bytes that KMS uses (RFC 5652, BER with indefinite lengths).

EnvelopedData version 2 for one recipient, who is named by the SHA-256 of his public key; the content key is
wrapped by RSAES-OAEP with SHA-256, the content encrypted by AES-256-CBC. AWS's own parser takes nothing else.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import load_der_public_key

_OCTET_STRING: Final = 0x04
_OBJECT_IDENTIFIER: Final = 0x06
_SEQUENCE: Final = 0x30
_SET: Final = 0x31
_SUBJECT_KEY_IDENTIFIER: Final = 0x80  # [0] IMPLICIT
_EXPLICIT_0: Final = 0xA0
_EXPLICIT_1: Final = 0xA1
_NULL: Final = b"\x05\x00"
_VERSION_2: Final = b"\x02\x01\x02"


def _tlv(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    if len(content) < 0x80:
        return bytes((tag, len(content))) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(length))) + length + content


def _indefinite(tag: int, *contents: bytes) -> bytes:
    return bytes((tag, 0x80)) + b"".join(contents) + b"\x00\x00"


def _identifier(encoded: str) -> bytes:
    return _tlv(_OBJECT_IDENTIFIER, bytes.fromhex(encoded))


_DATA: Final = _identifier("2a864886f70d010701")
_ENVELOPED_DATA: Final = _identifier("2a864886f70d010703")
_RSAES_OAEP: Final = _identifier("2a864886f70d010107")
_MGF1: Final = _identifier("2a864886f70d010108")
_AES_256_CBC: Final = _identifier("60864801650304012a")
_SHA256: Final = _tlv(_SEQUENCE, _identifier("608648016503040201"), _NULL)
_OAEP_SHA256: Final = _tlv(
    _SEQUENCE,
    _RSAES_OAEP,
    _tlv(_SEQUENCE, _tlv(_EXPLICIT_0, _SHA256), _tlv(_EXPLICIT_1, _tlv(_SEQUENCE, _MGF1, _SHA256))),
)


def seal_enveloped_data(plaintext: bytes, public_key: bytes) -> bytes:
    """Encrypt for the holder of an RSA key, given as SubjectPublicKeyInfo in DER.

    :raises ValueError: it isn't one.
    """
    key = load_der_public_key(public_key)
    if not isinstance(key, RSAPublicKey):
        raise ValueError("the recipient's key isn't RSA")
    content_key, iv = secrets.token_bytes(32), secrets.token_bytes(16)
    wrapped = key.encrypt(content_key, OAEP(MGF1(hashes.SHA256()), hashes.SHA256(), label=None))
    recipient = _tlv(
        _SEQUENCE,
        _VERSION_2,
        _tlv(_SUBJECT_KEY_IDENTIFIER, hashlib.sha256(public_key).digest()),
        _OAEP_SHA256,
        _tlv(_OCTET_STRING, wrapped),
    )
    content = _indefinite(
        _SEQUENCE,
        _DATA,
        _tlv(_SEQUENCE, _AES_256_CBC, _tlv(_OCTET_STRING, iv)),
        _indefinite(_EXPLICIT_0, _tlv(_OCTET_STRING, _encrypt(plaintext, content_key, iv))),
    )
    enveloped = _indefinite(_SEQUENCE, _VERSION_2, _tlv(_SET, recipient), content)
    return _indefinite(_SEQUENCE, _ENVELOPED_DATA, _indefinite(_EXPLICIT_0, enveloped))


def _encrypt(plaintext: bytes, key: bytes, iv: bytes) -> bytes:
    padder = PKCS7(algorithms.AES.block_size).padder()
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    return encryptor.update(padder.update(plaintext) + padder.finalize()) + encryptor.finalize()
