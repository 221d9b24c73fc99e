"""`CiphertextForRecipient` as the local KMS writes it: the bytes of the real one, around random content."""

from __future__ import annotations

import hashlib
import shutil
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from enclave_payload.cms import open_enveloped_data
from necli.local.cms import seal_enveloped_data

KEY = rsa.generate_private_key(65537, 2048)
SPKI = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_the_bytes_around_keys_and_content_are_those_of_kms() -> None:
    """Taken from answers of live KMS: offsets, tags, lengths and algorithm identifiers for a 32-byte key."""
    sealed = seal_enveloped_data(bytes(32), SPKI).hex()
    head = "308006092a864886f70d010703a0803080020102" + "3182016b" + "30820167" + "020102" + "8020"
    recipient = hashlib.sha256(SPKI).hexdigest()
    oaep = (
        "303c06092a864886f70d010107302fa00f300d06096086480165030402010500"
        "a11c301a06092a864886f70d010108300d06096086480165030402010500"
    )
    assert sealed.startswith(head + recipient + oaep + "04820100")
    content = sealed[2 * 387 :]
    assert content.startswith("308006092a864886f70d010701301d060960864801650304012a0410")
    assert content[2 * 44 :].startswith("a0800430")
    assert content.endswith("0000" * 5)
    assert len(sealed) // 2 == 387 + 48 + 48 + 10


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 32, 4096])
def test_what_is_sealed_can_be_opened(size: int) -> None:
    plaintext = bytes(range(256)) * 16
    assert open_enveloped_data(seal_enveloped_data(plaintext[:size], SPKI), KEY) == plaintext[:size]


def test_the_same_plaintext_is_never_sealed_the_same() -> None:
    assert seal_enveloped_data(b"key", SPKI) != seal_enveloped_data(b"key", SPKI)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_openssl_reads_it_as_enveloped_data() -> None:
    parsed = subprocess.run(
        ["openssl", "cms", "-cmsout", "-print", "-noout", "-inform", "DER"],
        input=seal_enveloped_data(bytes(32), SPKI),
        capture_output=True,
        check=True,
    ).stdout.decode()
    for words in ("pkcs7-envelopedData", "d.subjectKeyIdentifier", "rsaesOaep", "aes-256-cbc"):
        assert words in parsed


@pytest.mark.parametrize("key", [b"", b"nonsense"])
def test_what_is_no_key_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        seal_enveloped_data(b"key", key)


def test_a_key_that_is_not_rsa_is_refused() -> None:
    curve_key = ec.generate_private_key(ec.SECP384R1()).public_key()
    with pytest.raises(ValueError, match="RSA"):
        seal_enveloped_data(b"key", curve_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
