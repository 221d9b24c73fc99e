"""Tries to break the promise: can the parent instance read what was encrypted for the enclave?

A refusal counts as proof only if it is KMS's AccessDeniedException, for a data key that the enclave opens
under the same policy in the same run. Anything else (a typo, a dead KMS) proves nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from necli import kms
from necli.envelope import SealedMessage, WrappedKey, seal
from necli.errors import NecliError
from necli.keypolicy import KeyPolicy
from necli.workflows.detect import EnclaveSession
from necli.workflows.workload import ENCLAVE, Workload

REFUSED = "AccessDeniedException"
DESTINATION_ALIAS = "alias/necli-prove-destination"


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
    """One data key, made now: the enclave opens it, and the parent must not.

    1. The enclave decrypts it: the key is good and the policy is in force (the positive control).
    2. The parent asks KMS to decrypt it.
    3. The parent asks KMS to re-encrypt it under another key, which it could use: the way around.
    """

    @cache
    def sealed() -> SealedMessage:
        return _seal_picture(workload)

    yield _control(lambda: EnclaveSession(workload, name).detect_message(sealed().message))
    yield _attempt("parent Decrypt", lambda: _decrypt(workload, sealed().data_key))
    yield _attempt("parent ReEncrypt", lambda: _reencrypt(workload, sealed().data_key))


def _control(decrypt: Callable[[], None]) -> Case:
    name, expected = "enclave Decrypt", "plaintext"
    try:
        decrypt()
    except NecliError as exc:
        return Case(name, expected, _described(exc), Verdict.INCONCLUSIVE)
    return Case(name, expected, expected, Verdict.PASS)


def _attempt(name: str, attack: Callable[[], None]) -> Case:
    try:
        attack()
    except NecliError as exc:
        verdict = Verdict.PASS if exc.code == REFUSED else Verdict.INCONCLUSIVE
        return Case(name, REFUSED, REFUSED if verdict == Verdict.PASS else _described(exc), verdict)
    return Case(name, REFUSED, "the parent got the data key", Verdict.FAIL)


def _described(error: NecliError) -> str:
    return f"{error.code or type(error).__name__}: {error.message}"


def _seal_picture(workload: Workload) -> SealedMessage:
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(picture, "PNG")
    return seal(
        picture.getvalue(),
        kms=workload.kms("owner"),
        key_arn=workload.key().arn,
        context=workload.required_context(),
    )


def _decrypt(workload: Workload, data_key: WrappedKey) -> None:
    with kms.kms_errors("decrypt the data key as the parent"):
        workload.kms("parent").decrypt(
            KeyId=data_key.key_arn,
            CiphertextBlob=data_key.ciphertext,
            EncryptionContext=dict(data_key.encryption_context),
        )


def _reencrypt(workload: Workload, data_key: WrappedKey) -> None:
    destination = _key_of_the_parents_own(workload)
    with kms.kms_errors("re-encrypt the data key as the parent"):
        workload.kms("parent").re_encrypt(
            CiphertextBlob=data_key.ciphertext,
            SourceKeyId=data_key.key_arn,
            SourceEncryptionContext=dict(data_key.encryption_context),
            DestinationKeyId=destination,
        )


def _key_of_the_parents_own(workload: Workload) -> str:
    """A key that the parent may use in every way, as an attacker would have; made once.

    That the parent can encrypt under it shows that a refusal is about our key, not about this one.
    """
    administrator = workload.kms("administrator")
    arn = kms.find_key(administrator, DESTINATION_ALIAS)
    if arn is None:
        policy = _open_policy(workload)
        arn = kms.create_key(administrator, policy, "necli prove: where an attacker would move a data key")
        kms.point_alias(administrator, DESTINATION_ALIAS, arn)
    with kms.kms_errors("encrypt under a key of the parent's own"):
        workload.kms("parent").encrypt(KeyId=arn, Plaintext=b"necli prove")
    return arn


def _open_policy(workload: Workload) -> KeyPolicy:
    account = workload.backend.parent_arn.split(":")[4]
    principals = [f"arn:aws:iam::{account}:root", workload.backend.parent_arn]
    statement = {"Effect": "Allow", "Principal": {"AWS": principals}, "Action": "kms:*", "Resource": "*"}
    return KeyPolicy.from_json({"Version": "2012-10-17", "Statement": [{"Sid": "All", **statement}]})
