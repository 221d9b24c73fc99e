"""Which key a request means, and whether its caller may do that: the key policy and IAM decide.

Every operation is authorised before anything about the key's state is told, as in AWS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from necli.keypolicy import Decision, KeyPolicy, RequestContext, evaluate
from necli.local.identities import ACCOUNT, Identity
from necli.local.kms_ciphertext import key_id_of
from necli.local.kms_protocol import KmsError, Parameters
from necli.local.kms_store import Alias, Key, KeyStore, alias_arn

ALGORITHM = "SYMMETRIC_DEFAULT"
_KEY_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ARN = re.compile(r"arn:aws:kms:([a-z0-9-]+):(\d{12}):(?:key/(.+)|(alias/.+))")

ContextValues = Mapping[str, str | Sequence[str] | None]


@dataclass(frozen=True)
class Call:
    """One authenticated request."""

    operation: str
    caller: Identity
    parameters: Parameters
    now: datetime
    source_ip: str
    user_agent: str


class KeyAccess:
    """Finds the keys of one store for its callers."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store

    def key(self, call: Call, member: str = "KeyId", *, alias_allowed: bool = True) -> Key:
        reference = call.parameters.required_text(member)
        name = reference
        if arn := _ARN.fullmatch(reference):
            if arn[1] != self._store.region:
                raise KmsError("NotFoundException", f"Invalid arn {arn[1]}")
            if arn[2] != ACCOUNT:
                raise _inaccessible()
            name = arn[3] or arn[4]
        if name.startswith("alias/") and alias_allowed:
            name = self.alias(name).key_id
        if not _KEY_ID.fullmatch(name):
            raise KmsError("NotFoundException", f"Invalid keyId '{reference}'")
        key = self._store.key(name)
        if key is None:
            arn_of_it = f"arn:aws:kms:{self._store.region}:{ACCOUNT}:key/{name}"
            raise KmsError("NotFoundException", f"Key '{arn_of_it}' does not exist")
        return key

    def alias(self, name: str) -> Alias:
        alias = self._store.alias(name)
        if alias is None:
            raise KmsError("NotFoundException", f"Alias {alias_arn(self._store.region, name)} is not found.")
        return alias

    def decrypting_key(self, call: Call, member: str, blob: bytes) -> Key:
        """The key that the request names, or else the one that the blob names."""
        if call.parameters.text(member):
            return self.key(call, member)
        key = self._store.key(key_id_of(blob))
        if key is None:
            raise _inaccessible()
        return key

    def changeable(self, call: Call, action: str, conditions: ContextValues | None = None) -> Key:
        """The key whose state is to be changed: authorised, and not on its way out."""
        key = self.key(call, alias_allowed=False)
        self.authorize(call, action, key, conditions)
        check_not_pending(key)
        return key

    def usable(self, call: Call, action: str, key: Key, conditions: ContextValues) -> Key:
        """The same key, if the caller may use it and its state allows it; a dry run ends here."""
        self.authorize(call, action, key, conditions)
        check_enabled(key)
        check_dry_run(call.parameters)
        return key

    def authorize(
        self,
        call: Call,
        action: str,
        key: Key,
        conditions: ContextValues | None = None,
        member: str = "KeyId",
    ) -> None:
        request = self.request(call, action, key, conditions, member)
        _check(evaluate(_parsed(key.policy), request, call.caller.policy), request)

    def authorize_on_account(
        self, call: Call, action: str, conditions: ContextValues | None = None, resource: str = "*"
    ) -> None:
        request = self._request(call, action, resource, conditions)
        _check(evaluate(None, request, call.caller.policy), request)

    def authorize_alias(self, call: Call, action: str, name: str, *keys: Key) -> None:
        """An alias is IAM's to decide; each key that it points to, its key policy's too."""
        self.authorize_on_account(call, action, resource=alias_arn(self._store.region, name))
        for key in keys:
            self.authorize(call, action, key, member="TargetKeyId")

    def request(
        self,
        call: Call,
        action: str,
        key: Key,
        conditions: ContextValues | None = None,
        member: str = "KeyId",
    ) -> RequestContext:
        """The question to the policies: may this caller do that with this key."""
        context = {**self._key_conditions(call, key, member), **(conditions or {})}
        return self._request(call, action, key.arn, context)

    def _request(
        self, call: Call, action: str, resource: str, conditions: ContextValues | None
    ) -> RequestContext:
        common: ContextValues = {
            "aws:CurrentTime": f"{call.now:%Y-%m-%dT%H:%M:%SZ}",
            "aws:EpochTime": str(int(call.now.timestamp())),
            "aws:PrincipalAccount": ACCOUNT,
            "aws:PrincipalArn": call.caller.role_arn,
            "aws:PrincipalIsAWSService": "false",
            "aws:PrincipalType": "AssumedRole",
            "aws:RequestedRegion": self._store.region,
            "aws:SecureTransport": "true",
            "aws:SourceIp": call.source_ip,
            "aws:UserAgent": call.user_agent,
            "aws:ViaAWSService": "false",
            "kms:CallerAccount": ACCOUNT,
        }
        arns = (call.caller.session_arn, call.caller.role_arn)
        return RequestContext(arns, action, resource, ACCOUNT, {**common, **(conditions or {})})

    def _key_conditions(self, call: Call, key: Key, member: str) -> ContextValues:
        reference = call.parameters.text(member) or ""
        _, found, name = reference.rpartition("alias/")
        return {
            "kms:CustomerMasterKeySpec": ALGORITHM,
            "kms:CustomerMasterKeyUsage": "ENCRYPT_DECRYPT",
            "kms:KeyOrigin": "AWS_KMS",
            "kms:KeySpec": ALGORITHM,
            "kms:KeyUsage": "ENCRYPT_DECRYPT",
            "kms:MultiRegion": "false",
            "kms:RequestAlias": found + name if found else None,
            "kms:ResourceAliases": [alias.name for alias in self._store.aliases(key.key_id)],
        }


def _check(decision: Decision, request: RequestContext) -> None:
    if decision.allowed:
        return
    kind = "identity-based" if decision.policy == "identity" else "resource-based"
    if decision.kind == "explicit_deny":
        why = f"with an explicit deny in a {kind} policy"
    else:
        why = f"because no {kind} policy allows the {request.action} action"
    raise KmsError(
        "AccessDeniedException",
        f"User: {request.principal_arns[0]} is not authorized to perform: {request.action} "
        f"on resource: {request.resource} {why}",
        detail=_explanation(decision),
    )


def _explanation(decision: Decision) -> str:
    """Which statement, and what it missed; the values themselves stay out of the log."""
    missed = "; ".join(
        f"{reason.statement.name}: {reason.condition.key} is {'another' if reason.actual else 'absent'}"
        for reason in decision.failed_conditions
    )
    return missed or (decision.statement.name if decision.statement else "no statement applies")


@lru_cache(maxsize=64)
def _parsed(policy: str) -> KeyPolicy:
    return KeyPolicy.from_json(policy)


def check_enabled(key: Key) -> None:
    check_not_pending(key)
    if key.state != "Enabled":
        raise KmsError("DisabledException", f"{key.arn} is disabled.")


def check_not_pending(key: Key) -> None:
    if key.state == "PendingDeletion":
        raise KmsError("KMSInvalidStateException", f"{key.arn} is pending deletion.")


def check_dry_run(parameters: Parameters) -> None:
    if parameters.flag("DryRun"):
        raise KmsError(
            "DryRunOperationException", "The request would have succeeded, but the DryRun option is set."
        )


def _inaccessible() -> KmsError:
    return KmsError(
        "AccessDeniedException",
        "The ciphertext refers to a customer master key that does not exist, does not exist in this region, "
        "or you are not allowed to access.",
    )
