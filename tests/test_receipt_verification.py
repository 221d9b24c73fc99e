from __future__ import annotations

import base64
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cbor2
import pytest

from enclave_payload.receipt import receipt_user_data
from necli.attestation import NITRO_ROOT, TrustedRoot
from necli.errors import AttestationInvalid, InputError
from necli.local.nsm import SimulatedNsm
from necli.local.pki import LocalPki
from necli.receipt import Receipt, find_receipts

PCRS = {0: b"\1" * 48, 1: b"\2" * 48, 2: b"\3" * 48}
ANSWER: dict[str, Any] = {
    "schema": 1,
    "input_digest": "ab" * 48,
    "model_digest": "cd" * 48,
    "min_score": 0.4,
    "objects": [{"name": "Flugzeug ✈", "score": 0.731234, "box": [0.1, 0.2, 0.3, 1.0]}],
}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> LocalPki:
    return LocalPki.ensure(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def receipt(pki: LocalPki) -> Receipt:
    """As an enclave makes it: its NSM signs the digest that the payload computes."""
    nonce = os.urandom(32)
    fields = {"user_data": receipt_user_data(ANSWER), "nonce": nonce, "public_key": None}
    request = cbor2.dumps({"Attestation": fields})
    answer = cbor2.loads(SimulatedNsm(pki, "i-test-enc0", PCRS).handle(request))
    return Receipt(ANSWER, answer["Attestation"]["document"], nonce)


def verify(receipt: Receipt, root: TrustedRoot, **changes: Any) -> None:
    receipt.verify(**{"roots": [root], "expected": PCRS, "at": datetime.now(UTC), **changes})


def test_a_receipt_verifies_after_a_round_trip_through_json(receipt: Receipt, pki: LocalPki) -> None:
    [(name, found)] = find_receipts({"results": [{"file": "a.jpg", "receipt": receipt.to_json()}]})
    assert name == "a.jpg"
    verify(found, pki.simulated_root, message_digest=ANSWER["input_digest"])


def changed(path: str, value: object) -> Callable[[Receipt], Receipt]:
    return lambda receipt: replace(receipt, answer={**receipt.answer, path: value})


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (changed("objects", []), "user_data_mismatch"),
        (changed("model_digest", "00" * 48), "user_data_mismatch"),
        (changed("more", 1), "user_data_mismatch"),
        (lambda r: replace(r, nonce=bytes(32)), "nonce_mismatch"),
        (lambda r: replace(r, nonce=b""), "nonce_mismatch"),
        (lambda r: replace(r, document=r.document[:-1] + b"\0"), "bad_signature"),
        (lambda r: replace(r, document=b""), "malformed"),
    ],
)
def test_a_receipt_with_one_thing_changed_is_refused(
    receipt: Receipt, pki: LocalPki, change: Callable[[Receipt], Receipt], code: str
) -> None:
    with pytest.raises(AttestationInvalid) as caught:
        verify(change(receipt), pki.simulated_root)
    assert caught.value.code == code


def test_a_receipt_of_another_image_is_refused(receipt: Receipt, pki: LocalPki) -> None:
    with pytest.raises(AttestationInvalid, match="PCR1"):
        verify(receipt, pki.simulated_root, expected={**PCRS, 1: bytes(47) + b"\1"})


def test_a_receipt_without_expected_pcrs_proves_nothing(receipt: Receipt, pki: LocalPki) -> None:
    with pytest.raises(AttestationInvalid, match="any image at all would pass"):
        verify(receipt, pki.simulated_root, expected={})


def test_a_receipt_about_another_message_is_refused(receipt: Receipt, pki: LocalPki) -> None:
    with pytest.raises(AttestationInvalid, match="another message"):
        verify(receipt, pki.simulated_root, message_digest="00" * 48)


def test_a_simulated_receipt_does_not_pass_for_a_real_one(receipt: Receipt) -> None:
    with pytest.raises(AttestationInvalid, match="isn't a trusted one"):
        verify(receipt, NITRO_ROOT)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"results": []},
        {"results": [{"file": "a", "error": {}}]},
        {"answer": {}, "document": "%%%", "nonce": ""},
        {"answer": [], "document": "", "nonce": ""},
        {"answer": {}, "document": base64.b64encode(b"x").decode()},
        {"results": [{"file": "a", "receipt": "x"}]},
    ],
)
def test_what_is_no_receipt_is_told(value: object) -> None:
    with pytest.raises(InputError) as caught:
        find_receipts(value)
    assert caught.value.code == "not_a_receipt"


def test_an_answer_with_a_number_that_json_lacks_is_refused(receipt: Receipt, pki: LocalPki) -> None:
    with pytest.raises(AttestationInvalid, match="number"):
        verify(changed("min_score", float("nan"))(receipt), pki.simulated_root)


def test_the_state_folder_holds_the_root_under_its_documented_name(pki: LocalPki) -> None:
    assert Path(pki.simulated_root_pem).name == "simulated-root.pem"
