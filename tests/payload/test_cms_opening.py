"""Opening `CiphertextForRecipient`: BER of every kind, and one error for whatever is wrong."""

from __future__ import annotations

from contextlib import suppress

import pytest
from asn1crypto import cms
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from enclave_payload.cms import MAX_ENVELOPE_BYTES, EnvelopeError, open_enveloped_data
from necli.local.cms import seal_enveloped_data

KEY = rsa.generate_private_key(65537, 2048)
OTHER_KEY = rsa.generate_private_key(65537, 2048)
DATA_KEY = bytes(range(32))
CONTENT = 387 + 2 + 11 + 31
"""Where the encrypted content starts, as [0] of indefinite length."""


def seal(key: rsa.RSAPrivateKey = KEY) -> bytes:
    return seal_enveloped_data(
        DATA_KEY, key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    )


def test_indefinite_lengths_as_kms_writes_them_are_read() -> None:
    assert open_enveloped_data(seal(), KEY) == DATA_KEY


def test_definite_lengths_are_read_as_well() -> None:
    definite = cms.ContentInfo.load(seal()).dump(force=True)
    assert definite[1] != 0x80
    assert open_enveloped_data(definite, KEY) == DATA_KEY


def test_content_in_several_pieces_is_put_together() -> None:
    sealed = seal()
    whole = b"\xa0\x80\x04\x30"
    assert sealed[CONTENT:].startswith(whole)
    start, content = CONTENT + len(whole), sealed[CONTENT + len(whole) :][:48]
    pieces = b"\xa0\x80\x04\x20" + content[:32] + b"\x04\x10" + content[32:]
    assert open_enveloped_data(sealed[:CONTENT] + pieces + sealed[start + 48 :], KEY) == DATA_KEY


def assert_refused(data: bytes, key: rsa.RSAPrivateKey = KEY) -> None:
    with pytest.raises(EnvelopeError) as caught:
        open_enveloped_data(data, key)
    assert str(caught.value) == "CiphertextForRecipient can't be opened"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_an_envelope_for_another_key_is_refused() -> None:
    assert_refused(seal(OTHER_KEY))


def test_a_bad_padding_is_refused_with_the_very_same_error() -> None:
    sealed = bytearray(seal())
    last_octet_of_the_block_before_the_padding = CONTENT + 4 + 31
    sealed[last_octet_of_the_block_before_the_padding] ^= 0xFF
    assert_refused(bytes(sealed))


@pytest.mark.parametrize(
    ("found", "put"),
    [
        ("2a864886f70d010703", "2a864886f70d010701"),  # data in the place of enveloped data
        ("2a864886f70d010107", "2a864886f70d010101"),  # PKCS #1 v1.5 in the place of OAEP
        ("60864801650304012a", "608648016503040106"),  # another mode than CBC
    ],
)
def test_another_content_type_or_algorithm_is_refused(found: str, put: str) -> None:
    sealed = seal()
    assert sealed.count(bytes.fromhex(found)) == 1
    assert_refused(sealed.replace(bytes.fromhex(found), bytes.fromhex(put)))


def test_two_recipients_are_refused() -> None:
    sealed = cms.ContentInfo.load(seal())
    recipients = sealed["content"]["recipient_infos"]
    recipients.append(recipients[0])
    assert_refused(sealed.dump(force=True))


def test_bytes_behind_the_envelope_are_refused() -> None:
    assert_refused(seal() + b"\0")


def test_every_cut_is_refused() -> None:
    sealed = seal()
    for length in range(0, len(sealed), 5):
        assert_refused(sealed[:length])


def test_an_envelope_larger_than_any_answer_is_not_even_read() -> None:
    assert_refused(bytes(MAX_ENVELOPE_BYTES + 1))


@given(data=st.binary(max_size=256))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    assert_refused(data)


def test_a_flipped_bit_never_raises_anything_else() -> None:
    """CBC has no MAC: where the flip doesn't fail, TLS is what would have noticed it."""
    sealed = seal()
    for position in range(CONTENT):
        flipped = sealed[:position] + bytes([sealed[position] ^ 4]) + sealed[position + 1 :]
        with suppress(EnvelopeError):
            open_enveloped_data(flipped, KEY)
