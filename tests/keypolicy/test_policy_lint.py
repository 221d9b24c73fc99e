"""Each finding on a policy with that fault, and none on a policy without."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from test_policy_stages import ACCOUNT, FIRST, KEY, PARENT, SECOND, bound_to, new_policy

from necli.keypolicy import KeyPolicy
from necli.keypolicy.lint import PolicyFinding, lint

Document = dict[str, Any]
ROOT = {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}
PCR = "kms:RecipientAttestation:PCR"
ALLOW = {"Effect": "Allow", "Resource": "*"}


def document(policy: KeyPolicy | None = None) -> Document:
    body: Document = copy.deepcopy(dict((policy or bound_to(FIRST)).to_json()))
    return body


def statement(body: Document, sid: str) -> Any:
    return next(each for each in body["Statement"] if each.get("Sid") == sid)


def without_denies(body: Document) -> Document:
    kept = [each for each in body["Statement"] if each["Effect"] == "Allow"]
    return {**body, "Statement": kept}


def adding(*statements: Document, to: Document | None = None) -> Document:
    body = to or document()
    return {**body, "Statement": [*body["Statement"], *statements]}


def findings(body: Document, rule: str, **about: str) -> list[PolicyFinding]:
    return [each for each in lint(KeyPolicy.from_json(body), **about) if each.rule == rule]


def one(body: Document, rule: str, **about: str) -> PolicyFinding:
    (found,) = findings(body, rule, **about)
    return found


def test_a_bound_policy_of_necli_says_only_who_could_undo_it() -> None:
    for policy in (bound_to(FIRST), bound_to(FIRST, SECOND), bound_to(FIRST, registers="0,1,2,3")):
        assert [(each.rule, each.severity) for each in lint(policy)] == [("may-change-policy", "info")]


def test_a_finding_is_json_with_its_five_members() -> None:
    found = lint(bound_to(FIRST))[0].to_json()
    assert found == {
        "rule": "may-change-policy",
        "sid": "AdministrationWithoutUse",
        "severity": "info",
        "message": "parent-admin may change this policy, and so undo the protection",
        "fix": "make sure that this is meant so, and watch kms:PutKeyPolicy in CloudTrail",
    }


USE_IT = {
    **ALLOW,
    "Sid": "AlsoDirect",
    "Principal": {"AWS": PARENT},
    "Action": ["kms:Decrypt", "kms:Encrypt"],
}


def test_an_unconditional_allow_beside_the_conditional_one() -> None:
    found = one(adding(USE_IT, to=without_denies(document())), "unconditional-allow")
    assert (found.sid, found.severity) == ("AlsoDirect", "error")
    assert "AlsoDirect allows to decrypt without attestation: parent" in found.message


@pytest.mark.parametrize(
    "principal", ["*", {"AWS": "*"}, {"AWS": [PARENT, "arn:aws:iam::222233334444:role/theirs"]}]
)
def test_an_unconditional_allow_to_others(principal: object) -> None:
    assert one(
        adding({**USE_IT, "Principal": principal}, to=without_denies(document())), "unconditional-allow"
    )


def test_an_allow_whose_other_conditions_can_be_met_is_as_good_as_unconditional() -> None:
    condition = {"StringEquals": {"kms:ViaService": "s3.eu-central-1.amazonaws.com"}}
    body = adding({**USE_IT, "Condition": condition}, to=without_denies(document()))
    assert one(body, "unconditional-allow").sid == "AlsoDirect"


def test_a_condition_that_an_absent_document_meets_is_no_condition() -> None:
    condition = {"StringEqualsIgnoreCaseIfExists": {f"{PCR}0": "ab" * 48}}
    body = adding({**USE_IT, "Condition": condition}, to=without_denies(document()))
    assert one(body, "unconditional-allow").sid == "AlsoDirect"


def test_an_unconditional_allow_that_the_denies_close_is_no_finding() -> None:
    assert not findings(adding(USE_IT), "unconditional-allow")


DELEGATES = {**ALLOW, "Sid": "Enable IAM", "Principal": ROOT, "Action": "kms:*"}


def test_root_delegation_names_what_is_left_to_iam() -> None:
    found = one(adding(DELEGATES, to=without_denies(document())), "root-delegation")
    assert (found.sid, found.severity) == ("Enable IAM", "error")
    for part in ("decrypt without an attestation", "re-encrypt", "change this policy", "create grants"):
        assert part in found.message
    closed = one(adding(DELEGATES), "root-delegation")
    assert closed.severity == "warning"
    assert "decrypt" not in closed.message


def test_the_account_by_its_number_is_root_delegation_too() -> None:
    assert one(adding({**DELEGATES, "Principal": {"AWS": ACCOUNT}}), "root-delegation")


def test_a_missing_deny_of_reencrypt() -> None:
    body = document()
    for each in body["Statement"]:
        if each["Effect"] == "Deny":
            each["Action"] = "kms:Decrypt"
    unused = one(body, "reencrypt-not-denied")
    assert (unused.sid, unused.severity) == (None, "warning")
    reencrypts = {**USE_IT, "Sid": "Moves", "Action": "kms:ReEncrypt*"}
    used = one(adding(reencrypts, to=body), "reencrypt-not-denied")
    assert (used.sid, used.severity) == ("Moves", "error")


@pytest.mark.parametrize("registers", ["0", "ImageSha384"])
def test_pcr0_only(registers: str) -> None:
    found = one(document(bound_to(FIRST, registers=registers)), "pcr0-only")
    assert (found.sid, found.severity) == (
        f"DenyDecryptUnless{'PCR0' if registers == '0' else registers}",
        "warning",
    )


def test_zeros_open_the_key_to_debug_mode() -> None:
    body = KeyPolicy.from_json(document()).to_text()
    for value in (FIRST.pcr0, FIRST.pcr1, FIRST.pcr2):
        body = body.replace(value.hex(), "0" * 96)
    found = findings(document(KeyPolicy.from_json(body)), "zero-pcr")
    assert {each.sid for each in found} >= {"EnclaveDecrypt", "DenyDecryptUnlessPCR0"}
    assert all("any enclave in debug mode may decrypt" in each.message for each in found)


def test_one_register_of_zeros_shuts_everything_else_out() -> None:
    body = document()
    statement(body, "DenyDecryptUnlessPCR2")["Condition"] = {
        "StringNotEqualsIgnoreCase": {f"{PCR}2": "0" * 96}
    }
    assert "only an enclave in debug mode attests that" in one(body, "zero-pcr").message


def test_an_allow_form_that_a_grant_bypasses() -> None:
    found = one(without_denies(document()), "grant-bypasses-allow")
    assert (found.sid, found.severity) == ("EnclaveDecrypt", "warning")
    creator = {**ALLOW, "Sid": "Grants", "Principal": {"AWS": f"{PARENT}-admin"}, "Action": "kms:CreateGrant"}
    found = one(adding(creator, to=without_denies(document())), "grant-bypasses-allow")
    assert found.severity == "error"
    assert "which parent-admin may create" in found.message
    assert not findings(document(), "grant-bypasses-allow")


def test_who_may_change_the_policy_or_create_grants() -> None:
    both = {
        **ALLOW,
        "Sid": "Both",
        "Principal": {"AWS": PARENT},
        "Action": ["kms:PutKeyPolicy", "kms:CreateGrant"],
    }
    body = adding(both)
    changers = findings(body, "may-change-policy")
    assert [(each.sid, each.severity) for each in changers] == [
        ("AdministrationWithoutUse", "info"),
        ("Both", "warning"),
    ]
    assert "different roles" in changers[1].fix
    assert one(body, "may-create-grant").sid == "Both"
    anybody = one(adding({**both, "Principal": "*", "Action": "kms:CreateGrant"}), "may-create-grant")
    assert anybody.severity == "error"


def test_nobody_left_who_may_change_the_policy() -> None:
    body = document()
    statement(body, "AdministrationWithoutUse")["Action"].remove("kms:PutKeyPolicy")
    found = one(body, "lock-out")
    assert (found.sid, found.severity) == (None, "error")
    assert "nobody may change this policy" in found.message


def test_the_one_who_asks_is_locked_out() -> None:
    asking = f"arn:aws:sts::{ACCOUNT}:assumed-role/{{}}/me"
    assert not findings(document(), "lock-out", key_arn=KEY, caller_arn=asking.format("parent-admin"))
    found = one(document(), "lock-out", key_arn=KEY, caller_arn=asking.format("parent"))
    assert "may not change this policy; parent-admin may" in found.message


@pytest.mark.parametrize(
    ("written", "fix"),
    [
        ("kms:RecipientAttestation:PRC0", "write kms:RecipientAttestation:PCR0"),
        ("kms:RecipientAttestaton:PCR8", "write kms:RecipientAttestation:PCR8"),
        ("kms:RecipientAttestation:ImageSha348", "write kms:RecipientAttestation:ImageSha384"),
        ("RecipientAttestation:PCR2", "write kms:RecipientAttestation:PCR2"),
        ("kms:RecipientAttestation:PCR32", None),
        ("kms:Via", "look it up among the condition keys of AWS KMS"),
    ],
)
def test_a_condition_key_misspelt(written: str, fix: str | None) -> None:
    body = adding({**USE_IT, "Condition": {"StringEqualsIgnoreCase": {written: "ab" * 48}}})
    found = one(body, "unknown-condition-key")
    assert (found.sid, found.severity) == ("AlsoDirect", "error")
    assert "never applies" in found.message
    assert fix is None or found.fix == fix
    denied = {**USE_IT, "Effect": "Deny", "Condition": {"StringNotEquals": {written: "ab" * 48}}}
    assert "applies whatever is attested" in one(adding(denied), "unknown-condition-key").message


@pytest.mark.parametrize("key", ["kms:ViaService", "aws:SourceVpce", "aws:PrincipalTag/team", "ec2:Region"])
def test_condition_keys_that_exist_are_left_alone(key: str) -> None:
    body = adding({**USE_IT, "Condition": {"StringEquals": {key: "x"}}})
    assert not findings(body, "unknown-condition-key")


@pytest.mark.parametrize("value", ["ab" * 47, "ab" * 49, "xy" * 48, "sha384:" + "ab" * 48, ""])
def test_a_hash_of_the_wrong_length(value: str) -> None:
    body = document()
    statement(body, "DenyDecryptUnlessPCR1")["Condition"] = {"StringNotEqualsIgnoreCase": {f"{PCR}1": value}}
    found = one(body, "malformed-hash")
    assert (found.sid, found.severity) == ("DenyDecryptUnlessPCR1", "error")
    assert f"and this {len(value)} characters" in found.message


def test_upper_case_that_is_compared_letter_by_letter() -> None:
    body = document()
    upper = {f"{PCR}1": FIRST.pcr1.hex().upper().replace("0", "A")}
    statement(body, "DenyDecryptUnlessPCR1")["Condition"] = {"StringNotEquals": upper}
    assert "never finds them equal" in one(body, "malformed-hash").message
    statement(body, "DenyDecryptUnlessPCR1")["Condition"] = {"StringNotEqualsIgnoreCase": upper}
    assert not findings(body, "malformed-hash")


def test_several_registers_in_one_deny() -> None:
    body = without_denies(document())
    allow = statement(body, "EnclaveDecrypt")
    pcrs = {f"{PCR}{index}": value.hex() for index, value in FIRST.pcrs().items()}
    allow.pop("Condition")
    deny = {
        **USE_IT,
        "Sid": "Anded",
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["kms:Decrypt", "kms:ReEncrypt*"],
    }
    body = adding({**deny, "Condition": {"StringNotEqualsIgnoreCase": pcrs}}, to=body)
    found = findings(body, "pcr-not-enforced")
    assert [each.message.split(" is another")[0][-4:] for each in found] == ["PCR0", "PCR1", "PCR2"]
    assert {each.sid for each in found} == {"Anded"}
    assert not findings(document(), "pcr-not-enforced")


def test_lists_that_accept_a_mixture_of_two_images() -> None:
    both = document(bound_to(FIRST, SECOND))
    assert not findings(both, "mixed-measurements")
    lists = {
        f"{PCR}{index}": [value.hex(), SECOND.pcrs()[index].hex()] for index, value in FIRST.pcrs().items()
    }
    single = {
        **statement(both, "EnclaveDecrypt"),
        "Sid": "Hand written",
        "Condition": {"StringEquals": lists},
    }
    both["Statement"] = [each for each in both["Statement"] if not each["Sid"].startswith("EnclaveDecrypt")]
    assert one(adding(single, to=both), "mixed-measurements").severity == "warning"


def test_a_key_that_is_bound_to_nothing() -> None:
    assert one(document(new_policy()), "not-bound").severity == "warning"
    nothing = {"Statement": [DELEGATES]}
    assert (one(nothing, "not-bound").severity, one(nothing, "not-bound").sid) == ("error", None)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"Principal": {"AWS": "AROAEXAMPLE"}}, "invalid principals"),
        ({"Action": "Decrypt"}, "invalid actions"),
        ({"Conditions": {}}, "unknown elements: Conditions"),
        ({"Condition": {"StringIs": {"kms:ViaService": "x"}}}, "StringIs on kms:ViaService is not supported"),
    ],
)
def test_what_put_key_policy_would_refuse(change: Document, problem: str) -> None:
    assert problem in one(adding({**USE_IT, **change}), "refused-by-kms").message


def _nothing(body: Document) -> Document:
    return body


@pytest.mark.parametrize("change", [_nothing, without_denies])
def test_every_finding_says_what_to_do(change: Callable[[Document], Document]) -> None:
    body = change(adding(USE_IT, DELEGATES))
    for found in lint(KeyPolicy.from_json(body)):
        assert found.message
        assert found.fix
