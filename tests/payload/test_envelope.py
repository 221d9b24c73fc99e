"""Messages for the enclave: opened whole, or refused with the code of the cause."""

from __future__ import annotations

import io
import os
import random

import pytest
from aws_encryption_sdk import CommitmentPolicy
from aws_encryption_sdk.identifiers import Algorithm
from botocore.exceptions import (
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    SSLError,
)

from enclave_payload.envelope import MessageOpener, OpenedMessage
from enclave_payload.errors import PayloadError
from tests.payload.stand_in_kms import CONTEXT, KEY_ARN, StandInKms, refusal

LIMIT = 8 * 2**20
OTHER_KEY = KEY_ARN.replace("1234abcd", "5678abcd")


@pytest.fixture
def kms() -> StandInKms:
    return StandInKms()


def open_message(kms: StandInKms, message: bytes) -> OpenedMessage:
    opener = MessageOpener(
        kms_client=kms.client, key_arn=KEY_ARN, encryption_context=CONTEXT, max_message_bytes=LIMIT
    )
    return opener.open(io.BytesIO(message))


def code_of(kms: StandInKms, message: bytes) -> str:
    with pytest.raises(PayloadError) as caught:
        open_message(kms, message)
    return caught.value.code


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 131072, 1_000_000])
@pytest.mark.parametrize(
    "algorithm",
    [Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY, Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY_ECDSA_P384],
    ids=["unsigned", "signed"],
)
def test_a_message_is_opened_whole(kms: StandInKms, size: int, algorithm: Algorithm) -> None:
    plaintext = os.urandom(size)
    opened = open_message(kms, kms.encrypt(plaintext, algorithm=algorithm))
    assert opened.plaintext == plaintext
    assert opened.kms_seconds > 0
    assert kms.calls == 1


def test_a_message_without_frames_is_opened_too(kms: StandInKms) -> None:
    plaintext = os.urandom(100_000)
    assert open_message(kms, kms.encrypt(plaintext, frame_length=0)).plaintext == plaintext


def test_further_pairs_in_the_context_are_welcome(kms: StandInKms) -> None:
    assert open_message(kms, kms.encrypt(b"photo", {**CONTEXT, "owner": "me"})).plaintext == b"photo"


def test_the_plaintext_is_not_in_the_repr(kms: StandInKms) -> None:
    assert "photo" not in repr(open_message(kms, kms.encrypt(b"photo")))


@pytest.mark.parametrize(
    "context",
    [{}, {"necli:workload": "other"}, {"necli:Workload": "object-detection"}],
    ids=["none", "other value", "other name"],
)
def test_a_message_without_the_required_context_never_reaches_kms(
    kms: StandInKms, context: dict[str, str]
) -> None:
    assert code_of(kms, kms.encrypt(b"photo", context)) == "wrong_context"
    assert kms.calls == 0


def test_a_message_for_another_key_never_reaches_kms(kms: StandInKms) -> None:
    assert code_of(kms, kms.encrypt(b"photo", key_arn=OTHER_KEY)) == "wrong_key"
    assert kms.calls == 0


def test_a_message_from_another_provider_never_reaches_kms(kms: StandInKms) -> None:
    message = kms.encrypt(b"photo").replace(b"\x00\x07aws-kms", b"\x00\x07aws-abc")
    assert code_of(kms, message) == "wrong_key"
    assert kms.calls == 0


def test_a_message_of_several_data_keys_is_refused(kms: StandInKms) -> None:
    """The second one would let the sender of a message choose between keys."""
    message = kms.encrypt(b"photo").replace(b"\x00\x01\x00\x07aws-kms", b"\x00\x02\x00\x07aws-kms")
    assert code_of(kms, message) == "message_invalid"
    assert kms.calls == 0


def test_a_message_without_key_commitment_is_refused(kms: StandInKms) -> None:
    message = kms.encrypt(
        b"photo",
        policy=CommitmentPolicy.FORBID_ENCRYPT_ALLOW_DECRYPT,
        algorithm=Algorithm.AES_256_GCM_IV12_TAG16_HKDF_SHA256,
    )
    assert code_of(kms, message) == "message_invalid"
    assert kms.calls == 0


def test_a_message_of_tiny_frames_is_refused(kms: StandInKms) -> None:
    assert code_of(kms, kms.encrypt(b"photo", frame_length=128)) == "message_invalid"


def test_a_message_of_frames_above_the_limit_is_refused(kms: StandInKms) -> None:
    assert code_of(kms, kms.encrypt(b"photo", frame_length=2 * LIMIT)) == "message_invalid"
    assert kms.calls == 0


def test_bytes_after_the_end_are_refused(kms: StandInKms) -> None:
    assert code_of(kms, kms.encrypt(b"photo") + b"\0") == "message_invalid"


@pytest.mark.parametrize("frame_length", [1024, 0], ids=["framed", "unframed"])
def test_no_cut_message_gives_plaintext(kms: StandInKms, frame_length: int) -> None:
    message = kms.encrypt(os.urandom(5000), frame_length=frame_length)
    for length in [*range(0, 700, 7), *range(700, len(message), 101), len(message) - 1]:
        assert code_of(kms, message[:length]) == "message_invalid", length


def test_no_flipped_bit_gives_plaintext(kms: StandInKms) -> None:
    message = kms.encrypt(os.urandom(3000), frame_length=1024)
    chance = random.Random(4)
    for position in [*range(600), *chance.sample(range(600, len(message)), 200)]:
        flipped = bytearray(message)
        flipped[position] ^= 1 << chance.randrange(8)
        code = code_of(kms, bytes(flipped))
        assert code in {"message_invalid", "wrong_key", "wrong_context"}, position


def test_garbage_is_refused(kms: StandInKms) -> None:
    chance = random.Random(5)
    start = kms.encrypt(b"photo")[:1]
    for _ in range(500):
        garbage = start + chance.randbytes(chance.randrange(400))
        assert code_of(kms, garbage) in {"message_invalid", "wrong_key"}
    assert kms.calls == 0


@pytest.mark.parametrize(
    ("failure", "code", "detail"),
    [
        (
            refusal("AccessDeniedException", "not authorized"),
            "access_denied",
            {"aws_code": "AccessDeniedException", "aws_message": "not authorized"},
        ),
        (refusal("ExpiredTokenException"), "credentials_expired", None),
        (refusal("IncorrectKeyException"), "wrong_key", None),
        (refusal("DisabledException"), "kms_error", None),
        (refusal("KMSInternalException"), "kms_error", None),
        (NoCredentialsError(), "credentials_missing", None),
        (EndpointConnectionError(endpoint_url="x"), "kms_unreachable", None),
        (ConnectTimeoutError(endpoint_url="x"), "kms_unreachable", None),
        (SSLError(endpoint_url="x", error="bad"), "kms_unreachable", {"reason": "SSLError"}),
        (ParamValidationError(report="x"), "kms_error", None),
        (PayloadError("kms_error", "from a hook of the client"), "kms_error", None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_failure_of_kms_gets_its_own_code(
    kms: StandInKms, failure: Exception, code: str, detail: dict[str, str] | None
) -> None:
    message = kms.encrypt(b"photo")
    kms.failure = failure
    with pytest.raises(PayloadError) as caught:
        open_message(kms, message)
    assert caught.value.code == code
    if detail:
        assert caught.value.detail == detail


def test_an_answer_of_kms_for_another_key_is_not_used(kms: StandInKms) -> None:
    message = kms.encrypt(b"photo")
    kms.answer_key_arn = OTHER_KEY
    assert code_of(kms, message) == "kms_error"


def test_an_altered_data_key_is_refused_by_kms_as_invalid(kms: StandInKms) -> None:
    message = kms.encrypt(b"photo")
    start = message.index(KEY_ARN.encode()) + len(KEY_ARN) + 10
    altered = message[:start] + bytes([message[start] ^ 1]) + message[start + 1 :]
    assert code_of(kms, altered) == "message_invalid"
    assert kms.calls == 1
