"""Each change to a message is the one that its name says, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from io import BytesIO

import pytest
from aws_encryption_sdk import CommitmentPolicy, EncryptionSDKClient
from aws_encryption_sdk.exceptions import AWSEncryptionSDKClientError
from aws_encryption_sdk.identifiers import Algorithm, EncryptionKeyType, WrappingAlgorithm
from aws_encryption_sdk.internal.crypto.wrapping_keys import WrappingKey
from aws_encryption_sdk.internal.formatting.deserialize import deserialize_header
from aws_encryption_sdk.key_providers.raw import RawMasterKey
from cryptography.exceptions import InvalidTag

from necli import tampering
from necli.tampering import MessageParts

ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
FRAME = 1024
PLAINTEXT = bytes(range(256)) * 16 + b"the last frame"


@cache
def key() -> RawMasterKey:
    wrapping = WrappingKey(
        WrappingAlgorithm.AES_256_GCM_IV12_TAG16_NO_PADDING, b"k" * 32, EncryptionKeyType.SYMMETRIC
    )
    return RawMasterKey(provider_id="aws-kms", key_id=ARN, wrapping_key=wrapping)


def sdk() -> EncryptionSDKClient:
    return EncryptionSDKClient(commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)


@cache
def message(number: int = 0) -> bytes:
    return bytes(
        sdk().encrypt(
            source=PLAINTEXT,
            key_provider=key(),
            encryption_context={"pair": "as-made"},
            algorithm=Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY,
            frame_length=FRAME,
        )[0]
    )


CHANGES: list[Callable[[bytes], bytes]] = [
    tampering.with_header_bit_flipped,
    tampering.with_frame_bit_flipped,
    tampering.with_tag_bit_flipped,
    tampering.without_a_frame,
    tampering.without_the_last_frame,
    tampering.with_frames_reordered,
    lambda m: tampering.with_data_key_of(m, message(1)),
    lambda m: tampering.with_key_of_another_account(m, ARN),
    lambda m: tampering.with_context_value(m, "as-made", "altered"),
]


def test_the_message_as_it_was_made_decrypts() -> None:
    assert sdk().decrypt(source=message(), key_provider=key())[0] == PLAINTEXT


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_message_doesnt_decrypt(change: Callable[[bytes], bytes]) -> None:
    changed = change(message())
    assert changed != message()
    with pytest.raises((AWSEncryptionSDKClientError, InvalidTag)):
        sdk().decrypt(source=changed, key_provider=key())


def test_parts_make_the_whole_again() -> None:
    parts = MessageParts.of(message())
    assert len(parts.frames) == len(PLAINTEXT) // FRAME
    assert parts.joined() == message()


@pytest.mark.parametrize("change", [tampering.without_a_frame, tampering.with_frames_reordered])
def test_frames_stay_numbered_from_one(change: Callable[[bytes], bytes]) -> None:
    frames = MessageParts.of(change(message())).frames
    assert [int.from_bytes(frame[:4]) for frame in frames] == list(range(1, len(frames) + 1))


def test_only_one_bit_is_flipped() -> None:
    assert tampering.flip_bit(b"\0\0\0", 1) == b"\0\1\0"
    assert tampering.flip_bit(b"\0\0\0", -1) == b"\0\0\1"


def test_the_header_of_another_account_stays_readable() -> None:
    changed = tampering.with_key_of_another_account(message(), ARN)
    header, _ = deserialize_header(BytesIO(changed))
    (data_key,) = header.encrypted_data_keys
    assert data_key.key_provider.key_info.startswith(b"arn:aws:kms:eu-central-1:999988887777:key/")


def test_a_context_value_keeps_its_length() -> None:
    with pytest.raises(ValueError, match="length"):
        tampering.with_context_value(message(), "as-made", "longer than that")
