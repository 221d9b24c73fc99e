"""Decides a request the way KMS does: an explicit deny wins, then the key policy, then IAM if it is asked.

Follows "Determining access to AWS KMS keys". Within one account the steps are:

 1. A Deny in the key policy or in the caller's identity policy that applies: explicit deny.
 2. An Allow in the key policy that names the caller, its role, or everybody: allow.
 3. An Allow in the key policy that names the account (its id or root) passes the question on to IAM:
    allow if the caller's identity policy allows it.
 4. Anything else: implicit deny.

For a caller from another account step 2 needs the identity policy as well. What can't be decided (an
operator unknown here, a policy variable) makes a Deny apply and an Allow not apply.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from necli.keypolicy.conditions import Condition, ContextValues, wildcard_match
from necli.keypolicy.document import Element, KeyPolicy, Policy, Principal, Statement

_SESSION_ARN = re.compile(r"arn:([\w-]+):sts::(\d{12}):assumed-role/([^/]+)/[^/]+")


@dataclass(frozen=True)
class RequestContext:
    """Who asks for what, and the condition keys that KMS knows of the request."""

    principal_arns: tuple[str, ...]
    """Every ARN the caller goes by: its session first, then the session's role."""
    action: str
    resource: str
    account: str
    """The caller's account."""
    context: Mapping[str, str | Sequence[str] | None] = field(default_factory=dict)

    @property
    def values(self) -> ContextValues:
        """The condition keys that have a value, in lower case."""
        return {
            key.lower(): (value,) if isinstance(value, str) else tuple(value)
            for key, value in self.context.items()
            if value is not None
        }

    @property
    def account_root(self) -> str:
        return f"arn:aws:iam::{self.account}:root"


def caller_arns(arn: str) -> tuple[str, ...]:
    """Every ARN that a caller goes by. A session's ARN doesn't tell its role's path: none is assumed."""
    match = _SESSION_ARN.fullmatch(arn)
    return (arn, f"arn:{match[1]}:iam::{match[2]}:role/{match[3]}") if match else (arn,)


@dataclass(frozen=True)
class FailedCondition:
    """A condition that stands between the request and an allow, and what the request had for it."""

    statement: Statement
    condition: Condition
    actual: tuple[str, ...]


@dataclass(frozen=True)
class Decision:
    """The outcome and its reason.

    `statement` is the one that allowed or denied. `policy` tells where it stands, or, for an implicit
    deny, which policy would have had to allow. `failed_conditions` are those of the denying statement, or
    of the Allow statements that would have applied but for them.
    """

    kind: Literal["allow", "explicit_deny", "implicit_deny"]
    policy: Literal["key", "identity"]
    statement: Statement | None = None
    failed_conditions: tuple[FailedCondition, ...] = ()

    @property
    def allowed(self) -> bool:
        return self.kind == "allow"


def evaluate(
    policy: KeyPolicy | None, request: RequestContext, identity_policy: Policy | None = None
) -> Decision:
    """Decide one request.

    :param policy: the key policy; None for actions on no key (CreateKey, ListKeys), which only IAM decides.
    :param identity_policy: what IAM lets the caller do; None is nothing.
    """
    values = request.values
    in_key = [s for s in policy.statements if _names(s, request) and _covers(s, request)] if policy else []
    in_identity = [s for s in identity_policy.statements if _covers(s, request)] if identity_policy else []

    # 1
    denied = _explicit_deny("key", in_key, values) or _explicit_deny("identity", in_identity, values)
    if denied:
        return denied

    allows = [s for s in in_key if s.effect == "Allow" and _conditions_met(s, values)]
    # 2
    if request.resource.split(":")[4:5] == [request.account]:
        for statement in allows:
            if _names_directly(statement, request):
                return Decision("allow", "key", statement)
    # 3
    asks_iam = policy is None or bool(allows)
    if asks_iam:
        for statement in in_identity:
            if statement.effect == "Allow" and _conditions_met(statement, values):
                return Decision("allow", "identity", statement)
    # 4
    obstacles = [
        reason
        for statement in (in_key + in_identity if asks_iam else in_key)
        if statement.effect == "Allow"
        for reason in _reasons(statement, values, held=False)
    ]
    return Decision("implicit_deny", "identity" if asks_iam else "key", failed_conditions=tuple(obstacles))


def _explicit_deny(
    where: Literal["key", "identity"], statements: list[Statement], values: ContextValues
) -> Decision | None:
    for statement in statements:
        if statement.effect == "Deny" and _conditions_met(statement, values):
            return Decision("explicit_deny", where, statement, tuple(_reasons(statement, values, held=True)))
    return None


def _names(statement: Statement, request: RequestContext) -> bool:
    """Whether the caller is among the statement's principals, if only through its account."""
    if statement.principal is None:
        return False
    if not statement.principal.negated:
        return _names_directly(statement, request) or request.account_root in _aws_arns(statement.principal)
    # IAM spares from a NotPrincipal only who is listed with session, role and account alike.
    listed = _aws_arns(statement.principal)
    spared = "*" in listed or {*request.principal_arns, request.account_root} <= listed
    return statement.effect == "Deny" and not spared


def _names_directly(statement: Statement, request: RequestContext) -> bool:
    assert statement.principal is not None
    return not _aws_arns(statement.principal).isdisjoint({"*", *request.principal_arns})


def _aws_arns(principal: Element[Principal]) -> set[str]:
    """The AWS principals listed; an account's id means its root."""
    return {
        f"arn:aws:iam::{entry.value}:root" if entry.value.isdecimal() else entry.value
        for entry in principal.values
        if entry.kind == "AWS"
    }


def _covers(statement: Statement, request: RequestContext) -> bool:
    """Whether the statement is about this action on this resource."""
    return _lists(statement.action, request.action, ignoring_case=True) and (
        statement.resource is not None and _lists(statement.resource, request.resource)
    )


def _lists(element: Element[str], text: str, *, ignoring_case: bool = False) -> bool:
    lower = str.lower if ignoring_case else str
    return element.negated != any(wildcard_match(lower(value), lower(text)) for value in element.values)


def _conditions_met(statement: Statement, values: ContextValues) -> bool:
    undecided_counts_as = statement.effect == "Deny"
    return all(
        undecided_counts_as if met is None else met
        for met in (condition.holds(values) for condition in statement.conditions)
    )


def _reasons(statement: Statement, values: ContextValues, *, held: bool) -> Iterator[FailedCondition]:
    for condition in statement.conditions:
        if held or condition.holds(values) is not True:
            yield FailedCondition(statement, condition, tuple(values.get(condition.key.lower(), ())))
