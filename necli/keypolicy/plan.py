"""Binds a key policy to measurements: what changes, and nothing else does.

What is ours to write, and is replaced where it stands:

- the statements with our Sids: one Allow for the parent's role with every PCR in it, and one Deny for each
  PCR. Several PCRs in one Deny would be ANDed: it would spare an image that differs in only one of them.
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
from typing import Any

from necli.errors import AccessDenied, MeasurementMismatch, UsageError
from necli.keypolicy.document import KeyPolicy, Policy, Statement
from necli.keypolicy.evaluate import RequestContext, caller_arns, evaluate
from necli.measurements import Measurements
from necli.resources import resource_folder

ALLOW_SID = "EnclaveDecrypt"
_DENY_SID = "DenyDecryptUnlessPCR"
_OUR_SID = re.compile(rf"{ALLOW_SID}|{_DENY_SID}\d+")
_SAMPLE_PLACEHOLDER = "EXAMPLETOBEUPDATED"
_ATTESTED_PCR = re.compile(r"kms:RecipientAttestation:(?:PCR(\d+)|ImageSha384)", re.IGNORECASE)
_ANY_IDENTITY_POLICY = Policy.from_json(
    {"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}},
)

Bound = Mapping[int, Sequence[str]]
"""For each PCR the values that are accepted, in lower-case hex as KMS compares them."""


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
    policy: KeyPolicy, measurements: Measurements | Sequence[Measurements], *, parent_arn: str
) -> PolicyChange:
    """Plan that only enclaves with these measurements can decrypt; several are accepted side by side.

    :raises MeasurementMismatch: measurements of a debug-mode enclave: everybody can attest zeros.
    """
    accepted = [measurements] if isinstance(measurements, Measurements) else list(measurements)
    bound = _bound(accepted)
    ours = {statement["Sid"]: statement for statement in _our_statements(bound, parent_arn)}
    formerly = _formerly_bound(policy)
    statements: list[Any] = []
    for statement in policy.statements:
        if statement.sid and _OUR_SID.fullmatch(statement.sid):
            # None where it stands a second time, or is about a PCR that isn't bound any more.
            planned = ours.pop(statement.sid, None)
            if planned:
                statements.append(statement.body if _same(statement.body, planned) else planned)
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


def _bound(accepted: Sequence[Measurements]) -> dict[int, list[str]]:
    if not accepted:
        raise UsageError("no measurements to bind the key to", hint="run necli build")
    if any(measurements.is_zero for measurements in accepted):
        raise MeasurementMismatch(
            "the measurements are zero: an enclave in debug mode attests zeros, and so can anybody's",
            hint="run the enclave without --debug-mode, and bind the measurements of the built image",
        )
    pcrs = [measurements.pcrs() for measurements in accepted]
    # A PCR that only some of the images have (PCR8 of a signed one) can't be asked of all.
    common = sorted(set.intersection(*map(set, pcrs)))
    return {index: list(dict.fromkeys(each[index].hex() for each in pcrs)) for index in common}


def _our_statements(bound: Bound, parent_arn: str) -> list[dict[str, Any]]:
    allow = {
        "Sid": ALLOW_SID,
        "Effect": "Allow",
        "Principal": {"AWS": parent_arn},
        "Action": "kms:Decrypt",
        "Resource": "*",
        "Condition": {
            "StringEqualsIgnoreCase": {
                f"kms:RecipientAttestation:PCR{index}": _one_or_list(values)
                for index, values in bound.items()
            }
        },
    }
    # ReEncrypt moves a data key under another key without any attestation: denied along with Decrypt.
    denies = [
        {
            "Sid": f"{_DENY_SID}{index}",
            "Effect": "Deny",
            "Principal": "*",
            "Action": ["kms:Decrypt", "kms:ReEncrypt*"],
            "Resource": "*",
            "Condition": {
                "StringNotEqualsIgnoreCase": {f"kms:RecipientAttestation:PCR{index}": _one_or_list(values)}
            },
        }
        for index, values in bound.items()
    ]
    return [allow, *denies]


def _formerly_bound(policy: KeyPolicy) -> dict[int, set[str]]:
    """What our own Deny statements accept in the policy as it is."""
    return {
        index: {value.lower() for value in condition.values}
        for statement in policy.statements
        if statement.sid and statement.sid.startswith(_DENY_SID)
        for condition in statement.conditions
        if (index := _attested_pcr(condition.key)) is not None
    }


def _rebound(statement: Statement, bound: Bound, formerly: Mapping[int, set[str]]) -> Any:
    """Somebody else's statement: itself, or a copy with the measurements in it that are ours to write."""

    def value_for(key: str, value: Any) -> Any:
        index = _attested_pcr(key)
        if index is None or index not in bound:
            return value
        present = {str(item).lower() for item in (value if isinstance(value, list) else [value])}
        is_ours = present == {_SAMPLE_PLACEHOLDER.lower()} or (
            statement.effect == "Deny" and present == formerly.get(index)
        )
        return _one_or_list(bound[index]) if is_ours and present != set(bound[index]) else value

    if not statement.conditions:
        return statement.body
    condition = {
        operator: {key: value_for(key, value) for key, value in tests.items()}
        for operator, tests in statement.body["Condition"].items()
    }
    return {**statement.body, "Condition": condition}


def _same(one: Any, other: Any) -> bool:
    """Whether two pieces of policy mean the same: KMS may write back in other words what was put."""
    return bool(_normal(one) == _normal(other))


def _normal(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 1:
        return _normal(value[0])
    if isinstance(value, dict):
        members = {key: _normal(item) for key, item in value.items()}
        return "*" if members == {"AWS": "*"} else members
    return value


def _attested_pcr(condition_key: str) -> int | None:
    match = _ATTESTED_PCR.fullmatch(condition_key)
    return int(match[1] or 0) if match else None


def _one_or_list(values: Sequence[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else list(values)


def _fill_in(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return Template(value).substitute(names)
    if isinstance(value, list):
        return [_fill_in(item, names) for item in value]
    return {key: _fill_in(item, names) for key, item in value.items()} if isinstance(value, dict) else value
