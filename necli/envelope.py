"""Encrypts for an enclave, on the data owner's machine, in the AWS Encryption SDK's message format.

AES-256-GCM with key commitment under a data key that KMS makes and wraps. The encryption context is
authenticated, and the key policy as well as the enclave can insist on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from necli.errors import InputError
from necli.kms import kms_errors

CONTEXT = {"necli:workload": "object-detection"}
"""The pairs that the enclave asks of every message."""

FRAME_BYTES = 64 << 10
"""Three times as fast as the SDK's default of 4 KiB."""

MAX_PLAINTEXT_BYTES = 63 << 20
"""What fits into the enclave's limit of 64 MiB a message, with its frames' headers."""

_MESSAGE_STARTS = (b"\x02\x04\x78", b"\x02\x05\x78", b"\x01\x80")


@dataclass(frozen=True)
class WrappedKey:
    """The data key of a message as it travels: KMS alone can unwrap it."""

    key_arn: str
    ciphertext: bytes
    encryption_context: Mapping[str, str]


@dataclass(frozen=True)
class SealedMessage:
    message: bytes = field(repr=False)
    data_key: WrappedKey


def is_message(start: bytes) -> bool:
    """Whether a file starts as a message does; version 1 counts too, which the enclave refuses."""
    return start.startswith(_MESSAGE_STARTS)


def context_of(message: bytes) -> Mapping[str, str]:
    """The encryption context in a message's header, which nothing has authenticated here."""
    from aws_encryption_sdk.exceptions import AWSEncryptionSDKClientError
    from aws_encryption_sdk.internal.formatting.deserialize import deserialize_header

    try:
        header, _ = deserialize_header(BytesIO(message))
    except AWSEncryptionSDKClientError as exc:
        raise InputError(f"the message's header can't be read: {exc}", code="message_invalid") from exc
    return dict(header.encryption_context)


def seal(plaintext: bytes, *, kms: Any, key_arn: str, context: Mapping[str, str]) -> SealedMessage:
    """Encrypt under a new data key of this KMS key.

    :raises InputError: the plaintext is larger than what the enclave accepts.
    :raises NecliError: KMS refused or can't be reached.
    """
    if len(plaintext) > MAX_PLAINTEXT_BYTES:
        raise InputError(
            f"{len(plaintext) >> 20} MiB is more than the {MAX_PLAINTEXT_BYTES >> 20} MiB of an enclave",
            hint="use a smaller image",
            code="message_too_large",
        )
    from aws_encryption_sdk import CommitmentPolicy, EncryptionSDKClient
    from aws_encryption_sdk.exceptions import GenerateKeyError
    from aws_encryption_sdk.identifiers import Algorithm
    from aws_encryption_sdk.key_providers.kms import KMSMasterKey

    sdk = EncryptionSDKClient(commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)
    with kms_errors("encrypt"):
        try:
            message, header = sdk.encrypt(
                source=plaintext,
                key_provider=KMSMasterKey(key_id=key_arn, client=kms),
                encryption_context=dict(context),
                algorithm=Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY,
                frame_length=FRAME_BYTES,
            )
        except GenerateKeyError as exc:  # the SDK hides the reason behind its own error
            raise exc.__cause__ or exc from None
    (data_key,) = header.encrypted_data_keys
    wrapped = WrappedKey(key_arn, data_key.encrypted_data_key, dict(header.encryption_context))
    return SealedMessage(message, wrapped)
