"""What the local KMS does for each operation: check the request, ask the policies, act."""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

from necli.attestation import TrustedRoot
from necli.keypolicy import KeyPolicy, MalformedPolicy, Statement, evaluate
from necli.local.identities import ACCOUNT, Identities
from necli.local.kms_access import ALGORITHM, Call, KeyAccess, check_dry_run, check_enabled, check_not_pending
from necli.local.kms_ciphertext import key_id_of, new_key_material, seal, unseal
from necli.local.kms_protocol import KmsError, Parameters
from necli.local.kms_store import Key, KeyStore, alias_arn
from necli.local.recipient import Recipient, verify_recipient

_MAX_POLICY_BYTES = 32 << 10
_MAX_PLAINTEXT_BYTES = 4096
_MAX_CIPHERTEXT_BYTES = 6144
_POLICY_TEXT = r"[\t\n\r\x20-\xff]+"
_ALIAS_NAME = r"[a-zA-Z0-9:/_-]+"
_NOT_SUPPORTED = ("GrantTokens",)


class KeyManagement:
    """The operations of KMS in one region, on one store."""

    def __init__(
        self,
        store: KeyStore,
        identities: Identities,
        *,
        roots: Sequence[TrustedRoot],
        max_document_age: timedelta,
    ) -> None:
        self._store = store
        self._access = KeyAccess(store)
        self._roles = {identity.role_arn for identity in identities}
        self._roots = roots
        self._max_document_age = max_document_age
        self._operations: dict[str, Callable[[Call], dict[str, Any]]] = {
            "CancelKeyDeletion": self._cancel_key_deletion,
            "CreateAlias": self._create_alias,
            "CreateKey": self._create_key,
            "Decrypt": self._decrypt,
            "DeleteAlias": self._delete_alias,
            "DescribeKey": self._describe_key,
            "DisableKey": self._disable_key,
            "EnableKey": self._enable_key,
            "Encrypt": self._encrypt,
            "GenerateDataKey": self._generate_data_key,
            "GenerateDataKeyWithoutPlaintext": self._generate_data_key_without_plaintext,
            "GenerateRandom": self._generate_random,
            "GetKeyPolicy": self._get_key_policy,
            "ListAliases": self._list_aliases,
            "ListKeyPolicies": self._list_key_policies,
            "ListKeys": self._list_keys,
            "PutKeyPolicy": self._put_key_policy,
            "ReEncrypt": self._re_encrypt,
            "ScheduleKeyDeletion": self._schedule_key_deletion,
            "UpdateAlias": self._update_alias,
        }

    def perform(self, call: Call) -> dict[str, Any]:
        """:raises KmsError: as AWS would."""
        operation = self._operations.get(call.operation)
        if operation is None:
            raise KmsError("UnknownOperationException", f"{call.operation:.64} is not done by the local KMS")
        call.parameters.refuse(*_NOT_SUPPORTED)
        self._store.delete_overdue_keys(call.now)
        return operation(call)

    # Keys and their states

    def _create_key(self, call: Call) -> dict[str, Any]:
        parameters = call.parameters
        parameters.refuse("CustomKeyStoreId", "XksKeyId", "MultiRegion", "Tags")
        for name, only in (
            ("KeySpec", ALGORITHM),
            ("CustomerMasterKeySpec", ALGORITHM),
            ("KeyUsage", "ENCRYPT_DECRYPT"),
            ("Origin", "AWS_KMS"),
        ):
            if parameters.text(name) not in (None, only):
                raise KmsError("UnsupportedOperationException", f"the local KMS knows only {name} {only}")
        description = parameters.text("Description", max_length=8192, pattern="(?s).*") or ""
        bypass = parameters.flag("BypassPolicyLockoutSafetyCheck")
        self._access.authorize_on_account(
            call, "kms:CreateKey", {"kms:BypassPolicyLockoutSafetyCheck": _bool(bypass)}
        )
        text = parameters.text("Policy", max_length=131_072, pattern=_POLICY_TEXT) or _default_policy()
        key = Key(str(uuid4()), self._store.region, new_key_material(), description, text, call.now)
        self._check_policy(call, key, text, bypass)
        self._store.add_key(key)
        return {"KeyMetadata": _metadata(key)}

    def _describe_key(self, call: Call) -> dict[str, Any]:
        key = self._access.key(call)
        self._access.authorize(call, "kms:DescribeKey", key)
        return {"KeyMetadata": _metadata(key)}

    def _list_keys(self, call: Call) -> dict[str, Any]:
        self._access.authorize_on_account(call, "kms:ListKeys")
        entries = [{"KeyId": key.key_id, "KeyArn": key.arn} for key in self._store.all_keys()]
        return _page(call.parameters, "Keys", entries, "KeyId")

    def _enable_key(self, call: Call) -> dict[str, Any]:
        self._store.set_state(self._access.changeable(call, "kms:EnableKey").key_id, "Enabled")
        return {}

    def _disable_key(self, call: Call) -> dict[str, Any]:
        self._store.set_state(self._access.changeable(call, "kms:DisableKey").key_id, "Disabled")
        return {}

    def _schedule_key_deletion(self, call: Call) -> dict[str, Any]:
        days = call.parameters.integer("PendingWindowInDays", 7, 30) or 30
        conditions = {"kms:ScheduleKeyDeletionPendingWindowInDays": str(days)}
        key = self._access.changeable(call, "kms:ScheduleKeyDeletion", conditions)
        date = call.now + timedelta(days=days)
        self._store.set_state(key.key_id, "PendingDeletion", date)
        return {
            "KeyId": key.arn,
            "DeletionDate": date.timestamp(),
            "KeyState": "PendingDeletion",
            "PendingWindowInDays": days,
        }

    def _cancel_key_deletion(self, call: Call) -> dict[str, Any]:
        key = self._access.key(call, alias_allowed=False)
        self._access.authorize(call, "kms:CancelKeyDeletion", key)
        if key.state != "PendingDeletion":
            raise KmsError("KMSInvalidStateException", f"{key.arn} is not pending deletion.")
        self._store.set_state(key.key_id, "Disabled")
        return {"KeyId": key.arn}

    # Policies

    def _get_key_policy(self, call: Call) -> dict[str, Any]:
        key = self._access.key(call, alias_allowed=False)
        self._access.authorize(call, "kms:GetKeyPolicy", key)
        _check_policy_name(call.parameters)
        return {"Policy": key.policy, "PolicyName": "default"}

    def _list_key_policies(self, call: Call) -> dict[str, Any]:
        self._access.authorize(call, "kms:ListKeyPolicies", self._access.key(call, alias_allowed=False))
        return {"PolicyNames": ["default"], "Truncated": False}

    def _put_key_policy(self, call: Call) -> dict[str, Any]:
        text = call.parameters.required_text("Policy", max_length=131_072, pattern=_POLICY_TEXT)
        bypass = call.parameters.flag("BypassPolicyLockoutSafetyCheck")
        key = self._access.key(call, alias_allowed=False)
        self._access.authorize(
            call, "kms:PutKeyPolicy", key, {"kms:BypassPolicyLockoutSafetyCheck": _bool(bypass)}
        )
        _check_policy_name(call.parameters)
        self._check_policy(call, key, text, bypass)
        self._store.set_policy(key.key_id, text)
        return {}

    def _check_policy(self, call: Call, key: Key, text: str, bypass_lockout_check: bool) -> None:
        if len(text.encode()) > _MAX_POLICY_BYTES:
            raise KmsError("LimitExceededException", f"The policy is larger than {_MAX_POLICY_BYTES} bytes.")
        try:
            policy = KeyPolicy.from_json(text)
        except MalformedPolicy as exc:
            raise KmsError("MalformedPolicyDocumentException", exc.message) from exc
        for problem in policy.problems():
            raise KmsError("MalformedPolicyDocumentException", problem)
        unknown = [arn for statement in policy.statements for arn in self._unknown_roles(statement)]
        if unknown:
            raise KmsError(
                "MalformedPolicyDocumentException",
                "Policy contains a statement with one or more invalid principals.",
                detail=f"no such principal: {', '.join(unknown)}",
            )
        if not bypass_lockout_check:
            request = self._access.request(call, "kms:PutKeyPolicy", key)
            if not evaluate(policy, request, call.caller.policy).allowed:
                raise KmsError(
                    "MalformedPolicyDocumentException",
                    "The new key policy will not allow you to update the key policy in the future.",
                )

    def _unknown_roles(self, statement: Statement) -> list[str]:
        """Principals of this account that don't exist; AWS refuses a policy that names one."""
        assert statement.principal is not None
        local = re.compile(rf"arn:aws:(iam::{ACCOUNT}:(?!root$)|sts::{ACCOUNT}:).+")
        sessions = tuple(
            role.replace(":iam:", ":sts:").replace(":role/", ":assumed-role/") + "/" for role in self._roles
        )
        return [
            entry.value
            for entry in statement.principal.values
            if local.fullmatch(entry.value)
            and entry.value not in self._roles
            and not entry.value.startswith(sessions)
        ]

    # Aliases

    def _create_alias(self, call: Call) -> dict[str, Any]:
        name = _alias_name(call.parameters)
        key = self._access.key(call, "TargetKeyId", alias_allowed=False)
        self._access.authorize_alias(call, "kms:CreateAlias", name, key)
        check_not_pending(key)
        if not self._store.add_alias(name, key.key_id, call.now):
            arn = alias_arn(self._store.region, name)
            raise KmsError("AlreadyExistsException", f"An alias with the name {arn} already exists")
        return {}

    def _update_alias(self, call: Call) -> dict[str, Any]:
        alias = self._access.alias(_alias_name(call.parameters))
        key = self._access.key(call, "TargetKeyId", alias_allowed=False)
        former = self._store.key(alias.key_id)
        self._access.authorize_alias(call, "kms:UpdateAlias", alias.name, *filter(None, (former, key)))
        check_not_pending(key)
        self._store.set_alias(alias.name, key.key_id, call.now)
        return {}

    def _delete_alias(self, call: Call) -> dict[str, Any]:
        alias = self._access.alias(_alias_name(call.parameters))
        key = self._store.key(alias.key_id)
        self._access.authorize_alias(call, "kms:DeleteAlias", alias.name, *filter(None, (key,)))
        self._store.delete_alias(alias.name)
        return {}

    def _list_aliases(self, call: Call) -> dict[str, Any]:
        self._access.authorize_on_account(call, "kms:ListAliases")
        of_key = self._access.key(call).key_id if call.parameters.text("KeyId") else None
        entries = [
            {
                "AliasName": alias.name,
                "AliasArn": alias.arn,
                "TargetKeyId": alias.key_id,
                "CreationDate": alias.created.timestamp(),
                "LastUpdatedDate": alias.updated.timestamp(),
            }
            for alias in self._store.aliases(of_key)
        ]
        return _page(call.parameters, "Aliases", entries, "AliasName")

    # Cryptography

    def _encrypt(self, call: Call) -> dict[str, Any]:
        plaintext = call.parameters.blob("Plaintext", max_length=_MAX_PLAINTEXT_BYTES)
        _check_algorithm(call.parameters, "EncryptionAlgorithm")
        context = call.parameters.encryption_context()
        key = self._access.usable(call, "kms:Encrypt", self._access.key(call), _crypto_conditions(context))
        return {
            "CiphertextBlob": _base64(seal(key.key_id, key.material, plaintext, context)),
            "KeyId": key.arn,
            "EncryptionAlgorithm": ALGORITHM,
        }

    def _decrypt(self, call: Call) -> dict[str, Any]:
        blob = call.parameters.blob("CiphertextBlob", max_length=_MAX_CIPHERTEXT_BYTES)
        _check_algorithm(call.parameters, "EncryptionAlgorithm")
        context = call.parameters.encryption_context()
        recipient = self._recipient(call)
        key = self._access.decrypting_key(call, "KeyId", blob)
        conditions = _crypto_conditions(context) | (recipient.conditions if recipient else {})
        self._access.usable(call, "kms:Decrypt", key, conditions)
        return {
            "KeyId": key.arn,
            "EncryptionAlgorithm": ALGORITHM,
            **_for_recipient(_open(key, blob, context), recipient),
        }

    def _re_encrypt(self, call: Call) -> dict[str, Any]:
        parameters = call.parameters
        blob = parameters.blob("CiphertextBlob", max_length=_MAX_CIPHERTEXT_BYTES)
        _check_algorithm(parameters, "SourceEncryptionAlgorithm", "DestinationEncryptionAlgorithm")
        source_context = parameters.encryption_context("SourceEncryptionContext")
        context = parameters.encryption_context("DestinationEncryptionContext")
        source, key = (
            self._access.decrypting_key(call, "SourceKeyId", blob),
            self._access.key(call, "DestinationKeyId"),
        )
        same_key = {"kms:ReEncryptOnSameKey": _bool(source.key_id == key.key_id)}
        # Both are authorised before the state of either is told; a dry run ends after the second.
        from_, to = _crypto_conditions(source_context) | same_key, _crypto_conditions(context) | same_key
        self._access.authorize(call, "kms:ReEncryptFrom", source, from_, "SourceKeyId")
        self._access.authorize(call, "kms:ReEncryptTo", key, to, "DestinationKeyId")
        check_enabled(source)
        check_enabled(key)
        check_dry_run(parameters)
        plaintext = _open(source, blob, source_context)
        return {
            "CiphertextBlob": _base64(seal(key.key_id, key.material, plaintext, context)),
            "SourceKeyId": source.arn,
            "KeyId": key.arn,
            "SourceEncryptionAlgorithm": ALGORITHM,
            "DestinationEncryptionAlgorithm": ALGORITHM,
        }

    def _generate_data_key(self, call: Call) -> dict[str, Any]:
        recipient = self._recipient(call)
        plaintext, answer = self._new_data_key(call, "kms:GenerateDataKey", recipient)
        return answer | _for_recipient(plaintext, recipient)

    def _generate_data_key_without_plaintext(self, call: Call) -> dict[str, Any]:
        return self._new_data_key(call, "kms:GenerateDataKeyWithoutPlaintext", None)[1]

    def _new_data_key(
        self, call: Call, action: str, recipient: Recipient | None
    ) -> tuple[bytes, dict[str, Any]]:
        size = call.parameters.integer("NumberOfBytes", 1, 1024)
        spec = call.parameters.choice("KeySpec", "AES_256", "AES_128")
        if (size is None) == (spec is None):
            raise KmsError("ValidationException", "Please specify either number of bytes or key spec.")
        context = call.parameters.encryption_context()
        conditions = _crypto_conditions(context) | (recipient.conditions if recipient else {})
        key = self._access.usable(call, action, self._access.key(call), conditions)
        plaintext = secrets.token_bytes(size or {"AES_256": 32, "AES_128": 16}[str(spec)])
        blob = seal(key.key_id, key.material, plaintext, context)
        return plaintext, {"CiphertextBlob": _base64(blob), "KeyId": key.arn}

    def _generate_random(self, call: Call) -> dict[str, Any]:
        call.parameters.refuse("CustomKeyStoreId")
        size = call.parameters.integer("NumberOfBytes", 1, 1024)
        if size is None:
            raise KmsError("ValidationException", "NumberOfBytes is required.")
        recipient = self._recipient(call)
        self._access.authorize_on_account(
            call, "kms:GenerateRandom", recipient.conditions if recipient else {}
        )
        return _for_recipient(secrets.token_bytes(size), recipient)

    def _recipient(self, call: Call) -> Recipient | None:
        given = call.parameters.structure("Recipient")
        if given is None:
            return None
        return verify_recipient(given, roots=self._roots, now=call.now, max_age=self._max_document_age)


def _default_policy() -> str:
    statement = {
        "Sid": "Enable IAM User Permissions",
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"},
        "Action": "kms:*",
        "Resource": "*",
    }
    return KeyPolicy.from_json(
        {"Version": "2012-10-17", "Id": "key-default-1", "Statement": [statement]}
    ).to_text()


def _metadata(key: Key) -> dict[str, Any]:
    deletion = {"DeletionDate": key.deletion_date.timestamp()} if key.deletion_date else {}
    return {
        "AWSAccountId": ACCOUNT,
        "KeyId": key.key_id,
        "Arn": key.arn,
        "CreationDate": key.created.timestamp(),
        "Enabled": key.state == "Enabled",
        "Description": key.description,
        "KeyUsage": "ENCRYPT_DECRYPT",
        "KeyState": key.state,
        **deletion,
        "Origin": "AWS_KMS",
        "KeyManager": "CUSTOMER",
        "CustomerMasterKeySpec": ALGORITHM,
        "KeySpec": ALGORITHM,
        "EncryptionAlgorithms": [ALGORITHM],
        "MultiRegion": False,
    }


def _page(parameters: Parameters, name: str, entries: list[dict[str, Any]], by: str) -> dict[str, Any]:
    limit = parameters.integer("Limit", 1, 1000) or 100
    marker = parameters.text("Marker", max_length=1024) or ""
    rest = [entry for entry in entries if entry[by] > marker]
    truncated = {"NextMarker": rest[limit - 1][by]} if len(rest) > limit else {}
    return {name: rest[:limit], "Truncated": bool(truncated), **truncated}


def _open(key: Key, blob: bytes, context: Mapping[str, str]) -> bytes:
    if key_id_of(blob) != key.key_id:
        raise KmsError(
            "IncorrectKeyException",
            "The key ID in the request does not identify a CMK that can perform this operation.",
        )
    return unseal(key.material, blob, context)


def _for_recipient(plaintext: bytes, recipient: Recipient | None) -> dict[str, str]:
    if recipient is None:
        return {"Plaintext": _base64(plaintext)}
    return {"CiphertextForRecipient": _base64(recipient.seal(plaintext))}


def _crypto_conditions(context: Mapping[str, str]) -> dict[str, str | Sequence[str] | None]:
    return {
        "kms:EncryptionAlgorithm": ALGORITHM,
        "kms:EncryptionContextKeys": list(context),
        **{f"kms:EncryptionContext:{key}": value for key, value in context.items()},
    }


def _alias_name(parameters: Parameters) -> str:
    name = parameters.required_text("AliasName", max_length=256, pattern=_ALIAS_NAME)
    if not name.startswith("alias/") or name == "alias/":
        raise KmsError("ValidationException", 'Alias must start with the prefix "alias/".')
    if name.startswith("alias/aws/"):
        raise KmsError("NotAuthorizedException", "Aliases that begin with alias/aws/ are reserved for AWS.")
    return name


def _check_policy_name(parameters: Parameters) -> None:
    if parameters.text("PolicyName", max_length=128) not in (None, "default"):
        raise KmsError("NotFoundException", "No such policy exists")


def _check_algorithm(parameters: Parameters, *members: str) -> None:
    for member in members:
        if parameters.text(member) not in (None, ALGORITHM):
            raise KmsError("InvalidKeyUsageException", f"{member} of a symmetric key is {ALGORITHM}")


def _bool(value: bool) -> str:
    return str(value).lower()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
