"""Policies good and bad: what is kept, what isn't a policy, and what PutKeyPolicy refuses."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from necli.keypolicy import KeyPolicy, MalformedPolicy

STATEMENT = {"Sid": "Enable IAM User Permissions", "Effect": "Allow", "Principal": {"AWS": "111122223333"}}
STATEMENT |= {"Action": ["kms:*"], "Resource": "*"}


def policy(**changes: Any) -> str:
    statement = {key: value for key, value in {**STATEMENT, **changes}.items() if value is not None}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def test_a_policy_is_written_back_as_it_was_read() -> None:
    text = json.dumps({"Statement": [STATEMENT], "Id": "x", "Version": "2012-10-17"}, indent=2)
    assert KeyPolicy.from_json(text).to_text() == text


def test_a_single_statement_needs_no_list() -> None:
    parsed = KeyPolicy.from_json({"Version": "2012-10-17", "Statement": STATEMENT})
    assert [statement.sid for statement in parsed.statements] == ["Enable IAM User Permissions"]
    assert parsed.to_json()["Statement"] == STATEMENT


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"Statement": NaN}', "not valid JSON"),
        ('{"Statement": ' + "1" * 5000 + "}", "not valid JSON"),
        ("[]", "not a JSON object with a Statement"),
        ("{}", "not a JSON object with a Statement"),
        ('{"Statement": ["x"]}', "statement isn't a JSON object"),
        ('{"Statement": null}', "statement isn't a JSON object"),
        ('{"Statement": [], "Statement": []}', "same key twice"),
        (policy(Effect="Permit"), "neither Allow nor Deny"),
        (policy(Effect=None), "neither Allow nor Deny"),
        (policy(Sid=7), "Sid isn't a string"),
        (policy(Action=None), "no Action"),
        (policy(Action=7), "Action isn't a string"),
        (policy(NotAction="kms:Decrypt"), "both Action and NotAction"),
        (policy(Principal=["*"]), "neither \\* nor a JSON object"),
        (policy(Principal={"AWS": 111122223333}), "Principal isn't a string"),
        (policy(Condition=[]), "JSON object of JSON objects"),
        (policy(Condition={"Bool": "true"}), "JSON object of JSON objects"),
        (policy(Condition={"Bool": {"aws:x": {}}}), "neither string, number nor boolean"),
        (policy(Condition={"Bool": {"aws:x": None}}), "neither string, number nor boolean"),
    ],
)
def test_what_is_no_policy_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(MalformedPolicy, match=reason):
        KeyPolicy.from_json(text)


@given(st.text(max_size=200))
def test_any_text_is_a_policy_or_malformed(text: str) -> None:
    with contextlib.suppress(MalformedPolicy):
        KeyPolicy.from_json(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*STATEMENT, "NotPrincipal", "NotAction", "Condition", "Bool", "AWS", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_as_a_statement_is_parsed_or_malformed(statement: Any) -> None:
    with contextlib.suppress(MalformedPolicy):
        list(KeyPolicy.from_json(json.dumps({"Statement": statement})).problems())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (policy(Principal=None), "no principal"),
        (policy(Principal={}), "no principal"),
        (policy(Principal={"AWS": []}), "no principal"),
        (policy(Principal={"AWS": "necli-parent"}), "invalid principals"),
        (policy(Principal={"AWS": "arn:aws:iam::111122223333:role/*"}), "invalid principals"),
        (policy(Principal={"AWS": "arn:aws:iam::1111:role/x"}), "invalid principals"),
        (policy(Principal={"Role": "x"}), "invalid principals"),
        (policy(Principal=None, NotPrincipal={"AWS": "111122223333"}), "NotPrincipal"),
        (policy(Action="Decrypt"), "invalid actions"),
        (policy(Action=[]), "invalid actions"),
        (policy(Resource=None), "no resource"),
        (policy(Resource="${aws:username}"), "policy variables"),
        (policy(Conditions={}), "unknown elements: Conditions"),
        (policy(Condition={"StringMatches": {"kms:ViaService": "x"}}), "StringMatches on kms:ViaService"),
        (policy(Condition={"StringEquals": {"kms:RecipientAttestation:PCRO": "x"}}), "does not exist"),
        (policy(Condition={"StringEquals": {"kms:RecipientAttestation:PCR32": "x"}}), "does not exist"),
        (policy(Condition={"StringEquals": {"PCR0": "x"}}), "does not exist"),
        (policy(Condition={"StringEquals": {"aws:PrincipalTag/a": "${aws:username}"}}), "not supported"),
        ('{"Version": "2020-01-01", "Statement": []}', "Version"),
        ('{"Version": "2012-10-17", "Statement": []}', "no statement"),
        ('{"Version": "2012-10-17", "Statement": [], "Statements": []}', "unknown elements: Statements"),
    ],
)
def test_what_kms_would_refuse_is_a_problem(text: str, reason: str) -> None:
    assert any(reason in problem for problem in KeyPolicy.from_json(text).problems())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"Sid": None},
        {"Principal": "*"},
        {"Principal": {"AWS": ["arn:aws:iam::111122223333:role/a/b", "*"], "Service": "ec2.amazonaws.com"}},
        {"Action": "*"},
        {"Condition": {"ForAnyValue:StringLike": {"kms:ResourceAliases": "alias/*"}}},
        {"Condition": {"StringEquals": {"kms:EncryptionContext:necli:workload": "x"}}},
        {"Condition": {"Bool": {"aws:SecureTransport": True}, "NumericLessThan": {"aws:x": 7}}},
        {"Condition": {"StringEqualsIgnoreCase": {"KMS:RecipientAttestation:imagesha384": "x"}}},
    ],
)
def test_a_policy_that_kms_accepts_has_no_problem(changes: dict[str, Any]) -> None:
    assert list(KeyPolicy.from_json(policy(**changes)).problems()) == []
