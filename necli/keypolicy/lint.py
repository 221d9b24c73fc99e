"""What is wrong with a key policy that is meant to let an enclave decrypt and nobody else.

The rules ask the policy, as KMS would decide, rather than look for known spellings: a finding about what
somebody may do is one that a simulated request showed. IAM is taken to allow everything.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, permutations
from typing import Literal

from necli.errors import AccessDenied
from necli.keypolicy.conditions import Condition
from necli.keypolicy.document import KeyPolicy, Statement, is_known_key
from necli.keypolicy.measurement_set import (
    ATTESTED,
    IMAGE,
    WHOLE_IMAGE,
    asked_for,
    is_hash,
    is_zero,
    register_of,
)
from necli.keypolicy.plan import check_lock_out, is_placeholder
from necli.keypolicy.simulation import OUTSIDER, Simulation, favourable_context, is_account
from necli.keypolicy.words import callers_in_words
from necli.measurements import ZERO

Severity = Literal["error", "warning", "info"]
_GRANTEE = "arn:aws:iam::{}:role/grantee"
_ANOTHER = "e" * 96
_UPDATE = "run necli policy update"
_RISKY = {
    "kms:Decrypt": "decrypt without an attestation document",
    "kms:ReEncryptFrom": "re-encrypt to another key",
    "kms:PutKeyPolicy": "change this policy",
    "kms:CreateGrant": "create grants",
}
_USE = ("kms:Decrypt", "kms:ReEncryptFrom")
_SERVICES = ("kms:", "aws:")


@dataclass(frozen=True)
class PolicyFinding:
    rule: str
    sid: str | None
    """The statement that it is about; None for one without a Sid, or for the policy as a whole."""
    severity: Severity
    message: str
    fix: str

    def to_json(self) -> dict[str, str | None]:
        return {
            "rule": self.rule,
            "sid": self.sid,
            "severity": self.severity,
            "message": self.message,
            "fix": self.fix,
        }


def lint(
    policy: KeyPolicy, *, key_arn: str | None = None, caller_arn: str | None = None
) -> list[PolicyFinding]:
    """Everything that is wrong, and for information who could undo the protection.

    :param caller_arn: who has to be able to change the policy afterwards.
    """
    subject = _Subject(policy, Simulation.of(policy, key_arn), caller_arn)
    return [finding for rule in _RULES for finding in rule(subject)]


@dataclass(frozen=True)
class _Subject:
    policy: KeyPolicy
    simulation: Simulation
    caller_arn: str | None

    @property
    def attested(self) -> list[Statement]:
        """The statements with a condition about an attestation."""
        return [statement for statement in self.policy.statements if asked_for(statement.conditions)]

    @property
    def allows(self) -> list[Statement]:
        return [statement for statement in self.policy.statements if statement.effect == "Allow"]

    @property
    def accepted(self) -> list[dict[str, str]]:
        return self.simulation.accepted

    @property
    def grantee(self) -> str:
        return _GRANTEE.format(self.simulation.account)

    def a_grant_gives(self, action: str) -> bool:
        return self.simulation.with_grant(self.grantee).allows(self.grantee, action)

    def sid_about(self, register: str) -> str | None:
        """The Deny about a register, or else the first statement about it."""
        about = [each for each in self.attested if register in asked_for(each.conditions)]
        about.sort(key=lambda statement: statement.effect != "Deny")
        return about[0].sid if about else None


def _unconditional_allow(subject: _Subject) -> Iterator[PolicyFinding]:
    for statement in subject.allows:
        may = _may(subject, statement, "kms:Decrypt", through_iam=False)
        if may:
            yield PolicyFinding(
                "unconditional-allow",
                statement.sid,
                "error",
                f"{statement.name} allows to decrypt without attestation: {callers_in_words(may)}",
                f"take kms:Decrypt out of it, or {_UPDATE}: its Deny statements close it",
            )


def _root_delegation(subject: _Subject) -> Iterator[PolicyFinding]:
    for statement in subject.allows:
        delegated = [action for action in _RISKY if _may(subject, statement, action, through_iam=True)]
        if delegated:
            use = any(action in _USE for action in delegated)
            yield PolicyFinding(
                "root-delegation",
                statement.sid,
                "error" if use else "warning",
                f"{statement.name} leaves it to IAM of the account who may "
                + ", ".join(_RISKY[action] for action in delegated),
                f"{_UPDATE}: its Deny statements close decryption; for the rest, name the roles that "
                "administer the key instead of the account",
            )


def _may(subject: _Subject, statement: Statement, action: str, *, through_iam: bool) -> list[str]:
    """Who may do this by this statement alone, with all conditions met but those about an attestation."""
    alone, context = subject.simulation.with_only(statement), favourable_context(statement)
    callers = [
        caller
        for principal in (statement.principal.values if statement.principal else ())
        if is_account(principal) == through_iam
        for caller in subject.simulation.callers_for(principal)
    ]
    return [caller for caller in dict.fromkeys(callers) if alone.allows(caller, action, context=context)]


def _reencrypt(subject: _Subject) -> Iterator[PolicyFinding]:
    may = subject.simulation.who_may("kms:ReEncryptFrom")
    if not may and not subject.a_grant_gives("kms:ReEncryptFrom"):
        return
    who = f"{callers_in_words(may)} may re-encrypt" if may else "nothing denies a grantee to re-encrypt"
    yield PolicyFinding(
        "reencrypt-not-denied",
        _statement_sid(subject.simulation, may[0], "kms:ReEncryptFrom") if may else None,
        "error" if may else "warning",
        f"{who} a data key under a key of their own and read it there: KMS asks for no attestation then",
        f"{_UPDATE}: it denies kms:ReEncrypt* along with kms:Decrypt",
    )


def _grant(subject: _Subject) -> Iterator[PolicyFinding]:
    conditional = [statement for statement in subject.attested if statement.effect == "Allow"]
    if not conditional or not subject.a_grant_gives("kms:Decrypt"):
        return
    creators = subject.simulation.who_may("kms:CreateGrant")
    yield PolicyFinding(
        "grant-bypasses-allow",
        conditional[0].sid,
        "error" if creators else "warning",
        f"{conditional[0].name} only allows under a condition: a grant"
        + (f", which {callers_in_words(creators)} may create," if creators else "")
        + " lets its grantee decrypt without an attestation document",
        f"{_UPDATE}: its Deny statements hold for grantees too",
    )


def _who_can_undo_it(subject: _Subject) -> Iterator[PolicyFinding]:
    simulation = subject.simulation
    for rule, action, doing in (
        ("may-change-policy", "kms:PutKeyPolicy", "change this policy, and so undo the protection"),
        ("may-create-grant", "kms:CreateGrant", "create grants"),
    ):
        may = simulation.who_may(action)
        for caller in [OUTSIDER] if OUTSIDER in may else may:
            decision = simulation.decide(caller, action)
            if caller == simulation.somebody and decision.policy == "identity":
                continue  # that is root-delegation
            uses = any(simulation.allows(caller, "kms:Decrypt", each) for each in subject.accepted)
            severity: Severity = "error" if caller == OUTSIDER else "warning" if uses else "info"
            yield PolicyFinding(
                rule,
                _statement_sid(simulation, caller, action),
                severity,
                f"{callers_in_words([caller])} may {doing}"
                + (", and passes requests of the enclave on" * uses),
                "give administration and use to different roles"
                if uses
                else f"make sure that this is meant so, and watch {action} in CloudTrail",
            )


def _lock_out(subject: _Subject) -> Iterator[PolicyFinding]:
    fix = "add a statement that allows the role of the administrator kms:PutKeyPolicy"
    may = subject.simulation.who_may("kms:PutKeyPolicy")
    if not may:
        message = "nobody may change this policy any more: only AWS Support could"
        yield PolicyFinding("lock-out", None, "error", message, fix)
    elif subject.caller_arn:
        try:
            check_lock_out(subject.policy, subject.caller_arn, key_arn=subject.simulation.key_arn)
        except AccessDenied:
            message = (
                f"{subject.caller_arn}, who asks, may not change this policy; {callers_in_words(may)} may"
            )
            yield PolicyFinding("lock-out", None, "error", message, fix)


def _not_bound(subject: _Subject) -> Iterator[PolicyFinding]:
    if not subject.attested:
        message = "no statement asks for an attestation: the key is bound to no enclave"
        yield PolicyFinding("not-bound", None, "error", message, _UPDATE)
    for statement, _, value in islice(_attested_values(subject, is_placeholder), 1):
        message = f"{value} stands where a measurement belongs: no enclave may decrypt yet"
        yield PolicyFinding("not-bound", statement.sid, "warning", message, _UPDATE)


def _pcr0_only(subject: _Subject) -> Iterator[PolicyFinding]:
    for accepted in subject.accepted[:1]:
        others = {f"PCR{index}": _ANOTHER for index in (1, 2, 3, 4, 8)}
        if set(accepted) <= set(WHOLE_IMAGE) and _decrypts(
            subject, {**others, **_bothcallers_in_words(accepted)}
        ):
            yield PolicyFinding(
                "pcr0-only",
                subject.sid_about(next(iter(accepted))),
                "warning",
                "PCR0 alone is asked for: it covers the image, but not its signer or the instance's role",
                f"{_UPDATE} --pcr 0,1,2,3, and 8 for a signed image",
            )


def _zero_pcr(subject: _Subject) -> Iterator[PolicyFinding]:
    zeros = dict.fromkeys([*(f"PCR{index}" for index in range(16)), IMAGE], ZERO.hex())
    open_to_debug = bool(subject.simulation.who_may("kms:Decrypt", zeros))
    for statement, condition, _ in _attested_values(subject, is_zero):
        effect = (
            "any enclave in debug mode may decrypt, and its console can be read"
            if open_to_debug
            else "only an enclave in debug mode attests that"
        )
        yield PolicyFinding(
            "zero-pcr",
            statement.sid,
            "error",
            f"{statement.name} accepts zeros for {register_of(condition.key)}: {effect}",
            f"run the enclave without --debug-mode, then {_UPDATE}",
        )


def _malformed_hash(subject: _Subject) -> Iterator[PolicyFinding]:
    for statement, condition, value in _attested_values(subject, lambda value: not _matches_something(value)):
        yield PolicyFinding(
            "malformed-hash",
            statement.sid,
            "error",
            f"{statement.name} has {value[:24]!r} for {register_of(condition.key)}, which is never attested: "
            f"a SHA-384 has 96 hexadecimal digits, and this {len(value)} characters",
            _UPDATE,
        )
    for statement in subject.attested:
        for condition in statement.conditions:
            exact = condition.operator.endswith("Equals") and register_of(condition.key)
            upper = [value for value in condition.values if is_hash(value) and value != value.lower()]
            if exact and upper and _unmatched(condition, upper[0]):
                yield PolicyFinding(
                    "malformed-hash",
                    statement.sid,
                    "error",
                    f"{statement.name} compares {register_of(condition.key)} in upper case, and KMS has "
                    f"lower case: {condition.operator} never finds them equal",
                    "use StringEqualsIgnoreCase and StringNotEqualsIgnoreCase",
                )


def _unmatched(condition: Condition, value: str) -> bool:
    """Whether the condition takes the value that it names, as KMS spells it, for another."""
    return condition.holds({condition.key.lower(): (value.lower(),)}) is ("Not" in condition.operator)


def _matches_something(value: str) -> bool:
    return is_hash(value) or is_placeholder(value) or "*" in value or "?" in value


def _attested_values(
    subject: _Subject, wanted: Callable[[str], bool]
) -> Iterator[tuple[Statement, Condition, str]]:
    for statement in subject.attested:
        for condition in statement.conditions:
            if register_of(condition.key) and condition.operator != "Null":
                for value in condition.values:
                    if wanted(value):
                        yield statement, condition, value


def _unknown_key(subject: _Subject) -> Iterator[PolicyFinding]:
    for statement in subject.policy.statements:
        for condition in statement.conditions:
            meant = _meant_by(condition.key)
            if is_known_key(condition.key) and not meant:
                continue
            effect = "applies whatever is attested" if condition.holds({}) else "never applies"
            yield PolicyFinding(
                "unknown-condition-key",
                statement.sid,
                "error",
                f"{statement.name}: KMS knows no condition key {condition.key}: it is always absent, so that "
                f"the statement {effect}",
                f"write {meant}" if meant else "look it up among the condition keys of AWS KMS",
            )


def _meant_by(condition_key: str) -> str | None:
    """The attestation's condition key that was probably meant by one that KMS doesn't know."""
    if register_of(condition_key) or (is_known_key(condition_key) and condition_key.startswith(_SERVICES)):
        return None
    meant = {
        f"{ATTESTED}{name}".lower(): f"{ATTESTED}{name}" for name in (*map("PCR{}".format, range(16)), IMAGE)
    }
    number = re.search(r"\d*$", condition_key)
    close = difflib.get_close_matches(condition_key.lower(), meant, n=16, cutoff=0.8)
    same_register = [key for key in close if number and key.endswith(number[0])]
    return meant[(same_register or close)[0]] if close else None


def _not_enforced(subject: _Subject) -> Iterator[PolicyFinding]:
    """Each register of a set is another in turn: a Deny of several registers is ANDed, and lets that pass."""
    found: set[str] = set()
    for accepted in subject.accepted:
        for register in accepted:
            changed = _bothcallers_in_words({**accepted, register: _ANOTHER}, changed=register)
            if register not in found and not _decrypts(subject, {}) and _decrypts(subject, changed):
                found.add(register)
                yield PolicyFinding(
                    "pcr-not-enforced",
                    subject.sid_about(register),
                    "error",
                    f"an enclave whose {register} is another may decrypt, though a condition names it",
                    f"{_UPDATE}: it writes one Deny a register; the conditions of one statement are ANDed",
                )


def _mixture(subject: _Subject) -> Iterator[PolicyFinding]:
    for one, other in permutations(subject.accepted, 2):
        mixed = {**other, **{name: value for name, value in one.items() if name in WHOLE_IMAGE}}
        if mixed not in subject.accepted and _decrypts(subject, _bothcallers_in_words(mixed)):
            yield PolicyFinding(
                "mixed-measurements",
                subject.sid_about("PCR0"),
                "warning",
                "PCR0 of one image is accepted with the other registers of another",
                f"{_UPDATE}, or stage: each set gets a statement of its own",
            )
            return


def _refused(subject: _Subject) -> Iterator[PolicyFinding]:
    for statement in subject.policy.statements:
        for problem in statement.malformed():
            fix = "mend the statement: PutKeyPolicy would refuse the policy"
            yield PolicyFinding("refused-by-kms", statement.sid, "error", problem, fix)


def _decrypts(subject: _Subject, attested: Mapping[str, str]) -> bool:
    return bool(subject.simulation.who_may("kms:Decrypt", attested))


def _bothcallers_in_words(registers: dict[str, str], changed: str | None = None) -> dict[str, str]:
    """The same with PCR0 under its other name too, which KMS derives from it."""
    image = registers.get(changed or "") if changed in WHOLE_IMAGE else None
    image = image or registers.get("PCR0") or registers.get(IMAGE)
    return {**registers, **(dict.fromkeys(WHOLE_IMAGE, image) if image else {})}


def _statement_sid(simulation: Simulation, caller: str, action: str) -> str | None:
    """The statement that lets a caller do this, if only by leaving it to IAM."""
    for statement in simulation.policy.statements:
        if statement.effect == "Allow" and simulation.with_only(statement).allows(caller, action):
            return statement.sid
    return None


_RULES = (
    _refused,
    _unknown_key,
    _malformed_hash,
    _not_bound,
    _unconditional_allow,
    _root_delegation,
    _reencrypt,
    _not_enforced,
    _zero_pcr,
    _mixture,
    _grant,
    _pcr0_only,
    _lock_out,
    _who_can_undo_it,
)
