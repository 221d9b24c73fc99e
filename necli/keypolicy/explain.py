"""Why a key policy decides as it does: the statement, the condition, what it wants and what it got.

Where a request is denied, the first statement that decides is the Deny that applies; or, where none does,
the Allow that comes closest: the one with the fewest conditions in its way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from necli.keypolicy.document import KeyPolicy, Policy, Statement
from necli.keypolicy.evaluate import Decision, FailedCondition, RequestContext, evaluate
from necli.keypolicy.measurement_set import WHOLE_IMAGE, is_zero, register_of
from necli.keypolicy.plan import is_ours
from necli.keypolicy.words import caller_in_words, key_in_words, statement_in_words, values_in_words

_ENCRYPTION_CONTEXT = "kms:EncryptionContext:"


@dataclass(frozen=True)
class Explanation:
    request: RequestContext
    decision: Decision
    statement: Statement | None
    """The one that decides; None where no statement is about this request."""
    failed: tuple[FailedCondition, ...]
    """Its conditions that stand in the way."""
    fix: str | None
    """What mends it: one command, in a sentence. None where the request is allowed."""

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(_sentences(self))

    def to_json(self) -> dict[str, Any]:
        return {
            "allowed": self.decision.allowed,
            "decision": self.decision.kind,
            "policy": self.decision.policy,
            "caller": self.request.principal_arns[0],
            "action": self.request.action,
            "sid": self.statement.sid if self.statement else None,
            "conditions": [
                {
                    "operator": each.condition.operator,
                    "key": each.condition.key,
                    "expected": list(each.condition.values),
                    "actual": list(each.actual),
                }
                for each in self.failed
            ],
            "explanation": list(self.sentences),
            "fix": self.fix,
        }


def explain(
    policy: KeyPolicy,
    request: RequestContext,
    *,
    identity_policy: Policy | None = None,
    planned: KeyPolicy | None = None,
) -> Explanation:
    """Decide a request as KMS does, and say why.

    :param planned: the policy as `necli policy update` would leave it: whether that helps is tried out.
    """
    decision = evaluate(policy, request, identity_policy)
    statement, failed = _deciding(decision)
    fix = None
    if not decision.allowed:
        helps = planned is not None and evaluate(planned, request, identity_policy).allowed
        fix = "run necli policy update" if helps else _fix(decision, statement, failed, request)
    return Explanation(request, decision, statement, failed, fix)


def attested_in(request: RequestContext) -> dict[str, str]:
    """What the registers hold that a request attests; nothing where it shows no document."""
    return {
        register: values[0]
        for key, values in request.values.items()
        if (register := register_of(key)) and values
    }


def _deciding(decision: Decision) -> tuple[Statement | None, tuple[FailedCondition, ...]]:
    if decision.kind != "implicit_deny":
        return decision.statement, decision.failed_conditions
    tried = [
        list(each) for _, each in groupby(decision.failed_conditions, key=lambda each: id(each.statement))
    ]
    closest = min(tried, key=len, default=[])
    return (closest[0].statement if closest else None), tuple(closest)


def _fix(
    decision: Decision,
    statement: Statement | None,
    failed: tuple[FailedCondition, ...],
    request: RequestContext,
) -> str:
    registers = [register for each in failed if (register := register_of(each.condition.key))]
    if registers:
        return _fix_attestation(registers, statement, request)
    for each in failed:
        if each.condition.key.lower().startswith(_ENCRYPTION_CONTEXT.lower()) and each.condition.values:
            name = each.condition.key[len(_ENCRYPTION_CONTEXT) :]
            return f"encrypt it again: necli encrypt IMAGE --context {name}={each.condition.values[0]}"
    if decision.policy == "identity" and decision.kind == "implicit_deny":
        role = request.principal_arns[-1]
        return f"let IAM allow {request.action} to {role}: aws iam put-role-policy"
    return _by_hand(statement, request)


def _fix_attestation(registers: list[str], statement: Statement | None, request: RequestContext) -> str:
    attested = attested_in(request)
    if not attested:
        return "ask through the enclave, which shows an attestation document: necli detect"
    if any(is_zero(attested.get(name, "")) for name in WHOLE_IMAGE):
        return "the enclave runs in debug mode: necli enclave stop, then necli up"
    if registers == ["PCR3"]:
        return (
            "run the enclave on an instance with the role that PCR3 is bound to, or bind the key to this role"
        )
    if statement and is_ours(statement):
        return "run necli policy update for the built image, or necli up if the enclave runs another"
    return _by_hand(statement, request)


def _by_hand(statement: Statement | None, request: RequestContext) -> str:
    change = f"change {statement.name}" if statement else f"allow {request.action} to the caller"
    return (
        f"{change} in the output of necli policy show --json, then: aws kms put-key-policy --key-id "
        f"{request.resource} --policy-name default --policy file://policy.json"
    )


def _sentences(explanation: Explanation) -> Iterator[str]:
    request, decision, statement = explanation.request, explanation.decision, explanation.statement
    asked = f"{request.action} by {caller_in_words(request.principal_arns[-1])}"
    where = "the key policy" if decision.policy == "key" else "IAM"
    if decision.allowed:
        assert statement is not None
        yield f"{asked} is allowed by {where}: {statement.name}"
        return
    if decision.kind == "explicit_deny":
        assert statement is not None
        yield f"{asked} is denied by {where}: the first statement that decides is {statement.name}"
    elif statement is None:
        yield f"{asked} is denied: no statement of {where} allows it"
        return
    else:
        yield f"{asked} is denied: no statement allows it, and {statement.name} comes closest"
    yield f"it says: {statement_in_words(statement)}"
    for failed in explanation.failed:
        yield (
            f"{key_in_words(failed.condition.key)}: expected {_expected(failed)}, "
            f"actual {values_in_words(failed.actual)}"
        )


def _expected(failed: FailedCondition) -> str:
    """What would let the request pass: a Deny has to miss its condition, an Allow to meet it."""
    condition = failed.condition
    if condition.operator == "Null":
        must_be_absent = (condition.values == ("true",)) == (failed.statement.effect == "Allow")
        return "absent" if must_be_absent else "present"
    inverted = ("Not" in condition.operator) == (failed.statement.effect == "Allow")
    return ("anything but " if inverted else "") + values_in_words(condition.values)
