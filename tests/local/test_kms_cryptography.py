"""Encrypt, decrypt, data keys and ReEncrypt, through an unmodified boto3."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running_kms import RunningKms

CONTEXT = {"necli:workload": "object-detection", "ключ": "значение"}


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningKms]:
    running = RunningKms(tmp_path_factory.mktemp("kms"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def admin(kms: RunningKms) -> Any:
    return kms.administrator


@pytest.fixture(scope="module")
def key(kms: RunningKms) -> str:
    return kms.new_key()


@pytest.fixture(scope="module")
def blob(admin: Any, key: str) -> bytes:
    encrypted: bytes = admin.encrypt(KeyId=key, Plaintext=b"secret", EncryptionContext=CONTEXT)[
        "CiphertextBlob"
    ]
    return encrypted


def refused(code: str, match: str = "") -> Any:
    return pytest.raises(ClientError, match=rf"\({code}\).*{match}")


def test_what_was_encrypted_is_decrypted_with_or_without_the_keys_name(
    admin: Any, key: str, blob: bytes
) -> None:
    for named in ({}, {"KeyId": key}):
        answer = admin.decrypt(CiphertextBlob=blob, EncryptionContext=CONTEXT, **named)
        assert (answer["Plaintext"], answer["KeyId"]) == (b"secret", key)
        assert answer["EncryptionAlgorithm"] == "SYMMETRIC_DEFAULT"


def test_the_order_of_the_context_does_not_matter(admin: Any, blob: bytes) -> None:
    context = dict(reversed(CONTEXT.items()))
    assert admin.decrypt(CiphertextBlob=blob, EncryptionContext=context)["Plaintext"] == b"secret"


@pytest.mark.parametrize(
    "context",
    [
        {},
        {**CONTEXT, "more": "x"},
        {"necli:workload": "object-detection"},
        {**CONTEXT, "necli:workload": "another"},
        {"Necli:workload": "object-detection", "ключ": "значение"},
        {"necli:workload": "object-detectionключ", "значение": ""},
    ],
)
def test_another_context_does_not_open_it(admin: Any, blob: bytes, context: dict[str, str]) -> None:
    with refused("InvalidCiphertextException"):
        admin.decrypt(CiphertextBlob=blob, EncryptionContext=context)


def test_a_changed_bit_anywhere_is_refused(admin: Any, key: str, blob: bytes) -> None:
    for position in range(len(blob)):
        changed = bytearray(blob)
        changed[position] ^= 1
        with pytest.raises(ClientError) as failure:
            admin.decrypt(CiphertextBlob=bytes(changed), EncryptionContext=CONTEXT)
        # A changed key id names a key that isn't there; AWS tells that apart from nothing else.
        assert failure.value.response["Error"]["Code"] == (
            "AccessDeniedException" if 1 <= position <= 16 else "InvalidCiphertextException"
        )


@pytest.mark.parametrize("junk", [b"x", b"\x01" * 28, b"\x01" * 45, b"\x02" * 100, b"x" * 6144])
def test_what_is_no_ciphertext_of_this_kms_is_refused(admin: Any, key: str, junk: bytes) -> None:
    with refused("(InvalidCiphertext|AccessDenied)Exception"):
        admin.decrypt(CiphertextBlob=junk)
    with refused("InvalidCiphertextException|IncorrectKeyException"):
        admin.decrypt(CiphertextBlob=junk, KeyId=key)


def test_the_ciphertext_of_another_key_is_refused_by_a_named_key(
    kms: RunningKms, admin: Any, blob: bytes
) -> None:
    with refused("IncorrectKeyException", "does not identify a CMK that can perform this operation"):
        admin.decrypt(CiphertextBlob=blob, EncryptionContext=CONTEXT, KeyId=kms.new_key())


@pytest.mark.parametrize(("size", "fits"), [(1, True), (4096, True), (4097, False)])
def test_up_to_4096_bytes_are_encrypted(admin: Any, key: str, size: int, fits: bool) -> None:
    if fits:
        blob = admin.encrypt(KeyId=key, Plaintext=bytes(size))["CiphertextBlob"]
        assert admin.decrypt(CiphertextBlob=blob)["Plaintext"] == bytes(size)
    else:
        with refused("ValidationException", "plaintext"):
            admin.encrypt(KeyId=key, Plaintext=bytes(size))


def test_a_context_above_8_kib_is_refused(admin: Any, key: str) -> None:
    with refused("ValidationException", "encryptionContext"):
        admin.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext={"a": "x" * 8192})


def test_context_keys_that_differ_in_case_only_are_refused(admin: Any, key: str) -> None:
    with refused("ValidationException", "case"):
        admin.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext={"a": "x", "A": "y"})


def test_the_same_plaintext_never_gives_the_same_ciphertext(admin: Any, key: str) -> None:
    blobs = {admin.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"] for _ in range(20)}
    assert len(blobs) == 20


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(min_size=1, max_size=64),
    st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
)
def test_any_plaintext_and_context_survive(
    admin: Any, key: str, plaintext: bytes, context: dict[str, str]
) -> None:
    context = {name.lower(): value for name, value in context.items()}
    blob = admin.encrypt(KeyId=key, Plaintext=plaintext, EncryptionContext=context)["CiphertextBlob"]
    assert admin.decrypt(CiphertextBlob=blob, EncryptionContext=context)["Plaintext"] == plaintext


class TestDataKeys:
    @pytest.mark.parametrize(
        ("asked", "size"),
        [({"KeySpec": "AES_256"}, 32), ({"KeySpec": "AES_128"}, 16), ({"NumberOfBytes": 1024}, 1024)],
    )
    def test_a_data_key_comes_in_plain_and_encrypted(
        self, admin: Any, key: str, asked: dict[str, Any], size: int
    ) -> None:
        made = admin.generate_data_key(KeyId=key, EncryptionContext=CONTEXT, **asked)
        assert len(made["Plaintext"]) == size
        opened = admin.decrypt(CiphertextBlob=made["CiphertextBlob"], EncryptionContext=CONTEXT)
        assert opened["Plaintext"] == made["Plaintext"]

    def test_without_plaintext_there_is_none(self, admin: Any, key: str) -> None:
        made = admin.generate_data_key_without_plaintext(KeyId=key, KeySpec="AES_256")
        assert "Plaintext" not in made
        assert len(admin.decrypt(CiphertextBlob=made["CiphertextBlob"])["Plaintext"]) == 32

    @pytest.mark.parametrize("asked", [{}, {"KeySpec": "AES_256", "NumberOfBytes": 32}])
    def test_a_size_or_a_spec_is_asked_for_and_not_both(
        self, admin: Any, key: str, asked: dict[str, Any]
    ) -> None:
        with refused("ValidationException", "either number of bytes or key spec"):
            admin.generate_data_key(KeyId=key, **asked)

    def test_random_bytes_are_given(self, admin: Any) -> None:
        first, second = (admin.generate_random(NumberOfBytes=32)["Plaintext"] for _ in range(2))
        assert len(first) == 32
        assert first != second


class TestReEncrypt:
    def test_it_moves_a_ciphertext_to_another_key_and_context(
        self, kms: RunningKms, admin: Any, key: str, blob: bytes
    ) -> None:
        other = kms.new_key()
        moved = admin.re_encrypt(
            CiphertextBlob=blob,
            SourceEncryptionContext=CONTEXT,
            DestinationKeyId=other,
            DestinationEncryptionContext={"new": "context"},
        )
        assert (moved["SourceKeyId"], moved["KeyId"]) == (key, other)
        opened = admin.decrypt(CiphertextBlob=moved["CiphertextBlob"], EncryptionContext={"new": "context"})
        assert opened["Plaintext"] == b"secret"

    def test_the_source_key_has_to_be_the_one_named(
        self, kms: RunningKms, admin: Any, key: str, blob: bytes
    ) -> None:
        with refused("IncorrectKeyException"):
            admin.re_encrypt(
                CiphertextBlob=blob,
                SourceEncryptionContext=CONTEXT,
                SourceKeyId=kms.new_key(),
                DestinationKeyId=key,
            )

    def test_the_wrong_source_context_is_refused(self, admin: Any, key: str, blob: bytes) -> None:
        with refused("InvalidCiphertextException"):
            admin.re_encrypt(CiphertextBlob=blob, DestinationKeyId=key)


def test_a_dry_run_says_that_it_would_have_worked(admin: Any, key: str, blob: bytes) -> None:
    with refused("DryRunOperationException"):
        admin.decrypt(CiphertextBlob=blob, EncryptionContext=CONTEXT, DryRun=True)
    with refused("DryRunOperationException"):
        admin.generate_data_key(KeyId=key, KeySpec="AES_256", DryRun=True)


def test_no_answer_waits_for_a_delayed_acknowledgement(admin: Any, key: str) -> None:
    """40 ms each, on every answer, where the service's sockets lack TCP_NODELAY."""
    blob = admin.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    durations = []
    for _ in range(30):
        start = time.perf_counter()
        admin.decrypt(CiphertextBlob=blob)
        durations.append(time.perf_counter() - start)
    assert min(durations) < 0.035


def test_no_secret_stands_in_the_log(kms: RunningKms, admin: Any, key: str) -> None:
    made = admin.generate_data_key(KeyId=key, KeySpec="AES_256")
    log = kms.log
    assert "administrator GenerateDataKey ok" in log
    assert made["Plaintext"].hex() not in log
    for identity in kms.identities:
        assert identity.credentials.secret_access_key not in log
        assert identity.credentials.session_token not in log
