"""Rules about a key whose policy asks for an attestation document.

They put questions to the policy as KMS would decide them, rather than look for known spellings: may anybody
decrypt without a document, with a document in which one PCR is wrong, with the zeros of debug mode?
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from necli.errors import InputError
from necli.keypolicy import Condition, KeyPolicy, Policy, RequestContext, Statement, evaluate
from necli.keypolicy.conditions import wildcard_match
from necli.template_check.finding import TemplateFinding
from necli.template_check.template import ACCOUNT, Resource, Template, mapping, mappings

_ATTESTED = re.compile(r"kms:RecipientAttestation:(?:PCR(\d+)|ImageSha384)", re.IGNORECASE)
_ZERO, _ANOTHER = "0" * 96, "e" * 96
_SOME_ROLE = f"arn:aws:iam::{ACCOUNT}:role/somebody"
_IAM_ALLOWS = Policy.from_json({"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}})
_USE = ("kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey")
_KEPT = ("Retain", "RetainExceptOnCreate")


@dataclass(frozen=True)
class EnclaveKey:
    """A key that is bound to measurements, or was meant to be."""

    resource: Resource
    policy: KeyPolicy

    @property
    def name(self) -> str:
        return self.resource.name

    @property
    def arn(self) -> str:
        return f"arn:aws:kms:eu-central-1:{ACCOUNT}:key/{self.name}"

    @cached_property
    def measurements(self) -> Mapping[int, str]:
        """For each PCR in the policy's conditions one value that they name."""
        return {
            _pcr(condition): condition.values[0]
            for statement in self.policy.statements
            for condition in statement.conditions
            if _is_attested(condition) and condition.values
        }

    @property
    def named(self) -> list[str]:
        """The roles and users that the policy allows something, each by its own name."""
        arns = {
            principal.value
            for statement in self.policy.statements
            if statement.effect == "Allow" and statement.principal
            for principal in statement.principal.values
            if principal.kind == "AWS" and re.search(":(role|user)/", principal.value)
        }
        return sorted(arns)

    def who_may(self, action: str, measurements: Mapping[int, str] | None = None) -> str | None:
        """Somebody of this account whom the policy lets do this, if IAM lets them do everything."""
        everybody = [*self.named, _SOME_ROLE]
        return next((arn for arn in everybody if self.allows(arn, action, measurements)), None)

    def allows(self, arn: str, action: str, measurements: Mapping[int, str] | None = None) -> bool:
        context: dict[str, str] = {}
        for pcr, value in (measurements or {}).items():
            context[f"kms:RecipientAttestation:PCR{pcr}"] = value
            if pcr == 0:
                context["kms:RecipientAttestation:ImageSha384"] = value
        request = RequestContext((arn,), action, self.arn, account=arn.split(":")[4], context=context)
        return evaluate(self.policy, request, _IAM_ALLOWS).allowed


def enclave_keys(template: Template) -> list[EnclaveKey]:
    keys = []
    for resource in template.of_type("AWS::KMS::Key"):
        try:
            policy = KeyPolicy.from_json(resource.properties["KeyPolicy"])
        except (InputError, KeyError):
            continue  # CloudFormation refuses it by itself
        if any(_is_attested(c) for statement in policy.statements for c in statement.conditions):
            keys.append(EnclaveKey(resource, policy))
    return keys


def key_findings(
    template: Template, keys: Sequence[EnclaveKey], stack_policy: Policy | None
) -> Iterator[TemplateFinding]:
    for key in keys:
        yield from _decrypt(key)
        yield from _reencrypt(key)
        yield from _debug_mode(key)
        yield from _comes_back(key, stack_policy)
        yield from _whole_account(key)
        yield from _administrators(key)
        yield from _not_kept(key)
        yield from _one_role(template, key)


def _decrypt(key: EnclaveKey) -> Iterator[TemplateFinding]:
    if key.who_may("kms:Decrypt"):
        yield TemplateFinding(
            "decrypt-without-attestation",
            key.name,
            "error",
            "the key decrypts for callers that show no attestation document at all",
            "deny kms:Decrypt to everybody with StringNotEqualsIgnoreCase on kms:RecipientAttestation:PCR0",
        )
        return
    for pcr in sorted(key.measurements):
        if key.who_may("kms:Decrypt", {**key.measurements, pcr: _ANOTHER}):
            yield TemplateFinding(
                "pcr-not-enforced",
                key.name,
                "error",
                f"the key decrypts for an enclave whose PCR{pcr} is another, though a condition names it",
                "write one Deny for each PCR: the conditions of one statement must all hold to deny",
            )


def _reencrypt(key: EnclaveKey) -> Iterator[TemplateFinding]:
    if key.who_may("kms:ReEncryptFrom"):
        yield TemplateFinding(
            "reencrypt-without-attestation",
            key.name,
            "error",
            "ReEncrypt moves a data key under somebody's own key without any attestation document",
            "deny kms:ReEncrypt* together with kms:Decrypt",
        )


def _debug_mode(key: EnclaveKey) -> Iterator[TemplateFinding]:
    zeros = dict.fromkeys(key.measurements, _ZERO)
    if not key.who_may("kms:Decrypt") and key.who_may("kms:Decrypt", zeros):
        yield TemplateFinding(
            "debug-mode-accepted",
            key.name,
            "error",
            "zeros are accepted as measurements: any enclave in debug mode attests those",
            "bind the measurements of the built image",
        )


def _comes_back(key: EnclaveKey, stack_policy: Policy | None) -> Iterator[TemplateFinding]:
    """Written conditions are looked at: one that is a parameter's value changes with the parameter."""
    literals = [value for value in _written_measurements(key.resource.body) if isinstance(value, str)]
    if literals and not _refuses_update(stack_policy, key.name):
        yield TemplateFinding(
            "measurement-comes-back",
            key.name,
            "warning",
            f"a stack update that touches the key puts {literals[0][:24]} back, whatever it was bound to",
            "give the stack a policy that denies Update:* on the key, as necli setup does",
        )


def _written_measurements(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _written_measurements(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if _ATTESTED.fullmatch(str(key)):
                yield from item if isinstance(item, list) else [item]
            else:
                yield from _written_measurements(item)


def _refuses_update(stack_policy: Policy | None, name: str) -> bool:
    return any(
        statement.effect == "Deny"
        and not statement.conditions
        and statement.resource is not None
        and any(wildcard_match(each, f"LogicalResourceId/{name}") for each in statement.resource.values)
        and any(wildcard_match(each, "Update:Modify") for each in statement.action.values)
        for statement in (stack_policy.statements if stack_policy else ())
    )


def _whole_account(key: EnclaveKey) -> Iterator[TemplateFinding]:
    if key.allows(_SOME_ROLE, "kms:PutKeyPolicy"):
        yield TemplateFinding(
            "account-may-change-policy",
            key.name,
            "warning",
            "whoever may do everything in this account may change the key policy, and so undo the protection",
            "name the role that administers the key instead of allowing kms:* to the account's root",
        )


def _administrators(key: EnclaveKey) -> Iterator[TemplateFinding]:
    for arn in key.named:
        uses = [action for action in _USE if key.allows(arn, action, key.measurements)]
        if uses and key.allows(arn, "kms:PutKeyPolicy") and not key.allows(_SOME_ROLE, "kms:PutKeyPolicy"):
            yield TemplateFinding(
                "administration-and-use",
                key.name,
                "warning",
                f"{arn} may change the key policy and use the key too ({', '.join(uses)})",
                "give administration and use to different roles",
            )


def _not_kept(key: EnclaveKey) -> Iterator[TemplateFinding]:
    if any(key.resource.body.get(name) not in _KEPT for name in ("DeletionPolicy", "UpdateReplacePolicy")):
        yield TemplateFinding(
            "key-not-kept",
            key.name,
            "error",
            "deleting the stack, or replacing the key, destroys everything that was encrypted under it",
            "set DeletionPolicy: RetainExceptOnCreate and UpdateReplacePolicy: Retain",
        )


def _one_role(template: Template, key: EnclaveKey) -> Iterator[TemplateFinding]:
    for role in template.of_type("AWS::IAM::Role"):
        statements = [s for policy in _policies_of(template, role) for s in policy.statements]
        may = [action for action in _USE if any(_grants(statement, action, key) for statement in statements)]
        if "kms:Decrypt" in may and len(may) > 1:
            yield TemplateFinding(
                "one-role-does-all",
                role.name,
                "warning",
                f"one role both encrypts and decrypts with {key.name}: {', '.join(may)}",
                "let the data owner's role encrypt, and a role of the enclave's own decrypt",
            )


def _policies_of(template: Template, role: Resource) -> Iterator[Policy]:
    inline = [policy.get("PolicyDocument") for policy in mappings(role.properties.get("Policies"))]
    attached = [
        policy.properties.get("PolicyDocument")
        for policy in template.of_type("AWS::IAM::Policy", "AWS::IAM::RolePolicy", "AWS::IAM::ManagedPolicy")
        if role.name in (policy.properties.get("Roles") or [policy.properties.get("RoleName")])
    ]
    for document in inline + attached:
        try:
            yield Policy.from_json(mapping(document))
        except InputError:
            continue  # CloudFormation refuses it by itself


def _grants(statement: Statement, action: str, key: EnclaveKey) -> bool:
    return (
        statement.effect == "Allow"
        and statement.resource is not None
        and any(wildcard_match(each, key.arn) for each in statement.resource.values)
        and any(wildcard_match(each.lower(), action.lower()) for each in statement.action.values)
    )


def _is_attested(condition: Condition) -> bool:
    return _ATTESTED.fullmatch(condition.key) is not None


def _pcr(condition: Condition) -> int:
    match = _ATTESTED.fullmatch(condition.key)
    assert match is not None
    return int(match[1] or 0)
