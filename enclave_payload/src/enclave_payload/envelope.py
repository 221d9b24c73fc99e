"""Opens AWS Encryption SDK messages, under the one key and the encryption context baked into the image.

What the SDK does: parse the header, unwrap the data key through the KMS client that it's given, check the key
commitment, authenticate header and frames. What is added here: the message must be wrapped for this enclave's
key and carry its context, which is checked before anything is sent to KMS; the cost of a message is bounded;
the plaintext is handed out only when all of it is authentic; and every failure gets the code of its cause.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, NoReturn

from aws_encryption_sdk import (
    CommitmentPolicy,
    DefaultCryptoMaterialsManager,
    EncryptionSDKClient,
)
from aws_encryption_sdk.exceptions import AWSEncryptionSDKClientError, DecryptKeyError
from aws_encryption_sdk.key_providers.kms import KMSMasterKey
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from cryptography.exceptions import InvalidSignature, InvalidTag

from enclave_payload.errors import PayloadError

_COMMITTING_FORMAT: Final = b"\x02"  # version 1 messages have no key commitment
_MIN_FRAME_BYTES: Final = 1024  # a frame costs some 20 µs whatever its size
_MAX_AWS_MESSAGE: Final = 1000

_CODE_OF_AWS_ERROR: Final[Mapping[str, tuple[str, str]]] = {
    "AccessDeniedException": ("access_denied", "KMS refused to decrypt the data key"),
    "ExpiredTokenException": ("credentials_expired", "the AWS credentials have expired"),
    "IncorrectKeyException": ("wrong_key", "KMS says that another key wrapped the data key"),
    "InvalidCiphertextException": ("message_invalid", "KMS can't unwrap the data key: it was altered"),
}
_NO_CREDENTIALS: Final = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)
_UNREACHABLE: Final = (HTTPClientError, ConnectionError)


@dataclass(frozen=True)
class OpenedMessage:
    plaintext: bytes = field(repr=False)
    kms_seconds: float
    encryption_context: Mapping[str, str] = field(default_factory=dict)
    """Authenticated, as the plaintext is."""


class MessageOpener:
    """Decrypts messages that were made for this enclave."""

    def __init__(
        self,
        *,
        kms_client: Any,
        key_arn: str,
        encryption_context: Mapping[str, str],
        max_message_bytes: int,
    ) -> None:
        self._kms_client = kms_client
        self._key_arn = key_arn
        self._encryption_context = encryption_context
        self._max_message_bytes = max_message_bytes
        self._sdk = EncryptionSDKClient(
            commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT, max_encrypted_data_keys=1
        )

    def open(self, message: BinaryIO) -> OpenedMessage:
        """Read the whole message from its start; blocks on KMS. Raises PayloadError."""
        if message.read(1) != _COMMITTING_FORMAT:
            raise PayloadError("message_invalid", "not an AWS Encryption SDK message with key commitment")
        message.seek(0)
        key = _MeteredKey(key_id=self._key_arn, client=self._kms_client)
        try:
            plaintext, context = self._decrypt(message, key)
        except (AWSEncryptionSDKClientError, InvalidTag, InvalidSignature, ValueError) as exc:
            raise PayloadError("message_invalid", _reason(exc)) from exc
        except BotoCoreError as exc:
            _raise_for_kms(exc)
        return OpenedMessage(plaintext, key.kms_seconds, context)

    def _decrypt(self, message: BinaryIO, key: _MeteredKey) -> tuple[bytes, Mapping[str, str]]:
        stream = self._sdk.stream(
            mode="decrypt",
            source=message,
            materials_manager=_PinnedMaterialsManager(key, self._key_arn, self._encryption_context),
            max_body_length=self._max_message_bytes,
        )
        framed = stream.header.content_type.name == "FRAMED_DATA"
        if framed and stream.header.frame_length < _MIN_FRAME_BYTES:
            raise PayloadError("message_invalid", f"frames are smaller than {_MIN_FRAME_BYTES} bytes")
        plaintext = io.BytesIO()
        # Frame by frame: the SDK's own read() goes by 8 KiB and copies the rest of the frame each time.
        while chunk := stream.read(stream.header.frame_length if framed else self._max_message_bytes):
            plaintext.write(chunk)
        stream.close()  # refuses a message whose footer wasn't reached
        if message.read(1):
            raise PayloadError("message_invalid", "bytes follow after the end of the message")
        return plaintext.getvalue(), dict(stream.header.encryption_context)


class _MeteredKey(KMSMasterKey):  # type: ignore[misc]
    """The SDK's KMS key, with the time that KMS took and the reason when it failed."""

    kms_seconds = 0.0

    def decrypt_data_key(self, encrypted_data_key: Any, algorithm: Any, encryption_context: Any) -> Any:
        started = time.perf_counter()
        try:
            return super().decrypt_data_key(encrypted_data_key, algorithm, encryption_context)
        except DecryptKeyError as exc:  # the SDK would go on to the next key and forget the reason
            _raise_for_kms(exc.__cause__ or exc)
        finally:
            self.kms_seconds = time.perf_counter() - started


class _PinnedMaterialsManager(DefaultCryptoMaterialsManager):  # type: ignore[misc]
    """Refuses a foreign message once its header is read, before KMS is asked for the data key."""

    def __init__(self, key: KMSMasterKey, key_arn: str, encryption_context: Mapping[str, str]) -> None:
        super().__init__(master_key_provider=key)
        self._key_arn = key_arn
        self._encryption_context = encryption_context

    def decrypt_materials(self, request: Any) -> Any:
        wrapped_by = [
            (data_key.key_provider.provider_id, data_key.key_provider.key_info)
            for data_key in request.encrypted_data_keys
        ]
        if wrapped_by != [("aws-kms", self._key_arn.encode())]:
            raise PayloadError(
                "wrong_key",
                "the message isn't encrypted for this enclave's key",
                detail={"expected": self._key_arn},
            )
        for name, value in self._encryption_context.items():
            if request.encryption_context.get(name) != value:
                raise PayloadError(
                    "wrong_context",
                    "the message lacks a pair of the encryption context that this enclave requires",
                    detail={"expected": f"{name}={value}"},
                )
        return super().decrypt_materials(request)


def _reason(exc: Exception) -> str:
    if isinstance(exc, InvalidTag | InvalidSignature):
        return "the message was altered: it doesn't authenticate"
    return "not a whole AWS Encryption SDK message of one data key and with key commitment"


def _raise_for_kms(exc: BaseException) -> NoReturn:
    if isinstance(exc, ClientError):
        error = exc.response.get("Error", {})
        aws_code = str(error.get("Code", "Unknown"))
        code, message = _CODE_OF_AWS_ERROR.get(aws_code, ("kms_error", "KMS failed to decrypt the data key"))
        detail = {"aws_code": aws_code, "aws_message": str(error.get("Message", ""))[:_MAX_AWS_MESSAGE]}
        raise PayloadError(code, message, detail=detail) from exc
    if isinstance(exc, _NO_CREDENTIALS):
        raise PayloadError("credentials_missing", "the request has no usable AWS credentials") from exc
    if isinstance(exc, _UNREACHABLE):
        detail = {"reason": type(exc).__name__}
        raise PayloadError("kms_unreachable", "the enclave can't reach KMS", detail=detail) from exc
    raise PayloadError("kms_error", "KMS gave an answer that can't be used") from exc
