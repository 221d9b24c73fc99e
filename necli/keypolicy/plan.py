"""Binds a key policy to measurements: what changes, and nothing else does.

What is ours to write, and is replaced where it stands:

- the statements with our Sids: for each measurement set one Allow for the parent's role with every register
  in it, so that PCR0 of one image doesn't go with PCR1 of another; and for each register one Deny. Several
  registers in one Deny would be ANDed: it would spare an image that differs in only one of them.
- the placeholder of the AWS sample, `EXAMPLETOBEUPDATED`, where a measurement belongs, and later on what we
  put there: a Deny on exactly the measurements that were bound before, or it would shut the new image out.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any, TypeVar

from necli.errors import AccessDenied, MeasurementMismatch, UsageError
from necli.keypolicy.document import KeyPolicy, Policy, Statement
from necli.keypolicy.evaluate import RequestContext, caller_arns, evaluate
from necli.keypolicy.measurement_set import (
    ATTESTED,
    IMAGE,
    WHOLE_IMAGE,
    MeasurementSet,
    asked_for,
    is_zero,
    register_of,
    sets_of,
)
from necli.measurements import Measurements
from necli.resources import resource_folder

T = TypeVar("T")

ALLOW_SID = "EnclaveDecrypt"
_DENY_SID = "DenyDecryptUnless"
_OUR_ALLOW = re.compile(rf"{ALLOW_SID}\d*")
_OUR_SID = re.compile(rf"{_OUR_ALLOW.pattern}|{_DENY_SID}(PCR\d+|{IMAGE})")
_SAMPLE_PLACEHOLDER = "EXAMPLETOBEUPDATED"
_OUR_PLACEHOLDER = "necli-no-measurement-yet"
_SAME_VALUE = {"PCR0": IMAGE, IMAGE: "PCR0"}
_ANY_IDENTITY_POLICY = Policy.from_json(
    {"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}},
)

Accepted = Measurements | MeasurementSet
Bound = Mapping[str, Sequence[str]]
"""For each register the values that are accepted, in lower-case hex as KMS compares them."""


@dataclass(frozen=True)
class PolicyChange:
    before: KeyPolicy
    after: KeyPolicy

    @property
    def unchanged(self) -> bool:
        return self.before.to_json() == self.after.to_json()

    @property
    def diff(self) -> tuple[str, ...]:
        """The lines of a unified diff of the two documents; empty where nothing changes."""
        before, after = self.before.to_text().splitlines(), self.after.to_text().splitlines()
        return tuple(difflib.unified_diff(before, after, "key policy", "planned key policy", lineterm=""))


def initial_policy(*, admin_arn: str, parent_arn: str, owner_arn: str, account: str) -> KeyPolicy:
    """The policy of a new key: it is bound to no measurement yet, so nobody can decrypt."""
    names = {
        "account_root": f"arn:aws:iam::{account}:root",
        "administrator_arn": admin_arn,
        "parent_arn": parent_arn,
        "owner_arn": owner_arn,
    }
    template = (resource_folder("templates") / "key-policy.json").read_text(encoding="utf-8")
    return KeyPolicy.from_json(_fill_in(json.loads(template), names))


def plan_measurements(
    policy: KeyPolicy, measurements: Accepted | Sequence[Accepted], *, parent_arn: str
) -> PolicyChange:
    """Plan that only enclaves with these measurements can decrypt; several are accepted side by side.

    :raises MeasurementMismatch: measurements of a debug-mode enclave: everybody can attest zeros.
    """
    sets = _measurement_sets(
        [measurements] if isinstance(measurements, Measurements | MeasurementSet) else measurements
    )
    bound = _bound(sets)
    ours = {statement["Sid"]: statement for statement in _our_statements(sets, bound, parent_arn)}
    formerly = _formerly_bound(policy)
    statements: list[Any] = []
    for statement in policy.statements:
        if is_ours(statement):
            # None where it stands a second time, or is about a PCR that isn't bound any more.
            planned = ours.pop(statement.sid, None)
            if planned:
                statements.append(statement.body if same(statement.body, planned) else planned)
        else:
            statements.append(_rebound(statement, bound, formerly))
    statements += ours.values()
    return PolicyChange(policy, KeyPolicy.from_json({**policy.to_json(), "Statement": statements}))


def check_lock_out(policy: KeyPolicy, caller_arn: str, *, key_arn: str) -> None:
    """Make sure that the caller could still change this policy once it is in force, as KMS does.

    Where the policy leaves that to IAM, IAM is taken to allow it.

    :raises AccessDenied: the caller couldn't.
    """
    arns = caller_arns(caller_arn)
    request = RequestContext(arns, "kms:PutKeyPolicy", key_arn, account=caller_arn.split(":")[4])
    if not evaluate(policy, request, _ANY_IDENTITY_POLICY).allowed:
        raise AccessDenied(
            f"the new key policy would not let {caller_arn} update the key policy in the future",
            hint="keep a statement that allows your role kms:PutKeyPolicy on this key",
            code="MalformedPolicyDocumentException",
        )


def is_ours(statement: Statement) -> bool:
    """Whether `plan_measurements` writes this statement, whatever stands in it now."""
    return statement.sid is not None and _OUR_SID.fullmatch(statement.sid) is not None


def is_placeholder(value: str) -> bool:
    """Whether it stands where a measurement belongs, and matches none."""
    return value.lower() in (_SAMPLE_PLACEHOLDER.lower(), _OUR_PLACEHOLDER)


def live_sets(policy: KeyPolicy) -> list[MeasurementSet]:
    """The measurement sets that our own Allow statements accept; none where only placeholders stand there."""
    return [
        accepted
        for statement in policy.statements
        if statement.effect == "Allow" and statement.sid and _OUR_ALLOW.fullmatch(statement.sid)
        for accepted in sets_of(statement)
    ]


def parent_in(policy: KeyPolicy) -> str | None:
    """The one whom our own Allow statement lets decrypt."""
    for statement in policy.statements:
        if statement.sid == ALLOW_SID and statement.principal:
            return next((each.value for each in statement.principal.values if each.kind == "AWS"), None)
    return None


def _measurement_sets(accepted: Sequence[Accepted]) -> list[MeasurementSet]:
    sets: list[MeasurementSet] = []
    for each in accepted:
        one = MeasurementSet.of(each) if isinstance(each, Measurements) else each
        if one not in sets:
            sets.append(one)
    if not sets:
        raise UsageError("no measurements to bind the key to", hint="run necli build")
    if any(is_zero(value) for one in sets for value in one.values.values()):
        raise MeasurementMismatch(
            "the measurements are zero: an enclave in debug mode attests zeros, and so can anybody's",
            hint="run the enclave without --debug-mode, and bind the measurements of the built image",
        )
    return sets


def _bound(sets: Sequence[MeasurementSet]) -> dict[str, list[str]]:
    # A register that only some of the sets have (PCR8 of a signed image) can't be asked of all.
    common = [name for name in sets[0].values if all(name in one.values for one in sets)]
    bound = {name: list(dict.fromkeys(one.values[name] for one in sets)) for name in common}
    if not any(name in bound for name in WHOLE_IMAGE):  # PCR0 in some sets, ImageSha384 in others
        bound["PCR0"] = list(dict.fromkeys(one.image for one in sets))
    return bound


def _our_statements(sets: Sequence[MeasurementSet], bound: Bound, parent_arn: str) -> list[dict[str, Any]]:
    allows = [
        {
            "Sid": f"{ALLOW_SID}{number if number > 1 else ''}",
            "Effect": "Allow",
            "Principal": {"AWS": parent_arn},
            "Action": "kms:Decrypt",
            "Resource": "*",
            "Condition": {
                "StringEqualsIgnoreCase": {f"{ATTESTED}{name}": value for name, value in one.values.items()}
            },
        }
        for number, one in enumerate(sets, 1)
    ]
    # ReEncrypt moves a data key under another key without any attestation: denied along with Decrypt.
    denies = [
        {
            "Sid": f"{_DENY_SID}{name}",
            "Effect": "Deny",
            "Principal": "*",
            "Action": ["kms:Decrypt", "kms:ReEncrypt*"],
            "Resource": "*",
            "Condition": {"StringNotEqualsIgnoreCase": {f"{ATTESTED}{name}": _one_or_list(values)}},
        }
        for name, values in bound.items()
    ]
    return [*allows, *denies]


def _formerly_bound(policy: KeyPolicy) -> dict[str, set[str]]:
    """What our own Deny statements accept in the policy as it is."""
    return {
        register: set(values)
        for statement in policy.statements
        if is_ours(statement) and not _OUR_ALLOW.fullmatch(statement.sid or "")
        for register, values in asked_for(statement.conditions).items()
    }


def _rebound(statement: Statement, bound: Bound, formerly: Mapping[str, set[str]]) -> Any:
    """Somebody else's statement: itself, or a copy with the measurements in it that are ours to write."""

    def value_for(key: str, value: Any) -> Any:
        register = register_of(key)
        accepted = _of_same_value(bound, register)
        if register is None or accepted is None:
            return value
        present = {str(item).lower() for item in (value if isinstance(value, list) else [value])}
        is_ours = present == {_SAMPLE_PLACEHOLDER.lower()} or (
            statement.effect == "Deny" and present == _of_same_value(formerly, register)
        )
        return _one_or_list(accepted) if is_ours and present != set(accepted) else value

    if not statement.conditions:
        return statement.body
    condition = {
        operator: {key: value_for(key, value) for key, value in tests.items()}
        for operator, tests in statement.body["Condition"].items()
    }
    return {**statement.body, "Condition": condition}


def _of_same_value(registers: Mapping[str, T], name: str | None) -> T | None:
    """PCR0 and ImageSha384 are the same hash: either stands for the other."""
    return registers.get(name or "", registers.get(_SAME_VALUE.get(name or "", "")))


def same(one: Any, other: Any) -> bool:
    """Whether two pieces of policy mean the same: KMS may write back in other words what was put."""
    return bool(_normal(one) == _normal(other))


def _normal(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 1:
        return _normal(value[0])
    if isinstance(value, dict):
        members = {key: _normal(item) for key, item in value.items()}
        return "*" if members == {"AWS": "*"} else members
    return value


def _one_or_list(values: Sequence[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else list(values)


def _fill_in(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return Template(value).substitute(names)
    if isinstance(value, list):
        return [_fill_in(item, names) for item in value]
    return {key: _fill_in(item, names) for key, item in value.items()} if isinstance(value, dict) else value
