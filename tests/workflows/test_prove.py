from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from necli import kms
from necli.backends.local import LocalBackend
from necli.keypolicy import KeyPolicy
from necli.state import Build
from necli.workflows.policy import show_policy
from necli.workflows.prove import Proof, Verdict, attempts
from necli.workflows.report import proof_report
from necli.workflows.setup import set_up
from necli.workflows.workload import Workload
from tests.workflows.light_enclave import forget_key_and_build, light_enclave

EXPECTED = {
    "enclave Decrypt": "plaintext",
    "parent Decrypt": "AccessDeniedException",
    "parent ReEncrypt": "AccessDeniedException",
    "self-signed document": "ValidationException",
    "forged document": "ValidationException",
    "document taken over": "ValidationException",
    "replayed document": "ValidationException",
    "wrong PCRs": "AccessDeniedException",
    "debug PCRs": "AccessDeniedException",
    "wrong encryption context": "wrong_context",
    "missing encryption context": "wrong_context",
    "altered encryption context": "message_invalid",
    "swapped data key": "message_invalid",
    "key of the parent's own": "wrong_key",
    "key of another account": "wrong_key",
    "flipped bit in header": "message_invalid",
    "flipped bit in frame": "message_invalid",
    "flipped bit in tag": "message_invalid",
    "dropped frame": "message_invalid",
    "cut-off message": "message_invalid",
    "reordered frames": "message_invalid",
    "expired credentials": "credentials_expired",
}


@pytest.fixture(scope="module")
def running(services: Workload) -> Iterator[tuple[Workload, Build]]:
    set_up(services)
    with (
        tempfile.TemporaryDirectory(prefix="necli-") as folder,
        light_enclave(services, Path(folder)) as build,
    ):
        yield services, build
    forget_key_and_build(services)


@pytest.fixture
def workload(running: tuple[Workload, Build]) -> Iterator[Workload]:
    """Its policy is put back afterwards."""
    workload, _ = running
    policy = show_policy(workload)
    yield workload
    kms.write_policy(workload.kms("administrator"), workload.key().arn, policy)


def prove(workload: Workload) -> dict[str, Verdict]:
    return {case.name: case.verdict for case in attempts(workload)}


def change_policy(workload: Workload, *, without: str, add: dict[str, Any] | None = None) -> None:
    body = show_policy(workload).to_json()
    kept = [statement for statement in body["Statement"] if not statement["Sid"].startswith(without)]
    changed = KeyPolicy.from_json({**body, "Statement": [*kept, *([add] if add else [])]})
    kms.write_policy(workload.kms("administrator"), workload.key().arn, changed)


def test_every_attack_meets_the_refusal_that_belongs_to_it(workload: Workload) -> None:
    proof = Proof(list(attempts(workload)))
    assert {case.name: case.observed for case in proof.cases} == EXPECTED
    assert proof.verdict == Verdict.PASS


def test_json_has_verdict_and_cases_and_nothing_else(workload: Workload) -> None:
    value = json.loads(json.dumps(Proof(list(attempts(workload))).to_json()))
    assert set(value) == {"verdict", "cases"}
    assert {tuple(case) for case in value["cases"]} == {("name", "expected", "observed", "verdict")}
    assert value["cases"][0] == {
        "name": "enclave Decrypt",
        "expected": "plaintext",
        "observed": "plaintext",
        "verdict": "PASS",
    }


def test_a_policy_that_lets_the_parent_in_fails_wherever_it_gets_in(workload: Workload) -> None:
    mistake = {
        "Sid": "Mistake",
        "Effect": "Allow",
        "Principal": {"AWS": workload.backend.parent_arn},
        "Action": ["kms:Decrypt", "kms:ReEncrypt*"],
        "Resource": "*",
    }
    change_policy(workload, without="DenyDecrypt", add=mistake)
    verdicts = prove(workload)
    assert {name for name, verdict in verdicts.items() if verdict == Verdict.FAIL} == {
        "parent Decrypt", "parent ReEncrypt", "wrong PCRs", "debug PCRs",
    }  # fmt: skip
    assert verdicts["forged document"] == verdicts["self-signed document"] == Verdict.PASS


def test_refusals_prove_nothing_while_the_enclave_is_refused_too(workload: Workload) -> None:
    change_policy(workload, without="EnclaveDecrypt")
    proof = Proof(list(attempts(workload)))
    assert proof.cases[0].verdict == Verdict.INCONCLUSIVE
    assert "KMS refused the data key" in proof.cases[0].observed
    assert proof.verdict == Verdict.INCONCLUSIVE


def test_an_enclave_that_isnt_there_proves_nothing(workload: Workload) -> None:
    verdicts = {case.name: case.verdict for case in attempts(workload, "other")}
    assert verdicts["enclave Decrypt"] == verdicts["flipped bit in frame"] == Verdict.INCONCLUSIVE
    assert Verdict.FAIL not in verdicts.values()


class Page(HTMLParser):
    """The text of a report, and whatever in it would reach out."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.links += [f"{name}={value}" for name, value in attrs if name in ("href", "src", "onclick")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_stands_alone_and_says_everything(workload: Workload) -> None:
    proof = Proof(list(attempts(workload)))
    page = Page(proof_report(workload, "necli", proof, "nothing <b>else</b>"))
    assert page.links == []
    assert not page.tags.keys() & {"script", "link", "img", "iframe", "b"}
    for text in (*EXPECTED, "SIMULATED", "PASS", workload.key().arn, "EnclaveDecrypt", "Nothing <b>else</b>"):
        assert text in page.text
    for value in workload.build().measurements.pcrs().values():
        assert value.hex() in page.text
    assert all(case.tried in page.text for case in proof.cases)


def test_a_report_without_an_enclave_says_what_is_missing(workload: Workload) -> None:
    proof = Proof(list(attempts(workload, "other")))
    page = Page(proof_report(workload, "other", proof, "nothing is proven"))
    assert "can't be had: there is no enclave other" in page.text
    assert "INCONCLUSIVE" in page.text


class OnRealHardware(LocalBackend):
    """Here nobody signs documents for other enclaves, and no session is kept until it is over."""

    def expired_credentials(self) -> None:  # type: ignore[override]
        return None

    def document_of_another_enclave(self, *_: Any, **__: Any) -> None:  # type: ignore[override]
        return None


def test_what_a_target_has_no_means_for_is_left_out(workload: Workload) -> None:
    backend = OnRealHardware(workload.home, workload.backend.region)
    names = set(prove(replace(workload, backend=backend)))
    assert set(EXPECTED) - names == {"replayed document", "wrong PCRs", "debug PCRs", "expired credentials"}
