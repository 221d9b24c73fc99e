"""The Condition block of a policy statement, as IAM defines it.

Follows "IAM JSON policy elements: Condition operators" and "Multivalued context keys": an absent key
makes a plain operator false and a negated one true, `…IfExists` true, ForAllValues true and ForAnyValue
false; several policy values are OR-ed for a plain operator and NOR-ed for a negated one.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from operator import eq, ge, gt, le, lt
from typing import Any

ContextValues = Mapping[str, Sequence[str]]
"""Condition keys in lower case (IAM doesn't tell their case apart) and the request's values for each."""


def wildcard_match(pattern: str, text: str) -> bool:
    """Whether `text` matches a pattern of IAM's: `*` for any run of characters, `?` for one."""
    return _wildcard(pattern).fullmatch(text) is not None


@lru_cache(maxsize=1024)
def _wildcard(pattern: str) -> re.Pattern[str]:
    first, *rest = (re.escape(part).replace(r"\?", ".") for part in re.split(r"\*+", pattern))
    if not rest:
        return re.compile(first, re.DOTALL)
    # Atomic groups: the shortest match of each part is enough, so no pattern takes exponential time.
    middle = "".join(f"(?>.*?{part})" for part in rest[:-1])
    return re.compile(f"{first}{middle}.*{rest[-1]}", re.DOTALL)


def _same_text_ignoring_case(expected: str, actual: str) -> bool:
    return expected.lower() == actual.lower()


def _arn_match(pattern: str, arn: str) -> bool:
    """ARNs are compared by their six parts, so that a `*` doesn't reach across a colon."""
    parts, patterns = arn.split(":", 5), pattern.split(":", 5)
    return len(parts) == len(patterns) == 6 and all(map(wildcard_match, patterns, parts))


def _number(text: str) -> Decimal:
    number = Decimal(text)
    if not number.is_finite():
        raise ValueError(text)
    return number


def _moment(text: str) -> datetime:
    """A date of the W3C's ISO 8601 profile, or seconds since the epoch."""
    if text.isdecimal():
        return datetime.fromtimestamp(int(text), UTC)
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _parsed(parse: Callable[[str], Any], compare: Callable[[Any, Any], bool]) -> Callable[[str, str], bool]:
    """A test of `actual compare expected` that is false where either of them isn't of that type."""

    def test(expected: str, actual: str) -> bool:
        try:
            return compare(parse(actual), parse(expected))
        except (ValueError, OverflowError, InvalidOperation, OSError):
            return False

    return test


def _in_network(expected: str, actual: str) -> bool:
    try:
        return ipaddress.ip_address(actual) in ipaddress.ip_network(expected, strict=False)
    except ValueError:
        return False


def _same_bytes(expected: str, actual: str) -> bool:
    try:
        return base64.b64decode(expected, validate=True) == base64.b64decode(actual, validate=True)
    except binascii.Error:
        return False


_TESTS: dict[str, Callable[[str, str], bool]] = {
    "StringEquals": eq,
    "StringEqualsIgnoreCase": _same_text_ignoring_case,
    "StringLike": wildcard_match,
    "ArnEquals": _arn_match,  # AWS: identical to ArnLike
    "ArnLike": _arn_match,
    "Bool": _same_text_ignoring_case,
    "BinaryEquals": _same_bytes,
    "IpAddress": _in_network,
    **{
        f"{kind}{name}": _parsed(parse, compare)
        for kind, parse in (("Numeric", _number), ("Date", _moment))
        for name, compare in (
            ("Equals", eq),
            ("LessThan", lt),
            ("LessThanEquals", le),
            ("GreaterThan", gt),
            ("GreaterThanEquals", ge),
        )
    },
}
_NEGATED = {
    "StringNotEquals": "StringEquals",
    "StringNotEqualsIgnoreCase": "StringEqualsIgnoreCase",
    "StringNotLike": "StringLike",
    "ArnNotEquals": "ArnEquals",
    "ArnNotLike": "ArnLike",
    "NumericNotEquals": "NumericEquals",
    "DateNotEquals": "DateEquals",
    "NotIpAddress": "IpAddress",
}


@dataclass(frozen=True)
class Condition:
    """One operator applied to one condition key: `{operator: {key: values}}`."""

    operator: str
    key: str
    values: tuple[str, ...]
    _set: str = field(init=False, repr=False)
    _name: str = field(init=False, repr=False)
    _if_exists: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        quantifier, _, name = self.operator.rpartition(":")
        object.__setattr__(self, "_set", quantifier)
        object.__setattr__(self, "_name", name.removesuffix("IfExists"))
        object.__setattr__(self, "_if_exists", name.endswith("IfExists"))

    @property
    def known(self) -> bool:
        """Whether this operator is one of IAM's, and its values are literal (no policy variables)."""
        if self._name == "Null":
            return not self._set and not self._if_exists
        return (
            self._set in ("", "ForAllValues", "ForAnyValue")
            and (self._name in _TESTS or self._name in _NEGATED)
            and not any("${" in value for value in self.values)
        )

    def holds(self, context: ContextValues) -> bool | None:
        """Whether the request meets this condition; None where it can't be decided here."""
        if not self.known:
            return None
        actual = context.get(self.key.lower(), ())
        if self._name == "Null":
            return any(_same_text_ignoring_case(value, str(not actual)) for value in self.values)
        negated = self._name in _NEGATED
        if not actual:
            return self._if_exists or self._set == "ForAllValues" or (negated and not self._set)
        test = _TESTS[_NEGATED.get(self._name, self._name)]
        met = [negated != any(test(expected, value) for expected in self.values) for value in actual]
        every = self._set == "ForAllValues" or (negated and not self._set)
        return all(met) if every else any(met)
