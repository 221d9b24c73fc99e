"""Decisions on whole policies, as KMS documents them."""

from __future__ import annotations

from typing import Any

import pytest

from necli.keypolicy import KeyPolicy, Policy, RequestContext, caller_arns, evaluate

ACCOUNT = "111122223333"
KEY = f"arn:aws:kms:eu-central-1:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
ROOT = f"arn:aws:iam::{ACCOUNT}:root"
PARENT = f"arn:aws:iam::{ACCOUNT}:role/parent"
SESSION = f"arn:aws:sts::{ACCOUNT}:assumed-role/parent/i-0123456789abcdef0"
OTHER = f"arn:aws:iam::{ACCOUNT}:role/other"
STRANGER = "arn:aws:iam::999999999999:role/parent"
PCR0 = "kms:RecipientAttestation:PCR0"

EVERYTHING = Policy.from_json({"Statement": {"Effect": "Allow", "Action": "kms:*", "Resource": "*"}})


def key_policy(*statements: dict[str, Any]) -> KeyPolicy:
    return KeyPolicy.from_json({"Version": "2012-10-17", "Statement": list(statements)})


def allow(principal: Any = PARENT, action: Any = "kms:Decrypt", **more: Any) -> dict[str, Any]:
    principal = principal if principal == "*" or isinstance(principal, dict) else {"AWS": principal}
    return {"Effect": "Allow", "Principal": principal, "Action": action, "Resource": "*", **more}


def deny(principal: Any = "*", action: Any = "kms:Decrypt", **more: Any) -> dict[str, Any]:
    return {**allow(principal, action, **more), "Effect": "Deny"}


def request(action: str = "kms:Decrypt", arn: str = SESSION, **context: Any) -> RequestContext:
    named = {key.replace("__", ":"): value for key, value in context.items()}
    return RequestContext(caller_arns(arn), action, KEY, account=arn.split(":")[4], context=named)


def without(statement: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in statement.items() if key not in names}


# fmt: off
PRINCIPALS = [
    # principal of an Allow, who asks, does the key policy alone let it
    ("*", SESSION, True),
    ({"AWS": "*"}, SESSION, True),
    (PARENT, SESSION, True),
    (SESSION, SESSION, True),
    (f"arn:aws:sts::{ACCOUNT}:assumed-role/parent/someone-else", SESSION, False),
    ([OTHER, PARENT], SESSION, True),
    (OTHER, SESSION, False),
    ("arn:aws:iam::999999999999:role/parent", SESSION, False),
    (PARENT, PARENT, True),
    ({"Service": "ec2.amazonaws.com"}, SESSION, False),
    ({"Federated": "*"}, SESSION, False),
    ({"Service": "ec2.amazonaws.com", "AWS": PARENT}, SESSION, True),
    (ROOT, SESSION, False),
    (ACCOUNT, SESSION, False),
    (STRANGER, STRANGER, False),
]
ACTIONS = [
    ("kms:Decrypt", "kms:Decrypt", True), ("kms:decrypt", "kms:Decrypt", True),
    ("kms:*", "kms:Decrypt", True), ("*", "kms:Decrypt", True), ("kms:De*", "kms:Decrypt", True),
    ("kms:Encrypt", "kms:Decrypt", False), (["kms:Encrypt", "kms:Decrypt"], "kms:Decrypt", True),
    ("kms:ReEncrypt*", "kms:ReEncryptFrom", True), ("kms:ReEncrypt*", "kms:ReEncryptTo", True),
    ("kms:GenerateDataKey", "kms:GenerateDataKeyWithoutPlaintext", False), ("s3:*", "kms:Decrypt", False),
    ("kms:?ecrypt", "kms:Decrypt", True), ([], "kms:Decrypt", False),
]
RESOURCES = [
    ("*", True), (KEY, True), (f"arn:aws:kms:*:{ACCOUNT}:key/*", True), ([KEY, "x"], True),
    ("arn:aws:kms:eu-central-1:111122223333:alias/x", False), (KEY.upper(), False),
]
# fmt: on


@pytest.mark.parametrize(("principal", "caller", "allowed"), PRINCIPALS)
def test_a_principal_is_matched_by_session_and_role(principal: Any, caller: str, allowed: bool) -> None:
    assert evaluate(key_policy(allow(principal)), request(arn=caller)).allowed is allowed


@pytest.mark.parametrize(("pattern", "action", "allowed"), ACTIONS)
def test_actions_are_matched_with_wildcards_in_any_case(pattern: Any, action: str, allowed: bool) -> None:
    assert evaluate(key_policy(allow(action=pattern)), request(action)).allowed is allowed
    excluded = without(allow(NotAction=pattern), "Action")
    assert evaluate(key_policy(excluded), request(action)).allowed is not allowed


@pytest.mark.parametrize(("resource", "allowed"), RESOURCES)
def test_a_resource_is_this_key_or_a_pattern_for_it(resource: Any, allowed: bool) -> None:
    assert evaluate(key_policy(allow(Resource=resource)), request()).allowed is allowed
    excluded = without(allow(NotResource=resource), "Resource")
    assert evaluate(key_policy(excluded), request()).allowed is not allowed


@pytest.mark.parametrize("principal", [ROOT, ACCOUNT])
def test_the_account_as_principal_leaves_it_to_iam(principal: str) -> None:
    policy = key_policy(allow(principal, "kms:*"))
    assert evaluate(policy, request(), EVERYTHING).policy == "identity"
    assert evaluate(policy, request(), EVERYTHING).allowed
    decrypts = Policy.from_json(
        {
            "Statement": {
                "Effect": "Allow",
                "Action": "kms:Decrypt",
                "Resource": f"arn:aws:kms:*:{ACCOUNT}:key/*",
            }
        }
    )
    assert evaluate(policy, request(), decrypts).allowed
    refusal = evaluate(policy, request("kms:Encrypt"), decrypts)
    assert (refusal.kind, refusal.policy) == ("implicit_deny", "identity")


def test_iam_alone_opens_no_key() -> None:
    refusal = evaluate(key_policy(allow(OTHER)), request(), EVERYTHING)
    assert (refusal.kind, refusal.policy) == ("implicit_deny", "key")


def test_another_account_needs_both_policies() -> None:
    policy = key_policy(allow(STRANGER))
    assert not evaluate(policy, request(arn=STRANGER)).allowed
    assert evaluate(policy, request(arn=STRANGER), EVERYTHING).allowed
    assert not evaluate(key_policy(allow(ROOT)), request(arn=STRANGER), EVERYTHING).allowed


def test_actions_on_no_key_are_up_to_iam() -> None:
    create = RequestContext((PARENT,), "kms:CreateKey", "*", ACCOUNT)
    assert evaluate(None, create, EVERYTHING).allowed
    assert not evaluate(None, create).allowed


@pytest.mark.parametrize("order", [1, -1])
def test_a_deny_wins_wherever_it_stands(order: int) -> None:
    decision = evaluate(key_policy(*[allow(), deny(Sid="no")][::order]), request(), EVERYTHING)
    assert (decision.kind, decision.policy) == ("explicit_deny", "key")
    assert decision.statement is not None
    assert decision.statement.sid == "no"


def test_a_deny_in_iam_beats_an_allow_in_the_key_policy() -> None:
    nothing = Policy.from_json({"Statement": {"Effect": "Deny", "Action": "kms:*", "Resource": "*"}})
    decision = evaluate(key_policy(allow()), request(), nothing)
    assert (decision.kind, decision.policy) == ("explicit_deny", "identity")


def test_a_deny_of_the_account_is_a_deny_of_everybody_in_it() -> None:
    assert evaluate(key_policy(allow(), deny(ROOT)), request()).kind == "explicit_deny"


@pytest.mark.parametrize(
    ("listed", "denied"),
    [
        ([SESSION, PARENT, ROOT], False),
        ([SESSION, PARENT, ACCOUNT], False),
        ([PARENT], True),
        ([SESSION, PARENT], True),
        ([ROOT], True),
        ([OTHER], True),
        (["*"], False),
    ],
)
def test_not_principal_spares_only_who_is_listed_with_session_role_and_account(
    listed: list[str], denied: bool
) -> None:
    statement = without(deny(NotPrincipal={"AWS": listed}), "Principal")
    assert evaluate(key_policy(allow(), statement), request()).allowed is not denied


def test_allow_with_not_principal_allows_nobody() -> None:
    statement = without(allow(NotPrincipal={"AWS": OTHER}), "Principal")
    assert not evaluate(key_policy(statement), request(), EVERYTHING).allowed


def test_every_condition_of_a_statement_has_to_hold() -> None:
    both = {"StringEquals": {"kms:CallerAccount": ACCOUNT, "aws:PrincipalType": "AssumedRole"}}
    policy = key_policy(allow(Condition=both))
    assert evaluate(policy, request(kms__CallerAccount=ACCOUNT, aws__PrincipalType="AssumedRole")).allowed
    refusal = evaluate(policy, request(kms__CallerAccount=ACCOUNT))
    assert refusal.kind == "implicit_deny"
    assert [reason.condition.key for reason in refusal.failed_conditions] == ["aws:PrincipalType"]


def test_what_cannot_be_decided_denies_and_does_not_allow() -> None:
    unknown = {"StringMatches": {"kms:CallerAccount": ".*"}}
    assert not evaluate(key_policy(allow(Condition=unknown)), request()).allowed
    assert evaluate(key_policy(allow(), deny(Condition=unknown)), request()).kind == "explicit_deny"


class TestDenyUnlessMeasured:
    """The statement that keeps the parent out."""

    def policy(self, *values: str) -> KeyPolicy:
        condition = {"StringNotEqualsIgnoreCase": {PCR0: list(values)}}
        return key_policy(allow(ROOT, "kms:*"), deny(Condition=condition, Sid="pin"))

    def test_the_measured_enclave_is_let_through_in_any_case_of_the_hex(self) -> None:
        assert evaluate(self.policy("AB" * 48), request(**{PCR0: "ab" * 48}), EVERYTHING).allowed

    def test_another_enclave_is_denied_and_the_decision_says_what_it_attested(self) -> None:
        decision = evaluate(self.policy("ab" * 48), request(**{PCR0: "cd" * 48}), EVERYTHING)
        assert decision.kind == "explicit_deny"
        (reason,) = decision.failed_conditions
        assert (reason.statement.sid, reason.condition.values, reason.actual) == (
            "pin",
            ("ab" * 48,),
            ("cd" * 48,),
        )

    def test_a_request_without_attestation_is_denied(self) -> None:
        decision = evaluate(self.policy("ab" * 48), request(), EVERYTHING)
        assert decision.kind == "explicit_deny"
        assert decision.failed_conditions[0].actual == ()

    def test_two_measurements_are_accepted_side_by_side(self) -> None:
        policy = self.policy("ab" * 48, "cd" * 48)
        assert evaluate(policy, request(**{PCR0: "cd" * 48}), EVERYTHING).allowed
        assert not evaluate(policy, request(**{PCR0: "ef" * 48}), EVERYTHING).allowed

    def test_several_pcrs_in_one_deny_spare_who_matches_only_one(self) -> None:
        """Why there is one Deny for each PCR."""
        pcrs = {PCR0: "ab" * 48, "kms:RecipientAttestation:PCR1": "cd" * 48}
        policy = key_policy(allow(), deny(Condition={"StringNotEqualsIgnoreCase": pcrs}))
        forged = {PCR0: "00" * 48, "kms:RecipientAttestation:PCR1": "cd" * 48}
        assert evaluate(policy, request(**forged)).allowed


def test_a_session_goes_by_its_role_too() -> None:
    assert caller_arns(SESSION) == (SESSION, PARENT)
    assert caller_arns(PARENT) == (PARENT,)
