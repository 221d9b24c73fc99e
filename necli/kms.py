"""The key in KMS, through a boto3 client; AWS's errors become necli's here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from necli.errors import AccessDenied, NecliError, NotReady, ServiceFailed
from necli.keypolicy import KeyPolicy

_GONE = ("PendingDeletion", "PendingReplicaDeletion")


@contextmanager
def kms_errors(doing: str) -> Iterator[None]:
    """Around calls of a KMS client: what AWS or the network says, as a NecliError."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as exc:
        error = exc.response.get("Error", {})
        raise _translated(doing, str(error.get("Code", "")), str(error.get("Message", ""))) from exc
    except BotoCoreError as exc:
        raise ServiceFailed(f"can't {doing}: {exc}", hint="run necli doctor", code="kms_unreachable") from exc


def _translated(doing: str, code: str, message: str) -> NecliError:
    text = f"can't {doing}: KMS says {code}: {message}"
    if code == "AccessDeniedException":
        return AccessDenied(text, hint="necli policy show prints who may do what", code=code)
    if code in ("UnrecognizedClientException", "InvalidSignatureException", "ExpiredTokenException"):
        return AccessDenied(text, hint="the credentials are not this KMS's: run necli doctor", code=code)
    if code in ("NotFoundException", "KMSInvalidStateException", "DisabledException"):
        return NotReady(text, hint="run necli setup", code=code)
    return ServiceFailed(text, hint="run necli doctor", code=code or None)


def find_key(client: Any, key_id: str) -> str | None:
    """The ARN of a key by its id, ARN or alias; None where there is none, or it is about to be deleted."""
    try:
        with kms_errors(f"look up the key {key_id}"):
            metadata = client.describe_key(KeyId=key_id)["KeyMetadata"]
    except NotReady as exc:
        if exc.code == "NotFoundException":
            return None
        raise
    return None if metadata["KeyState"] in _GONE else str(metadata["Arn"])


def create_key(client: Any, policy: KeyPolicy, description: str) -> str:
    with kms_errors("create a key"):
        answer = client.create_key(Policy=policy.to_text(), Description=description)
    return str(answer["KeyMetadata"]["Arn"])


def point_alias(client: Any, alias: str, key_arn: str) -> None:
    """Let `alias` mean this key, whatever it meant before."""
    with kms_errors(f"give the key its alias {alias}"):
        try:
            client.create_alias(AliasName=alias, TargetKeyId=key_arn)
        except client.exceptions.AlreadyExistsException:
            client.update_alias(AliasName=alias, TargetKeyId=key_arn)


def read_policy(client: Any, key_arn: str) -> KeyPolicy:
    with kms_errors("read the key policy"):
        return KeyPolicy.from_json(client.get_key_policy(KeyId=key_arn, PolicyName="default")["Policy"])


def write_policy(client: Any, key_arn: str, policy: KeyPolicy) -> None:
    with kms_errors("write the key policy"):
        client.put_key_policy(KeyId=key_arn, PolicyName="default", Policy=policy.to_text())


def schedule_deletion(client: Any, key_arn: str, *, days: int) -> None:
    with kms_errors("schedule the key's deletion"):
        client.schedule_key_deletion(KeyId=key_arn, PendingWindowInDays=days)
