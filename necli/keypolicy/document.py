"""A key policy as a value: parsed once, written back with everything it held and in the same order."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from necli.errors import InputError
from necli.keypolicy.conditions import Condition

JsonObject = Mapping[str, Any]
T = TypeVar("T")

_AWS_PRINCIPAL = re.compile(
    r"\*|\d{12}|arn:aws[a-z-]*:iam::\d{12}:(root|(role|user)/[\w+=,.@/-]+)"
    r"|arn:aws[a-z-]*:sts::\d{12}:(assumed-role|federated-user)/[\w+=,.@/-]+"
)
_ACTION = re.compile(r"\*|[A-Za-z0-9-]+:[A-Za-z0-9*?]+")
_KMS_CONDITION_KEY = re.compile(
    r"kms:(BypassPolicyLockoutSafetyCheck|CallerAccount|CustomerMasterKeySpec|CustomerMasterKeyUsage"
    r"|DataKeyPairSpec|EncryptionAlgorithm|EncryptionContext:.+|EncryptionContextKeys|ExpirationModel"
    r"|GrantConstraintType|GrantIsForAWSResource|GrantOperations|GranteePrincipal|KeyAgreementAlgorithm"
    r"|KeyOrigin|KeySpec|KeyUsage|MacAlgorithm|MessageType|MultiRegion|MultiRegionKeyType|PrimaryRegion"
    r"|ReEncryptOnSameKey|RecipientAttestation:(ImageSha384|(NitroTPM)?PCR([0-9]|[12][0-9]|3[01]))"
    r"|ReplicaRegion|RequestAlias|ResourceAliases|RetiringPrincipal|RotationPeriodInDays"
    r"|ScheduleKeyDeletionPendingWindowInDays|SigningAlgorithm|ValidTo|ViaService|WrappingAlgorithm"
    r"|WrappingKeySpec)",
    re.IGNORECASE,
)
_CONDITION_KEY = re.compile(
    r"kms:(BypassPolicyLockoutSafetyCheck|CallerAccount|CustomerMasterKeySpec|CustomerMasterKeyUsage"
    r"|DataKeyPairSpec|EncryptionAlgorithm|EncryptionContext:.+|EncryptionContextKeys|ExpirationModel"
    r"|GrantConstraintType|GrantIsForAWSResource|GrantOperations|GranteePrincipal|KeyAgreementAlgorithm"
    r"|KeyOrigin|KeySpec|KeyUsage|MacAlgorithm|MessageType|MultiRegion|MultiRegionKeyType|PrimaryRegion"
    r"|ReEncryptOnSameKey|RecipientAttestation:(ImageSha384|(NitroTPM)?PCR([0-9]|[12][0-9]|3[01]))"
    r"|ReplicaRegion|RequestAlias|ResourceAliases|RetiringPrincipal|RotationPeriodInDays"
    r"|ScheduleKeyDeletionPendingWindowInDays|SigningAlgorithm|ValidTo|ViaService|WrappingAlgorithm"
    r"|WrappingKeySpec)",
    re.IGNORECASE,
)
_CONDITION_KEY = re.compile(r"[A-Za-z0-9-]+:.+", re.DOTALL)


def is_known_key(condition_key: str) -> bool:
    """Whether KMS knows it; keys of other services can't be told from wrong ones."""
    known = _KMS_CONDITION_KEY if condition_key.lower().startswith("kms:") else _CONDITION_KEY
    return known.fullmatch(condition_key) is not None


class MalformedPolicy(InputError):
    """The text isn't a policy document."""


@dataclass(frozen=True)
class Principal:
    """One entry of a Principal element: its kind (AWS, Service, …) and value; the value `*` is everybody."""

    kind: str
    value: str

    @property
    def valid(self) -> bool:
        if self.kind == "AWS":
            return _AWS_PRINCIPAL.fullmatch(self.value) is not None
        return self.kind in ("Service", "Federated", "CanonicalUser") and bool(self.value)


@dataclass(frozen=True)
class Element(Generic[T]):
    """The values of an element, or of its Not… form."""

    values: tuple[T, ...]
    negated: bool = False


@dataclass(frozen=True)
class Statement:
    """One statement, with the JSON object that it was made from."""

    body: JsonObject
    sid: str | None
    effect: str
    principal: Element[Principal] | None
    action: Element[str]
    resource: Element[str] | None
    conditions: tuple[Condition, ...]

    @classmethod
    def from_json(cls, body: Any) -> Self:
        if not isinstance(body, dict):
            raise MalformedPolicy("a statement isn't a JSON object")
        sid, effect = body.get("Sid"), body.get("Effect")
        if effect not in ("Allow", "Deny"):
            raise MalformedPolicy("a statement's Effect is neither Allow nor Deny")
        if sid is not None and not isinstance(sid, str):
            raise MalformedPolicy("a statement's Sid isn't a string")
        action = _element(body, "Action", _strings)
        if action is None:
            raise MalformedPolicy("a statement has no Action")
        return cls(
            body,
            sid,
            effect,
            _element(body, "Principal", _principals),
            action,
            _element(body, "Resource", _strings),
            tuple(_conditions(body.get("Condition", {}))),
        )

    @property
    def name(self) -> str:
        return self.sid or f"the {self.effect} statement without a Sid"

    def problems(self) -> Iterator[str]:
        """What PutKeyPolicy would refuse in this statement, or what can't be evaluated here."""
        yield from self.malformed()
        for condition in self.conditions:
            if not is_known_key(condition.key):
                yield f"{self.name}: the condition key {condition.key} does not exist"

    def malformed(self) -> Iterator[str]:
        """The same without condition keys that don't exist."""
        unknown = set(self.body) - {"Sid", "Effect", "Condition"}
        unknown -= {not_ + name for name in ("Principal", "Action", "Resource") for not_ in ("", "Not")}
        if unknown:
            yield f"{self.name} has unknown elements: {', '.join(sorted(unknown))}"
        if self.principal is None or not self.principal.values:
            yield "Policy contains a statement with no principal."
        elif not all(principal.valid for principal in self.principal.values):
            yield "Policy contains a statement with one or more invalid principals."
        elif self.principal.negated and self.effect == "Allow":
            yield f"{self.name} allows with NotPrincipal, which IAM doesn't support"
        if not self.action.values or not all(map(_ACTION.fullmatch, self.action.values)):
            yield "Policy contains a statement with one or more invalid actions."
        if self.resource is None or not self.resource.values:
            yield "Policy contains a statement with no resource."
        elif any("${" in value for value in self.resource.values):
            yield f"{self.name}: policy variables in Resource are not supported here"
        for condition in self.conditions:
            if not condition.known:
                yield f"{self.name}: the condition {condition.operator} on {condition.key} is not supported"


@dataclass(frozen=True)
class Policy:
    """A policy document. Its statements are parsed; what it was parsed from is kept as it was."""

    document: JsonObject
    statements: tuple[Statement, ...]

    @classmethod
    def from_json(cls, value: str | JsonObject) -> Self:
        """Parse a policy from its text or from parsed JSON.

        :raises MalformedPolicy: not JSON, a key twice in one object, or not shaped like a policy.
        """
        document = _parse(value) if isinstance(value, str) else value
        if not isinstance(document, Mapping) or "Statement" not in document:
            raise MalformedPolicy("the policy is not a JSON object with a Statement")
        bodies = document["Statement"]
        bodies = bodies if isinstance(bodies, list) else [bodies]
        return cls(document, tuple(map(Statement.from_json, bodies)))

    def to_json(self) -> JsonObject:
        return self.document

    def to_text(self) -> str:
        return json.dumps(self.document, indent=2, ensure_ascii=False)


class KeyPolicy(Policy):
    """The resource policy of a KMS key."""

    def problems(self) -> Iterator[str]:
        """What PutKeyPolicy would refuse in this policy; the lock-out check comes on top."""
        if self.document.get("Version", "2008-10-17") not in ("2012-10-17", "2008-10-17"):
            yield "the policy's Version is neither 2012-10-17 nor 2008-10-17"
        unknown = set(self.document) - {"Version", "Id", "Statement"}
        if unknown:
            yield f"the policy has unknown elements: {', '.join(sorted(unknown))}"
        if not self.statements:
            yield "the policy has no statement"
        for statement in self.statements:
            yield from statement.problems()


def _parse(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise MalformedPolicy(f"the policy is not valid JSON: {exc}") from exc


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # json keeps the last of two equal keys: half of a condition could vanish without a word.
    value = dict(pairs)
    if len(value) != len(pairs):
        raise MalformedPolicy("the policy has the same key twice in one object")
    return value


def _refuse_constant(name: str) -> None:
    raise MalformedPolicy(f"the policy is not valid JSON: {name}")


def _element(body: JsonObject, name: str, values: Callable[[str, Any], tuple[T, ...]]) -> Element[T] | None:
    present = [key for key in (name, f"Not{name}") if key in body]
    if len(present) > 1:
        raise MalformedPolicy(f"a statement has both {name} and Not{name}")
    return Element(values(name, body[present[0]]), present[0] != name) if present else None


def _strings(name: str, value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in values):
        raise MalformedPolicy(f"a statement's {name} isn't a string or a list of strings")
    return tuple(values)


def _principals(name: str, value: Any) -> tuple[Principal, ...]:
    if value == "*":
        return (Principal("AWS", "*"),)
    if not isinstance(value, dict):
        raise MalformedPolicy("a statement's Principal is neither * nor a JSON object")
    return tuple(
        Principal(kind, entry) for kind, entries in value.items() for entry in _strings(name, entries)
    )


def _conditions(block: Any) -> Iterator[Condition]:
    if not isinstance(block, dict) or not all(isinstance(tests, dict) for tests in block.values()):
        raise MalformedPolicy("a statement's Condition isn't a JSON object of JSON objects")
    for operator, tests in block.items():
        for key, value in tests.items():
            values = value if isinstance(value, list) else [value]
            yield Condition(operator, key, tuple(_scalar(key, item) for item in values))


def _scalar(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise MalformedPolicy(f"the condition on {key} has a value that is neither string, number nor boolean")
