"""Each sentence of an explanation next to the denial that the service gave for the same request."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from botocore.exceptions import ClientError
from running_kms import RunningKms
from test_kms_recipient import RSA, as_recipient, document, spki

from necli.keypolicy import KeyPolicy, plan_measurements
from necli.keypolicy.explain import Explanation, explain
from necli.keypolicy.measurement_set import IMAGE as IMAGE_SHA384
from necli.keypolicy.simulation import request_of
from necli.local.identities import Identity
from necli.measurements import ZERO, Measurements

IMAGE = Measurements(b"\x01" * 48, b"\x02" * 48, b"\x03" * 48)
OTHER = Measurements(b"\x01" * 48, b"\x02" * 48, b"\x13" * 48)
CONTEXT = {"tenant": "a"}
DENY = "denied by the key policy: the first statement that decides is"


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningKms]:
    running = RunningKms(tmp_path_factory.mktemp("kms"))
    running.start()
    yield running
    running.stop()


@dataclass(frozen=True)
class Asked:
    """One Decrypt, put to the service and to `explain`."""

    refusal: str | None
    explanation: Explanation


def ask(
    kms: RunningKms,
    policy: KeyPolicy,
    pcrs: Mapping[int, bytes] | None,
    *,
    who: Identity | None = None,
    context: Mapping[str, str] = CONTEXT,
) -> Asked:
    caller, key = who or kms.identities.parent, kms.new_key(policy)
    blob = kms.owner.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext=context)["CiphertextBlob"]
    given = {"Recipient": as_recipient(document(kms.pki, pcrs, spki(RSA)))} if pcrs else {}
    refusal = None
    try:
        kms.client(caller).decrypt(CiphertextBlob=blob, EncryptionContext=context, **given)
    except ClientError as exc:
        refusal = exc.response["Error"]["Message"]
    attested = {f"PCR{index}": value.hex() for index, value in (pcrs or {}).items()}
    if "PCR0" in attested:
        attested[IMAGE_SHA384] = attested["PCR0"]
    pairs = {f"kms:EncryptionContext:{name}": value for name, value in context.items()}
    request = request_of(caller.session_arn, "kms:Decrypt", key, attested, pairs)
    planned = plan_measurements(policy, IMAGE, parent_arn=kms.identities.parent.role_arn).after
    return Asked(refusal, explain(policy, request, identity_policy=caller.policy, planned=planned))


def bound(kms: RunningKms, *added: dict[str, Any]) -> KeyPolicy:
    change = plan_measurements(kms.initial_policy(), IMAGE, parent_arn=kms.identities.parent.role_arn)
    body = copy.deepcopy(dict(change.after.to_json()))
    defaults = {"Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*"}
    return KeyPolicy.from_json(
        {**body, "Statement": [*body["Statement"], *({**defaults, **s} for s in added)]}
    )


def test_what_the_service_allows_is_allowed(kms: RunningKms) -> None:
    asked = ask(kms, bound(kms), IMAGE.pcrs())
    assert asked.refusal is None
    assert asked.explanation.sentences == (
        "kms:Decrypt by necli-parent-instance is allowed by the key policy: EnclaveDecrypt",
    )


@pytest.mark.parametrize(
    ("pcrs", "sid", "values"),
    [
        (OTHER.pcrs(), "DenyDecryptUnlessPCR2", "PCR2: expected 0303030303030303…, actual 1313131313131313…"),
        (None, "DenyDecryptUnlessPCR0", "PCR0: expected 0101010101010101…, actual absent"),
        (
            dict.fromkeys(range(3), ZERO),
            "DenyDecryptUnlessPCR0",
            "PCR0: expected 0101010101010101…, actual 000000… (zeros: debug mode)",
        ),
    ],
    ids=["another image", "no document", "debug mode"],
)
def test_the_denying_statement_is_named_with_both_values(
    kms: RunningKms, pcrs: Mapping[int, bytes] | None, sid: str, values: str
) -> None:
    asked = ask(kms, bound(kms), pcrs)
    assert asked.refusal is not None
    assert asked.refusal.endswith("with an explicit deny in a resource-based policy")
    assert asked.explanation.sentences[0].endswith(f"{DENY} {sid}")
    assert asked.explanation.sentences[-1] == values
    assert f"{sid}: kms:RecipientAttestation" in kms.log


def test_an_update_mends_what_it_is_said_to_mend(kms: RunningKms) -> None:
    asked = ask(kms, kms.initial_policy(), IMAGE.pcrs())
    assert asked.refusal is not None
    assert asked.explanation.fix == "run necli policy update"
    assert ask(kms, bound(kms), IMAGE.pcrs()).refusal is None


def test_the_closest_allow_is_named_where_nothing_denies(kms: RunningKms) -> None:
    allows = [each for each in bound(kms).to_json()["Statement"] if each["Effect"] == "Allow"]
    asked = ask(kms, KeyPolicy.from_json({"Statement": allows}), OTHER.pcrs())
    assert asked.refusal is not None
    assert asked.refusal.endswith("because no resource-based policy allows the kms:Decrypt action")
    assert asked.explanation.sentences[0].endswith("no statement allows it, and EnclaveDecrypt comes closest")
    assert asked.explanation.sentences[-1] == "PCR2: expected 0303030303030303…, actual 1313131313131313…"


def test_a_caller_whom_no_statement_names(kms: RunningKms) -> None:
    asked = ask(kms, bound(kms), IMAGE.pcrs(), who=kms.identities.owner)
    assert asked.refusal is not None
    assert asked.refusal.endswith("because no resource-based policy allows the kms:Decrypt action")
    assert asked.explanation.sentences[0].endswith("is denied: no statement of the key policy allows it")


def test_what_only_iam_refuses(kms: RunningKms) -> None:
    delegates = {"Effect": "Allow", "Principal": {"AWS": "111122223333"}, "Action": "kms:*", "Resource": "*"}
    asked = ask(kms, KeyPolicy.from_json({"Statement": delegates}), None, who=kms.identities.owner)
    assert asked.refusal is not None
    assert asked.refusal.endswith("because no identity-based policy allows the kms:Decrypt action")
    assert asked.explanation.decision.policy == "identity"


def test_a_wrong_encryption_context_and_the_right_one(kms: RunningKms) -> None:
    key = "kms:EncryptionContext:tenant"
    policy = bound(kms, {"Sid": "Tenant", "Condition": {"StringNotEquals": {key: "a"}}})
    asked = ask(kms, policy, IMAGE.pcrs(), context={"tenant": "b"})
    assert asked.refusal is not None
    assert asked.explanation.sentences[0].endswith(f"{DENY} Tenant")
    assert asked.explanation.sentences[-1] == "tenant in the encryption context: expected a, actual b"
    assert asked.explanation.fix == "encrypt it again: necli encrypt IMAGE --context tenant=a"
    assert ask(kms, policy, IMAGE.pcrs(), context={"tenant": "a"}).refusal is None


def test_a_statement_of_somebody_else_that_no_update_mends(kms: RunningKms) -> None:
    key = "kms:RecipientAttestation:PCR1"
    policy = bound(kms, {"Sid": "By hand", "Condition": {"StringNotEquals": {key: "ab" * 48}}})
    asked = ask(kms, policy, IMAGE.pcrs())
    assert asked.refusal is not None
    assert asked.explanation.fix is not None
    assert asked.explanation.fix.startswith("change By hand in the output of necli policy show --json")
