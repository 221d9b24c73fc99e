"""Tries to break the promise: can the parent instance read, or alter, what was encrypted for the enclave?

A refusal counts as proof only if it is the one that belongs to the attack, for a message that the enclave
opens under the same policy in the same run. Anything else (a typo, a dead KMS) proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from necli.errors import NecliError
from necli.workflows.attacks import ATTACKS, Attack, NotTriable, Scene
from necli.workflows.workload import ENCLAVE, Workload


class Verdict(StrEnum):
    PASS = "PASS"  # noqa: S105
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Case:
    name: str
    expected: str
    observed: str
    verdict: Verdict
    tried: str
    """A sentence for somebody who doesn't know necli."""


@dataclass(frozen=True)
class Proof:
    cases: Sequence[Case]

    @property
    def verdict(self) -> Verdict:
        """The worst of all cases."""
        verdicts = {case.verdict for case in self.cases}
        return next(v for v in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS) if v in verdicts)

    def to_json(self) -> dict[str, Any]:
        cases = [
            {"name": c.name, "expected": c.expected, "observed": c.observed, "verdict": c.verdict.value}
            for c in self.cases
        ]
        return {"verdict": self.verdict.value, "cases": cases}


def attempts(workload: Workload, name: str = ENCLAVE) -> Iterator[Case]:
    """One data key and one message, made now: the enclave opens it, and nobody else gets anywhere with it.

    First the positive control: the message is good and the policy is in force. Then every attack that this
    target has the means for.
    """
    scene = Scene(workload, name)
    yield _control(lambda: scene.ask_enclave(scene.message))
    for attack in ATTACKS:
        try:
            yield _attempt(attack, scene)
        except NotTriable:
            continue


def _control(decrypt: Callable[[], None]) -> Case:
    name, expected = "enclave Decrypt", "plaintext"
    tried = "The enclave decrypts the message, as it should: without this, no refusal below means anything."
    try:
        decrypt()
    except NecliError as exc:
        return Case(name, expected, _described(exc), Verdict.INCONCLUSIVE, tried)
    return Case(name, expected, expected, Verdict.PASS, tried)


def _attempt(attack: Attack, scene: Scene) -> Case:
    name, expected, tried = attack.name, attack.expected, attack.tried
    try:
        attack.make(scene)
    except NecliError as exc:
        if exc.code == expected:
            return Case(name, expected, expected, Verdict.PASS, tried)
        return Case(name, expected, _described(exc), Verdict.INCONCLUSIVE, tried)
    return Case(name, expected, "it was not refused", Verdict.FAIL, tried)


def _described(error: NecliError) -> str:
    return f"{error.code or type(error).__name__}: {error.message}"
