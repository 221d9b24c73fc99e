"""Answers sealed in the enclave, opened by the data owner."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from enclave_payload.errors import PayloadError
from enclave_payload.receipt import receipt_user_data, sealed_user_data
from enclave_payload.sealing import SEAL_TO, owner_key, seal_answer
from necli.errors import InputError
from necli.sealing import load_private_key, open_answer, seal_to

OWNER = X25519PrivateKey.generate()
PEM = Encoding.PEM


def answer(objects: int) -> dict[str, Any]:
    return {
        "schema": 1,
        "objects": [{"name": "Zebra é", "score": 0.5, "box": [0.0, 0.1, 0.2, 1.0]}] * objects,
    }


def sealed(objects: int = 1) -> bytes:
    key = owner_key(seal_to(OWNER.public_key().public_bytes(PEM, PublicFormat.SubjectPublicKeyInfo)))
    assert key is not None
    return seal_answer(answer(objects), key)


def test_the_owner_opens_what_the_enclave_sealed() -> None:
    private = OWNER.private_bytes(PEM, PrivateFormat.PKCS8, NoEncryption())
    assert open_answer(sealed(), load_private_key(private)) == answer(1)


def test_nobody_else_opens_it_and_nothing_in_it_can_be_changed() -> None:
    with pytest.raises(InputError, match="isn't sealed to this key"):
        open_answer(sealed(), X25519PrivateKey.generate())
    whole = sealed()
    for position in (0, 40, len(whole) - 1):
        changed = bytearray(whole)
        changed[position] ^= 1
        with pytest.raises(InputError) as caught:
            open_answer(bytes(changed), OWNER)
        assert caught.value.code == "wrong_private_key"
    for short in (b"", whole[:10], whole[:-1]):
        with pytest.raises(InputError):
            open_answer(short, OWNER)


def test_its_length_does_not_tell_how_many_objects_there_are() -> None:
    assert len({len(sealed(objects)) for objects in range(40)}) == 1


def test_the_same_answer_is_never_sealed_to_the_same_bytes() -> None:
    assert sealed() != sealed()


def test_a_message_without_the_pair_is_answered_in_the_clear() -> None:
    assert owner_key({"necli:workload": "object-detection"}) is None


@pytest.mark.parametrize("text", ["", "%%%", base64.b64encode(bytes(31)).decode(), "ü"])
def test_a_pair_that_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(PayloadError) as caught:
        owner_key({SEAL_TO: text})
    assert caught.value.code == "message_invalid"


def test_a_key_of_small_order_is_refused() -> None:
    key = owner_key({SEAL_TO: base64.b64encode(bytes(32)).decode()})
    assert key is not None
    with pytest.raises(PayloadError) as caught:
        seal_answer(answer(1), key)
    assert caught.value.code == "message_invalid"


def test_sealed_bytes_and_answers_have_receipts_of_different_domains() -> None:
    assert sealed_user_data(b"{}") != receipt_user_data({})


def test_only_x25519_keys_in_pem_are_taken() -> None:
    other = Ed25519PrivateKey.generate()
    for public in (b"", b"text", other.public_key().public_bytes(PEM, PublicFormat.SubjectPublicKeyInfo)):
        with pytest.raises(InputError, match="X25519 public key"):
            seal_to(public)
    for private in (b"", b"text", other.private_bytes(PEM, PrivateFormat.PKCS8, NoEncryption())):
        with pytest.raises(InputError, match="X25519 private key"):
            load_private_key(private)
