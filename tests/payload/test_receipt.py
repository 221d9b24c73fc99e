"""What the attestation documents of the enclave vouch for."""

from __future__ import annotations

import hashlib
import json

import pytest

from enclave_payload.receipt import attestation_user_data, canonical_json, receipt_user_data, six_digits

ANSWER = {"objects": [{"name": "Zebra é", "score": 0.5, "box": [0.0, 0.1, 1.0, 0.25]}], "schema": 1}


def test_canonical_json_is_sorted_compact_and_in_utf_8() -> None:
    assert canonical_json({"b": [1, 0.5], "a": "é"}) == '{"a":"é","b":[1,0.5]}'.encode()


def test_the_order_of_members_does_not_matter() -> None:
    assert receipt_user_data(ANSWER) == receipt_user_data(dict(reversed(ANSWER.items())))


def test_an_answer_keeps_its_digest_on_the_way_through_json() -> None:
    assert receipt_user_data(json.loads(json.dumps(ANSWER, indent=2))) == receipt_user_data(ANSWER)


def test_a_receipt_is_the_digest_of_its_domain_and_the_canonical_answer() -> None:
    expected = hashlib.sha384(b"necli:receipt:v1\0" + canonical_json(ANSWER)).digest()
    assert receipt_user_data(ANSWER) == expected


def test_outside_user_data_cannot_pass_for_a_receipt() -> None:
    for forged in (canonical_json(ANSWER), b"necli:receipt:v1\0" + canonical_json(ANSWER)):
        assert attestation_user_data(forged) != receipt_user_data(ANSWER)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_does_not_know_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"score": value})


def test_six_digits_survive() -> None:
    assert six_digits(0.12345649) == 0.123456
    assert six_digits(1) == 1.0
