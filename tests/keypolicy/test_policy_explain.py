"""Why a policy denies: the statement, the condition, what it expects and gets, and what mends it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from test_policy_stages import ACCOUNT, FIRST, KEY, PARENT, SECOND, bound_to, decrypts, new_policy

from necli.keypolicy import KeyPolicy, Policy
from necli.keypolicy.explain import Explanation, explain
from necli.keypolicy.measurement_set import attested_registers
from necli.keypolicy.simulation import IAM_ALLOWS_ALL, request_of
from necli.keypolicy.words import statement_in_words
from necli.measurements import ZERO, Measurements

FIRST_IS = "the first statement that decides is"
PCR = "kms:RecipientAttestation:PCR"


def explained(
    policy: KeyPolicy,
    attested: Measurements | None = FIRST,
    *,
    caller: str = PARENT,
    action: str = "kms:Decrypt",
    context: dict[str, str] | None = None,
    planned: KeyPolicy | None = None,
    iam: Policy | None = IAM_ALLOWS_ALL,
) -> Explanation:
    registers = attested_registers(attested, PARENT) if attested else {}
    request = request_of(caller, action, KEY, registers, context)
    return explain(policy, request, identity_policy=iam, planned=planned)


def adding(policy: KeyPolicy, **members: Any) -> KeyPolicy:
    body = copy.deepcopy(dict(policy.to_json()))
    body["Statement"].append(
        {"Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*", **members}
    )
    return KeyPolicy.from_json(body)


def test_an_allowed_request_names_the_statement_and_needs_no_fix() -> None:
    found = explained(bound_to(FIRST))
    assert found.sentences == ("kms:Decrypt by parent is allowed by the key policy: EnclaveDecrypt",)
    assert found.fix is None


def test_another_image_names_statement_register_and_both_values() -> None:
    found = explained(bound_to(FIRST), SECOND, planned=bound_to(SECOND))
    assert found.sentences == (
        f"kms:Decrypt by parent is denied by the key policy: {FIRST_IS} DenyDecryptUnlessPCR0",
        "it says: Deny everybody: Decrypt, ReEncrypt*, unless PCR0 is 0101010101010101…",
        "PCR0: expected 0101010101010101…, actual 1111111111111111…",
    )
    assert found.fix == "run necli policy update"
    assert found.to_json() == {
        "allowed": False,
        "decision": "explicit_deny",
        "policy": "key",
        "caller": PARENT,
        "action": "kms:Decrypt",
        "sid": "DenyDecryptUnlessPCR0",
        "conditions": [
            {
                "operator": "StringNotEqualsIgnoreCase",
                "key": "kms:RecipientAttestation:PCR0",
                "expected": [FIRST.pcr0.hex()],
                "actual": [SECOND.pcr0.hex()],
            }
        ],
        "explanation": list(found.sentences),
        "fix": "run necli policy update",
    }


def test_an_update_is_proposed_only_where_it_helps() -> None:
    shut = adding(bound_to(FIRST), Sid="Mine", Condition={"StringNotEquals": {f"{PCR}1": "ab" * 48}})
    found = explained(shut, planned=shut)
    assert found.statement is not None
    assert found.statement.sid == "Mine"
    assert found.fix is not None
    assert found.fix.startswith(
        "change Mine in the output of necli policy show --json, then: aws kms put-key-policy"
    )
    assert KEY in found.fix


def test_an_enclave_that_runs_another_image_than_the_one_built_is_told_so() -> None:
    found = explained(bound_to(FIRST), SECOND, planned=bound_to(FIRST))
    assert found.fix == "run necli policy update for the built image, or necli up if the enclave runs another"


def test_no_document_says_that_only_the_enclave_has_one() -> None:
    found = explained(bound_to(FIRST), None)
    assert found.sentences[-1] == "PCR0: expected 0101010101010101…, actual absent"
    assert found.fix == "ask through the enclave, which shows an attestation document: necli detect"


def test_debug_mode_is_known_by_its_zeros() -> None:
    found = explained(bound_to(FIRST), Measurements(ZERO, ZERO, ZERO))
    assert found.sentences[-1].endswith("actual 000000… (zeros: debug mode)")
    assert found.fix == "the enclave runs in debug mode: necli enclave stop, then necli up"


def test_a_placeholder_is_shown_as_what_is_expected() -> None:
    found = explained(new_policy(), FIRST, planned=bound_to(FIRST))
    assert found.sentences[-1] == "PCR0: expected necli-no-measurement-yet, actual 0101010101010101…"
    assert found.fix == "run necli policy update"


def test_the_role_of_another_instance_is_told_apart() -> None:
    other = bound_to(FIRST, registers="0,3")
    assert not decrypts(other, FIRST, role=f"{PARENT}2")
    registers = attested_registers(FIRST, f"{PARENT}2")
    found = explain(other, request_of(PARENT, "kms:Decrypt", KEY, registers))
    assert found.statement is not None
    assert found.statement.sid == "DenyDecryptUnlessPCR3"
    assert found.fix is not None
    assert "the role that PCR3 is bound to" in found.fix


def test_the_allow_that_comes_closest_is_named_where_nothing_denies() -> None:
    allows = [each for each in bound_to(FIRST, SECOND).to_json()["Statement"] if each["Effect"] == "Allow"]
    near_second = Measurements(SECOND.pcr0, SECOND.pcr1, b"\x99" * 48)
    found = explained(KeyPolicy.from_json({"Statement": allows}), near_second)
    assert found.sentences[0] == (
        "kms:Decrypt by parent is denied: no statement allows it, and EnclaveDecrypt2 comes closest"
    )
    assert found.sentences[2:] == ("PCR2: expected 1313131313131313…, actual 9999999999999999…",)


def test_a_caller_whom_no_statement_names() -> None:
    found = explained(bound_to(FIRST), caller=f"arn:aws:iam::{ACCOUNT}:role/else")
    assert found.sentences == ("kms:Decrypt by else is denied: no statement of the key policy allows it",)
    assert found.statement is None
    assert found.fix is not None
    assert found.fix.startswith("allow kms:Decrypt to the caller")


def test_what_iam_would_have_to_allow() -> None:
    found = explained(
        bound_to(FIRST), caller=f"arn:aws:iam::{ACCOUNT}:role/x", action="kms:DescribeKey", iam=None
    )
    assert "no statement of IAM allows it" in found.sentences[0]
    assert (
        found.fix
        == f"let IAM allow kms:DescribeKey to arn:aws:iam::{ACCOUNT}:role/x: aws iam put-role-policy"
    )


def test_a_wrong_encryption_context_says_how_to_encrypt_again() -> None:
    bound = adding(
        bound_to(FIRST), Sid="Tenant", Condition={"StringNotEquals": {"kms:EncryptionContext:tenant": "a"}}
    )
    found = explained(bound, context={"kms:EncryptionContext:tenant": "b"}, planned=bound)
    assert found.sentences[-1] == "tenant in the encryption context: expected a, actual b"
    assert found.fix == "encrypt it again: necli encrypt IMAGE --context tenant=a"
    assert explained(bound, context={"kms:EncryptionContext:tenant": "a"}).decision.allowed


def test_an_unconditional_deny_has_no_condition_to_tell() -> None:
    found = explained(adding(bound_to(FIRST), Sid="Frozen"))
    assert found.sentences[1:] == ("it says: Deny everybody: Decrypt",)
    assert found.fix is not None
    assert "change Frozen" in found.fix


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (
            {"StringEquals": {"aws:SourceVpce": "vpce-1"}},
            "aws:SourceVpce: expected anything but vpce-1, actual vpce-1",
        ),
        ({"Null": {"aws:SourceVpce": "false"}}, "aws:SourceVpce: expected absent, actual vpce-1"),
        (
            {"Null": {"aws:MultiFactorAuthAge": "true"}},
            "aws:MultiFactorAuthAge: expected present, actual absent",
        ),
    ],
)
def test_what_a_deny_would_have_spared(condition: dict[str, Any], expected: str) -> None:
    found = explained(adding(bound_to(FIRST), Condition=condition), context={"aws:SourceVpce": "vpce-1"})
    assert found.sentences[-1] == expected


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"Principal": "*", "Action": "kms:*"}, "Allow everybody: everything"),
        (
            {"Principal": {"AWS": PARENT}, "Action": ["kms:Encrypt", "kms:Decrypt"]},
            "Allow parent: Encrypt, Decrypt",
        ),
        (
            {"Principal": {"AWS": ACCOUNT}, "Action": "*"},
            f"Allow anybody whom IAM of account {ACCOUNT} lets: everything",
        ),
        (
            {"Principal": {"Service": "s3.amazonaws.com"}, "NotAction": "kms:Decrypt"},
            "Allow s3.amazonaws.com: everything but Decrypt",
        ),
        (
            {"Effect": "Deny", "NotPrincipal": {"AWS": PARENT}, "Action": "kms:Decrypt"},
            "Deny everybody but parent: Decrypt",
        ),
        (
            {
                "Principal": "*",
                "Action": "kms:Decrypt",
                "Condition": {"Bool": {"aws:SecureTransport": "true"}},
            },
            "Allow everybody: Decrypt, if aws:SecureTransport is true",
        ),
        (
            {
                "Effect": "Deny",
                "Principal": "*",
                "Action": "kms:Decrypt",
                "Condition": {"StringNotEquals": {f"{PCR}0": "a", f"{PCR}1": "b"}},
            },
            "Deny everybody: Decrypt, if PCR0 is not a and PCR1 is not b",
        ),
        (
            {
                "Principal": "*",
                "Action": "kms:Decrypt",
                "Condition": {"ForAnyValue:StringLikeIfExists": {"kms:ResourceAliases": ["alias/a*"]}},
            },
            "Allow everybody: Decrypt, if some value of kms:ResourceAliases is like alias/a* or absent",
        ),
    ],
)
def test_a_statement_in_words(members: dict[str, Any], sentence: str) -> None:
    body = {"Effect": "Allow", "Resource": "*", **members}
    (statement,) = KeyPolicy.from_json({"Statement": [body]}).statements
    assert statement_in_words(statement) == sentence
