"""Opens `CiphertextForRecipient`, the CMS EnvelopedData in which KMS answers an attested request.

RFC 5652, BER with indefinite lengths; one recipient, RSAES-OAEP with SHA-256, AES-256-CBC. CBC has no MAC, so
one error serves for all that can be wrong: telling a bad padding from a bad key would make an oracle.
"""

from __future__ import annotations

from typing import Any, Final

from asn1crypto import cms
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

MAX_ENVELOPE_BYTES: Final = 64 * 1024
_OAEP_SHA256: Final = OAEP(MGF1(hashes.SHA256()), hashes.SHA256(), label=None)


class EnvelopeError(Exception):
    """The envelope can't be opened; by design nothing says why."""

    def __init__(self) -> None:
        super().__init__("CiphertextForRecipient can't be opened")


def open_enveloped_data(data: bytes, private_key: RSAPrivateKey) -> bytes:
    """The content of an envelope sealed for `private_key`. Raises EnvelopeError."""
    if len(data) > MAX_ENVELOPE_BYTES:
        raise EnvelopeError
    try:
        return _open(data, private_key)
    except Exception:  # asn1crypto raises many kinds, for none of which a caller may act differently
        raise EnvelopeError from None


def _open(data: bytes, private_key: RSAPrivateKey) -> bytes:
    message = cms.ContentInfo.load(data, strict=True)
    _require(message["content_type"], "enveloped_data")
    (recipient,) = message["content"]["recipient_infos"]
    content = message["content"]["encrypted_content_info"]
    _require(recipient.chosen["key_encryption_algorithm"]["algorithm"], "rsaes_oaep")
    _require(content["content_encryption_algorithm"]["algorithm"], "aes256_cbc")
    key = private_key.decrypt(recipient.chosen["encrypted_key"].native, _OAEP_SHA256)
    iv = content["content_encryption_algorithm"]["parameters"].native
    return _decrypt(content["encrypted_content"].native, key, iv)


def _decrypt(ciphertext: bytes, key: bytes, iv: bytes) -> bytes:
    decryptor = Cipher(algorithms.AES256(key), modes.CBC(iv)).decryptor()
    unpadder = PKCS7(algorithms.AES256.block_size).unpadder()
    padded = decryptor.update(ciphertext) + decryptor.finalize()
    return unpadder.update(padded) + unpadder.finalize()


def _require(value: Any, expected: str) -> None:
    if value.native != expected:
        raise ValueError(f"not {expected}")
