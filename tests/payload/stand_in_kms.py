"""A real botocore KMS client whose answers are made here: AES-GCM under one key, or the error asked for.

It stands in where a test needs a KMS that fails on demand. Attestation and key policies are tested with the
local KMS.
"""

from __future__ import annotations

import base64
import json
import secrets
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import aws_encryption_sdk
import botocore.session
from aws_encryption_sdk.key_providers.kms import KMSMasterKey
from botocore.exceptions import ClientError
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
CONTEXT = {"necli:workload": "object-detection"}


_SESSION = botocore.session.Session()  # keeps the parsed service model, which takes long to load
_SESSION.set_credentials("AKIDEXAMPLE", "secret")


class StandInKms:
    """`failure` is raised instead of the next answers; `calls` counts the decryptions that were asked for."""

    def __init__(self) -> None:
        self._aead = AESGCM(secrets.token_bytes(32))
        self.failure: Exception | None = None
        self.answer_key_arn: str | None = None
        self.calls = 0

    @cached_property
    def client(self) -> Any:
        client = _SESSION.create_client("kms", region_name="eu-central-1")
        client.meta.events.register("before-call.kms.GenerateDataKey", self._generate_data_key)
        client.meta.events.register("before-call.kms.Decrypt", self._decrypt)
        return client

    def encrypt(self, plaintext: bytes, context: dict[str, str] = CONTEXT, **options: Any) -> bytes:
        policy = options.pop("policy", aws_encryption_sdk.CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)
        key = KMSMasterKey(key_id=options.pop("key_arn", KEY_ARN), client=self.client)
        sdk = aws_encryption_sdk.EncryptionSDKClient(commitment_policy=policy)
        message, _ = sdk.encrypt(
            source=plaintext,
            key_provider=key,
            encryption_context=context,
            **{"frame_length": 65536, **options},
        )
        return bytes(message)

    def _generate_data_key(self, params: Any, **_: Any) -> Any:
        request = json.loads(params["body"])
        plaintext, nonce = secrets.token_bytes(request["NumberOfBytes"]), secrets.token_bytes(12)
        sealed = nonce + self._aead.encrypt(nonce, plaintext, _associated(request))
        return _answer(KeyId=request["KeyId"], Plaintext=plaintext, CiphertextBlob=sealed)

    def _decrypt(self, params: Any, **_: Any) -> Any:
        self.calls += 1
        if self.failure:
            raise self.failure
        request = json.loads(params["body"])
        sealed = base64.b64decode(request["CiphertextBlob"])
        try:
            plaintext = self._aead.decrypt(sealed[:12], sealed[12:], _associated(request))
        except (InvalidTag, ValueError) as exc:
            raise refusal("InvalidCiphertextException") from exc
        return _answer(KeyId=self.answer_key_arn or request["KeyId"], Plaintext=plaintext)


def refusal(aws_code: str, message: str = "") -> ClientError:
    return ClientError({"Error": {"Code": aws_code, "Message": message}}, "Decrypt")


def _associated(request: dict[str, Any]) -> bytes:
    return json.dumps([request["KeyId"], request.get("EncryptionContext", {})], sort_keys=True).encode()


def _answer(**members: Any) -> Any:
    return SimpleNamespace(status_code=200), members
