"""Condition operators against IAM's rules: a table of operator, policy value, request value, outcome."""

from __future__ import annotations

import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from necli.keypolicy.conditions import Condition, wildcard_match

ARN = "arn:aws:iam::111122223333:role/necli-parent-instance"
ABSENT: list[str] = []

# fmt: off
MATRIX = [
    # operator, values in the policy, values in the request, does it hold
    ("StringEquals", ["a"], ["a"], True),
    ("StringEquals", ["a"], ["A"], False),
    ("StringEquals", ["a", "b"], ["b"], True),
    ("StringEquals", ["a*"], ["ab"], False),
    ("StringEquals", [""], ABSENT, False),
    ("StringEquals", ["a"], ABSENT, False),
    ("StringNotEquals", ["a"], ["a"], False),
    ("StringNotEquals", ["a"], ["b"], True),
    ("StringNotEquals", ["a", "b"], ["b"], False),
    ("StringNotEquals", ["a", "b"], ["c"], True),
    ("StringNotEquals", ["a"], ABSENT, True),
    ("StringEqualsIgnoreCase", ["aB"], ["Ab"], True),
    ("StringEqualsIgnoreCase", ["aB"], ["a"], False),
    ("StringEqualsIgnoreCase", ["aB"], ABSENT, False),
    ("StringNotEqualsIgnoreCase", ["aB"], ["Ab"], False),
    ("StringNotEqualsIgnoreCase", ["aB"], ["c"], True),
    ("StringNotEqualsIgnoreCase", ["aB"], ABSENT, True),
    ("StringLike", ["a*"], ["abc"], True),
    ("StringLike", ["a?c"], ["abc"], True),
    ("StringLike", ["a?c"], ["ac"], False),
    ("StringLike", ["*"], ABSENT, False),
    ("StringLike", ["A*"], ["abc"], False),
    ("StringNotLike", ["a*"], ["abc"], False),
    ("StringNotLike", ["a*"], ["bc"], True),
    ("StringNotLike", ["*"], ABSENT, True),
    ("StringEqualsIfExists", ["a"], ABSENT, True),
    ("StringEqualsIfExists", ["a"], ["b"], False),
    ("StringNotEqualsIfExists", ["a"], ABSENT, True),
    ("StringNotEqualsIfExists", ["a"], ["a"], False),
    ("BoolIfExists", ["false"], ABSENT, True),
    ("Bool", ["true"], ["true"], True),
    ("Bool", ["True"], ["true"], True),
    ("Bool", ["true"], ["false"], False),
    ("Bool", ["false"], ABSENT, False),
    ("Null", ["true"], ABSENT, True),
    ("Null", ["true"], ["x"], False),
    ("Null", ["false"], ABSENT, False),
    ("Null", ["false"], ["x"], True),
    ("ArnEquals", [ARN], [ARN], True),
    ("ArnEquals", ["arn:aws:iam::*:role/*"], [ARN], True),
    ("ArnLike", ["arn:aws:iam::*:role/necli-*"], [ARN], True),
    ("ArnLike", ["arn:aws:iam::999999999999:role/*"], [ARN], False),
    ("ArnLike", ["arn:*"], [ARN], False),
    ("ArnLike", ["*"], [ARN], False),
    ("ArnLike", [ARN], ["not an arn"], False),
    ("ArnLike", ["arn:aws:iam::111122223333:*/necli"], ["arn:aws:iam::111122223333:role/a:b/necli"], True),
    ("ArnLike", ["arn:aws:*:111122223333:role/x"], ["arn:aws:iam::111122223333:role/x"], False),
    ("ArnLike", [ARN], ABSENT, False),
    ("ArnNotLike", ["arn:aws:iam::*:role/*"], [ARN], False),
    ("ArnNotEquals", ["arn:aws:iam::999999999999:role/*"], [ARN], True),
    ("ArnNotEquals", [ARN], ABSENT, True),
    ("NumericEquals", ["7"], ["7.0"], True),
    ("NumericEquals", ["7"], ["seven"], False),
    ("NumericEquals", ["nan"], ["nan"], False),
    ("NumericNotEquals", ["7"], ["8"], True),
    ("NumericNotEquals", ["7"], ABSENT, True),
    ("NumericLessThan", ["7"], ["6"], True),
    ("NumericLessThan", ["7"], ["7"], False),
    ("NumericLessThan", ["10"], ["9"], True),
    ("NumericLessThanEquals", ["7"], ["7"], True),
    ("NumericGreaterThan", ["7"], ["8"], True),
    ("NumericGreaterThan", ["7"], ABSENT, False),
    ("NumericGreaterThanEquals", ["7"], ["6"], False),
    ("DateLessThan", ["2030-01-01T00:00:00Z"], ["2029-12-31T23:59:59Z"], True),
    ("DateLessThan", ["2030-01-01"], ["2030-01-01T00:00:00Z"], False),
    ("DateGreaterThan", ["2030-01-01T00:00:00Z"], ["2030-01-01T01:00:00+02:00"], False),
    ("DateGreaterThanEquals", ["0"], ["1970-01-01T00:00:00Z"], True),
    ("DateEquals", ["1970-01-01T00:00:01Z"], ["1"], True),
    ("DateNotEquals", ["1970-01-01T00:00:01Z"], ["2"], True),
    ("DateLessThan", ["soon"], ["2029-12-31T23:59:59Z"], False),
    ("DateLessThan", ["9" * 40], ["2029-12-31T23:59:59Z"], False),
    ("BinaryEquals", ["QQ=="], ["QQ=="], True),
    ("BinaryEquals", ["QQ=="], ["Qg=="], False),
    ("BinaryEquals", ["QQ=="], ["?"], False),
    ("IpAddress", ["10.0.0.0/8"], ["10.1.2.3"], True),
    ("IpAddress", ["10.0.0.0/8"], ["11.1.2.3"], False),
    ("IpAddress", ["10.1.2.3"], ["10.1.2.3"], True),
    ("IpAddress", ["2001:db8::/32"], ["2001:db8::1"], True),
    ("IpAddress", ["2001:db8::/32"], ["10.1.2.3"], False),
    ("IpAddress", ["nowhere"], ["10.1.2.3"], False),
    ("NotIpAddress", ["10.0.0.0/8"], ["10.1.2.3"], False),
    ("NotIpAddress", ["10.0.0.0/8"], ["11.1.2.3"], True),
    ("NotIpAddress", ["10.0.0.0/8"], ABSENT, True),
    ("ForAllValues:StringEquals", ["a", "b"], ["a"], True),
    ("ForAllValues:StringEquals", ["a", "b"], ["a", "b"], True),
    ("ForAllValues:StringEquals", ["a", "b"], ["a", "c"], False),
    ("ForAllValues:StringEquals", ["a"], ABSENT, True),
    ("ForAllValues:StringNotEquals", ["a"], ["b", "c"], True),
    ("ForAllValues:StringNotEquals", ["a"], ["a", "c"], False),
    ("ForAllValues:StringNotEquals", ["a"], ABSENT, True),
    ("ForAllValues:StringLike", ["a*"], ["a", "ab"], True),
    ("ForAnyValue:StringEquals", ["a", "b"], ["c", "b"], True),
    ("ForAnyValue:StringEquals", ["a", "b"], ["c"], False),
    ("ForAnyValue:StringEquals", ["a"], ABSENT, False),
    ("ForAnyValue:StringNotEquals", ["a"], ["a", "b"], True),
    ("ForAnyValue:StringNotEquals", ["a"], ["a"], False),
    ("ForAnyValue:StringNotEquals", ["a"], ABSENT, False),
    ("ForAnyValue:StringEqualsIfExists", ["a"], ABSENT, True),
    ("ForAnyValue:ArnLike", ["arn:aws:iam::*:role/*"], [ARN], True),
]
# fmt: on


@pytest.mark.parametrize(("operator", "expected", "actual", "holds"), MATRIX)
def test_an_operator_holds_as_iam_documents_it(
    operator: str, expected: list[str], actual: list[str], holds: bool
) -> None:
    condition = Condition(operator, "aws:Key", tuple(expected))
    assert condition.known
    assert condition.holds({"aws:key": actual} if actual else {}) is holds


@pytest.mark.parametrize(
    ("operator", "values"),
    [
        ("StringMatches", ["a"]),
        ("stringequals", ["a"]),
        ("ForSomeValues:StringEquals", ["a"]),
        ("NullIfExists", ["true"]),
        ("ForAllValues:Null", ["true"]),
        ("StringEquals", ["${aws:username}"]),
    ],
)
def test_what_is_not_known_is_not_decided(operator: str, values: list[str]) -> None:
    condition = Condition(operator, "aws:Key", tuple(values))
    assert not condition.known
    assert condition.holds({"aws:key": ["a"]}) is None


def test_condition_keys_are_the_same_in_any_case() -> None:
    assert Condition("StringEquals", "KMS:calleraccount", ("1",)).holds({"kms:calleraccount": ["1"]})


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("kms:*", "kms:Decrypt", True),
        ("kms:De*t", "kms:Decrypt", True),
        ("*", "", True),
        ("?", "", False),
        ("a**b", "ab", True),
        ("a*b*a", "aba", True),
        ("a*a", "a", False),
        ("[ab]", "a", False),
        ("[ab]", "[ab]", True),
        ("a.c", "abc", False),
        ("a*", "a\nb", True),
        ("*b", "a\nb", True),
    ],
)
def test_wildcards_are_those_of_iam_and_no_regular_expression(pattern: str, text: str, matches: bool) -> None:
    assert wildcard_match(pattern, text) is matches


def test_a_pattern_of_many_stars_takes_no_exponential_time() -> None:
    start = time.perf_counter()
    assert not wildcard_match("*a" * 40 + "b", "a" * 5000)
    assert time.perf_counter() - start < 1


_TEXT = st.text(alphabet=string.ascii_letters + "*?.[]\\", max_size=12)


def _reference_match(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "*":
        return _reference_match(pattern[1:], text) or (bool(text) and _reference_match(pattern, text[1:]))
    return bool(text) and pattern[0] in ("?", text[0]) and _reference_match(pattern[1:], text[1:])


@given(st.text(alphabet="ab*?", max_size=8), st.text(alphabet="ab", max_size=10))
def test_wildcards_match_what_a_plain_recursive_definition_matches(pattern: str, text: str) -> None:
    assert wildcard_match(pattern, text) == _reference_match(pattern, text)


@given(
    st.sampled_from(
        [
            ("StringEquals", "StringNotEquals"),
            ("StringEqualsIgnoreCase", "StringNotEqualsIgnoreCase"),
            ("StringLike", "StringNotLike"),
            ("ArnLike", "ArnNotLike"),
            ("NumericEquals", "NumericNotEquals"),
            ("DateEquals", "DateNotEquals"),
            ("IpAddress", "NotIpAddress"),
        ]
    ),
    st.lists(_TEXT, max_size=3),
    st.lists(_TEXT, max_size=3),
)
def test_a_negated_operator_is_the_opposite_of_its_plain_form(
    pair: tuple[str, str], expected: list[str], actual: list[str]
) -> None:
    context = {"aws:key": actual}
    plain, negated = (Condition(operator, "aws:Key", tuple(expected)).holds(context) for operator in pair)
    assert plain is not negated
