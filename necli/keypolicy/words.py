"""A key policy in words: what each statement says, and who can do what in the end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from necli.keypolicy.conditions import Condition
from necli.keypolicy.document import KeyPolicy, Principal, Statement
from necli.keypolicy.measurement_set import is_hash, is_zero, register_of
from necli.keypolicy.simulation import OUTSIDER, Simulation, account_of, is_account, somebody

_ENCRYPTION_CONTEXT = "kms:EncryptionContext:"
_FEW = 5
_VERBS = {
    "StringEquals": "is",
    "StringEqualsIgnoreCase": "is",
    "StringLike": "is like",
    "ArnEquals": "is",
    "ArnLike": "is like",
    "Bool": "is",
    "BinaryEquals": "is",
    "IpAddress": "is in",
    "NumericEquals": "is",
    "NumericLessThan": "is below",
    "NumericLessThanEquals": "is at most",
    "NumericGreaterThan": "is above",
    "NumericGreaterThanEquals": "is at least",
    "DateLessThan": "is before",
    "DateLessThanEquals": "is not after",
    "DateGreaterThan": "is after",
    "DateGreaterThanEquals": "is not before",
}
_QUESTIONS = (
    ("kms:Decrypt", "decrypt without attestation"),
    ("kms:ReEncryptFrom", "re-encrypt to another key"),
    ("kms:Encrypt", "encrypt"),
    ("kms:GenerateDataKey", "make data keys"),
    ("kms:PutKeyPolicy", "change this policy"),
    ("kms:CreateGrant", "create grants"),
    ("kms:ScheduleKeyDeletion", "delete the key"),
)


def who_can_do_what(policy: KeyPolicy, key_arn: str | None = None) -> Iterator[tuple[str, str]]:
    """Each thing that matters and who may do it, as KMS would decide it; IAM is taken to allow."""
    simulation = Simulation.of(policy, key_arn)
    for accepted in simulation.accepted:
        if not all(map(is_hash, accepted.values())):
            continue  # a placeholder: no enclave attests it
        who = callers_in_words(simulation.who_may("kms:Decrypt", accepted))
        yield f"decrypt, attesting {_registers(accepted)}", who
    for action, doing in _QUESTIONS:
        yield doing, callers_in_words(simulation.who_may(action))


def statement_in_words(statement: Statement) -> str:
    """One sentence: `Deny everybody: Decrypt, unless PCR0 is 0123456789abcdef…`."""
    named = [name.removeprefix("kms:") for name in statement.action.values]
    actions = "everything" if named == ["*"] else _list(named, few=_FEW)
    if statement.action.negated:
        actions = f"everything but {actions}"
    sentence = f"{statement.effect} {_principals(statement)}: {actions}"
    return sentence + _conditions(statement)


def callers_in_words(callers: Sequence[str]) -> str:
    """Those of a simulation, by their own names."""
    if OUTSIDER in callers:
        return "anybody, in other accounts too"
    return ", ".join(map(caller_in_words, callers)) or "nobody"


def caller_in_words(arn: str) -> str:
    """The role's or user's own name, which is what people know it by."""
    if arn == somebody(account_of(arn)):
        return f"anybody whom IAM of account {account_of(arn)} lets"
    return re.split(r"(?:role|user)/", arn)[-1]


def key_in_words(condition_key: str) -> str:
    register = register_of(condition_key)
    if register:
        return register
    if condition_key.lower().startswith(_ENCRYPTION_CONTEXT.lower()):
        return f"{condition_key[len(_ENCRYPTION_CONTEXT) :]} in the encryption context"
    return condition_key


def value_in_words(value: str) -> str:
    """A hash by its beginning, and the one that means debug mode by name."""
    if is_zero(value):
        return "000000… (zeros: debug mode)"
    return f"{value[:16]}…" if is_hash(value) else value


def values_in_words(values: Sequence[str]) -> str:
    return " or ".join(map(value_in_words, values)) if values else "absent"


def _registers(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value_in_words(value)}" for name, value in values.items())


def _principals(statement: Statement) -> str:
    if statement.principal is None:
        return "nobody"
    who = _list([_principal(each) for each in statement.principal.values], few=_FEW)
    return f"everybody but {who}" if statement.principal.negated else who


def _principal(principal: Principal) -> str:
    if principal.value == "*":
        return "everybody"
    if is_account(principal):
        return caller_in_words(somebody(account_of(principal.value)))
    return caller_in_words(principal.value)


def _conditions(statement: Statement) -> str:
    if not statement.conditions:
        return ""
    negated = [_negation(condition) for condition in statement.conditions]
    # One negated condition of a Deny reads best turned round; several are ANDed, and wouldn't.
    if statement.effect == "Deny" and len(negated) == 1 and (positive := negated[0]):
        return f", unless {_condition(positive)}"
    return ", if " + " and ".join(map(_condition, statement.conditions))


def _negation(condition: Condition) -> Condition | None:
    if "Not" not in condition.operator or ":" in condition.operator:
        return None
    return Condition(condition.operator.replace("Not", ""), condition.key, condition.values)


def _condition(condition: Condition) -> str:
    key, values = key_in_words(condition.key), values_in_words(condition.values)
    if condition.operator == "Null":
        return f"{key} is {'absent' if condition.values == ('true',) else 'present'}"
    quantifier, _, name = condition.operator.rpartition(":")
    optional = name.endswith("IfExists")
    plain = name.removesuffix("IfExists")
    verb = _VERBS.get(plain.replace("Not", ""))
    if verb is None:
        return f"{condition.operator} holds for {key} and {values}"
    if "Not" in plain:
        verb = verb.replace("is", "is not", 1)
    each = {"ForAllValues": "every value of ", "ForAnyValue": "some value of "}.get(quantifier, "")
    return f"{each}{key} {verb} {values}{' or absent' if optional else ''}"


def _list(names: Sequence[str], *, few: int) -> str:
    more = len(names) - few
    return ", ".join(names[:few]) + (f" and {more} more" if more > 0 else "")
