"""What lint finds, done for real: the request that it warns of goes through, until the fault is mended."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
from botocore.exceptions import ClientError
from running_kms import RunningKms
from test_kms_recipient import RSA, as_recipient, document, spki

from necli.keypolicy import KeyPolicy, plan_measurements
from necli.keypolicy.lint import lint
from necli.keypolicy.measurement_set import MeasurementSet
from necli.local.identities import ACCOUNT, Identity
from necli.measurements import ZERO, Measurements

IMAGE = Measurements(b"\x01" * 48, b"\x02" * 48, b"\x03" * 48)
SECOND = Measurements(b"\x11" * 48, b"\x12" * 48, b"\x13" * 48)
PCR = "kms:RecipientAttestation:PCR"
Document = dict[str, Any]


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningKms]:
    running = RunningKms(tmp_path_factory.mktemp("kms"))
    running.start()
    yield running
    running.stop()


def bound(kms: RunningKms, *images: Measurements, registers: tuple[str, ...] | None = None) -> Document:
    """necli's own policy, bound to images."""
    sets = [MeasurementSet.of(each, registers) for each in images or (IMAGE,)]
    change = plan_measurements(kms.initial_policy(), sets, parent_arn=kms.identities.parent.role_arn)
    body: Document = copy.deepcopy(dict(change.after.to_json()))
    return body


def with_statements(body: Document, *statements: Document, denies: bool = True) -> Document:
    kept = [each for each in body["Statement"] if denies or each["Effect"] == "Allow"]
    return {**body, "Statement": [*kept, *statements]}


def allow(principal: object, *actions: str) -> Document:
    names = list(actions)
    return {"Sid": "Theirs", "Effect": "Allow", "Principal": principal, "Action": names, "Resource": "*"}


def rules(body: Document, kms: RunningKms, key: str) -> set[str]:
    administrator = kms.identities.administrator.session_arn
    return {each.rule for each in lint(KeyPolicy.from_json(body), key_arn=key, caller_arn=administrator)}


def decrypts(kms: RunningKms, key: str, who: Identity, pcrs: Mapping[int, bytes] | None = None) -> bool:
    """Whether the service gives a data key to this identity; `pcrs` is what it attests."""
    blob = _blob(kms, key)
    given = {"Recipient": as_recipient(document(kms.pki, pcrs, spki(RSA)))} if pcrs else {}
    return _passes(lambda: kms.client(who).decrypt(CiphertextBlob=blob, KeyId=key, **given))


def reencrypts(kms: RunningKms, key: str, who: Identity) -> bool:
    blob, own = _blob(kms, key), kms.new_key()
    client = kms.client(who)
    return _passes(lambda: client.re_encrypt(CiphertextBlob=blob, DestinationKeyId=own))


def _blob(kms: RunningKms, key: str) -> bytes:
    made: bytes = kms.owner.encrypt(KeyId=key, Plaintext=b"data key")["CiphertextBlob"]
    return made


def _passes(call: Callable[[], object]) -> bool:
    """Any failure but a denial is one of the test."""
    try:
        call()
    except ClientError as exc:
        if exc.response["Error"]["Code"] != "AccessDeniedException":
            raise
        return False
    return True


def mended(kms: RunningKms, body: Document) -> Document:
    """As `necli policy update` leaves it."""
    parent = kms.identities.parent.role_arn
    change = plan_measurements(KeyPolicy.from_json(body), IMAGE, parent_arn=parent)
    return dict(change.after.to_json())


def put(kms: RunningKms, key: str, body: Document) -> None:
    kms.administrator.put_key_policy(KeyId=key, Policy=KeyPolicy.from_json(body).to_text())


def test_an_unconditional_allow_beside_the_conditional_one(kms: RunningKms) -> None:
    parent = kms.identities.parent
    body = with_statements(bound(kms), allow({"AWS": parent.role_arn}, "kms:Decrypt"), denies=False)
    key = kms.new_key(body)
    assert "unconditional-allow" in rules(body, kms, key)
    assert decrypts(kms, key, parent)
    put(kms, key, mended(kms, body))
    assert "unconditional-allow" not in rules(mended(kms, body), kms, key)
    assert not decrypts(kms, key, parent)
    assert decrypts(kms, key, parent, IMAGE.pcrs())


def test_root_delegation(kms: RunningKms) -> None:
    root = allow({"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, "kms:*")
    body = with_statements(bound(kms), root, denies=False)
    key = kms.new_key(body)
    assert "root-delegation" in rules(body, kms, key)
    assert decrypts(kms, key, kms.identities.parent)
    assert decrypts(kms, key, kms.identities.administrator)
    put(kms, key, mended(kms, body))
    assert not decrypts(kms, key, kms.identities.administrator)


def test_a_missing_deny_of_reencrypt(kms: RunningKms) -> None:
    parent = kms.identities.parent
    body = with_statements(bound(kms), allow({"AWS": parent.role_arn}, "kms:ReEncrypt*"))
    for each in body["Statement"]:
        if each["Effect"] == "Deny":
            each["Action"] = "kms:Decrypt"
    key = kms.new_key(body)
    assert "reencrypt-not-denied" in rules(body, kms, key)
    assert not decrypts(kms, key, parent)
    assert reencrypts(kms, key, parent)
    put(kms, key, mended(kms, body))
    assert "reencrypt-not-denied" not in rules(mended(kms, body), kms, key)
    assert not reencrypts(kms, key, parent)


def test_pcr0_only(kms: RunningKms) -> None:
    body = bound(kms, registers=("PCR0",))
    key = kms.new_key(body)
    assert "pcr0-only" in rules(body, kms, key)
    other_role = {**IMAGE.pcrs(), 3: b"\x99" * 48}
    assert decrypts(kms, key, kms.identities.parent, other_role)
    strict = bound(kms)
    key = kms.new_key(strict)
    assert "pcr0-only" not in rules(strict, kms, key)


def test_zero_pcrs(kms: RunningKms) -> None:
    text = KeyPolicy.from_json(bound(kms)).to_text()
    for value in IMAGE.pcrs().values():
        text = text.replace(value.hex(), ZERO.hex())
    body = dict(KeyPolicy.from_json(text).to_json())
    key = kms.new_key(body)
    assert "zero-pcr" in rules(body, kms, key)
    debug = Measurements(ZERO, ZERO, ZERO).pcrs()
    assert decrypts(kms, key, kms.identities.parent, debug)
    put(kms, key, mended(kms, body))
    assert not decrypts(kms, key, kms.identities.parent, debug)


def test_several_registers_in_one_deny(kms: RunningKms) -> None:
    parent = kms.identities.parent
    pcrs = {f"{PCR}{index}": value.hex() for index, value in IMAGE.pcrs().items()}
    deny = {
        **allow("*", "kms:Decrypt", "kms:ReEncrypt*"),
        "Effect": "Deny",
        "Condition": {"StringNotEqualsIgnoreCase": pcrs},
    }
    alone = allow({"AWS": parent.role_arn}, "kms:Decrypt")
    kept = [
        each for each in bound(kms)["Statement"] if "nclave" not in each["Sid"] and each["Effect"] == "Allow"
    ]
    body = {**bound(kms), "Statement": [*kept, alone, deny]}
    key = kms.new_key(body)
    assert "pcr-not-enforced" in rules(body, kms, key)
    assert not decrypts(kms, key, parent)
    assert decrypts(kms, key, parent, {**SECOND.pcrs(), 1: IMAGE.pcr1})
    assert not decrypts(kms, kms.new_key(bound(kms)), parent, {**SECOND.pcrs(), 1: IMAGE.pcr1})


def test_a_mixture_of_two_images(kms: RunningKms) -> None:
    mixed = {0: IMAGE.pcr0, 1: SECOND.pcr1, 2: SECOND.pcr2}
    body = bound(kms, IMAGE, SECOND)
    key = kms.new_key(body)
    assert "mixed-measurements" not in rules(body, kms, key)
    for image in (IMAGE, SECOND):
        assert decrypts(kms, key, kms.identities.parent, image.pcrs())
    assert not decrypts(kms, key, kms.identities.parent, mixed)
    lists = {f"{PCR}{i}": [IMAGE.pcrs()[i].hex(), SECOND.pcrs()[i].hex()] for i in range(3)}
    kept = [each for each in body["Statement"] if not each["Sid"].startswith("EnclaveDecrypt")]
    single = {
        **allow({"AWS": kms.identities.parent.role_arn}, "kms:Decrypt"),
        "Condition": {"StringEquals": lists},
    }
    body = {**body, "Statement": [*kept, single]}
    key = kms.new_key(body)
    assert "mixed-measurements" in rules(body, kms, key)
    assert decrypts(kms, key, kms.identities.parent, mixed)


@pytest.mark.parametrize("value", ["ab" * 47, "EXAMPLETOBEUPDATED"])
def test_a_value_that_no_enclave_attests_shuts_everybody_out(kms: RunningKms, value: str) -> None:
    body = bound(kms)
    deny = next(each for each in body["Statement"] if each["Sid"] == "DenyDecryptUnlessPCR1")
    deny["Condition"] = {"StringNotEqualsIgnoreCase": {f"{PCR}1": value}}
    key = kms.new_key(body)
    assert rules(body, kms, key) & {"malformed-hash", "not-bound"}
    assert not decrypts(kms, key, kms.identities.parent, IMAGE.pcrs())
    put(kms, key, mended(kms, body))
    assert decrypts(kms, key, kms.identities.parent, IMAGE.pcrs())


def test_a_key_that_is_bound_to_nothing(kms: RunningKms) -> None:
    body = {"Statement": [allow({"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, "kms:*")]}
    key = kms.new_key(body)
    assert "not-bound" in rules(body, kms, key)
    assert decrypts(kms, key, kms.identities.parent)


def test_who_may_change_the_policy_can_undo_the_protection(kms: RunningKms) -> None:
    parent = kms.identities.parent
    body = with_statements(bound(kms), allow({"AWS": parent.role_arn}, "kms:PutKeyPolicy"))
    key = kms.new_key(body)
    found = [
        each for each in lint(KeyPolicy.from_json(body), key_arn=key) if each.rule == "may-change-policy"
    ]
    assert [(each.sid, each.severity) for each in found] == [
        ("AdministrationWithoutUse", "info"),
        ("Theirs", "warning"),
    ]
    undone = with_statements(body, allow({"AWS": parent.role_arn}, "kms:Decrypt"), denies=False)
    kms.parent.put_key_policy(KeyId=key, Policy=KeyPolicy.from_json(undone).to_text())
    assert decrypts(kms, key, parent)


def test_nobody_left_who_may_change_the_policy(kms: RunningKms) -> None:
    body = bound(kms)
    for each in body["Statement"]:
        if each["Sid"] == "AdministrationWithoutUse":
            each["Action"].remove("kms:PutKeyPolicy")
    key = kms.new_key(bound(kms))
    assert "lock-out" in rules(body, kms, key)
    with pytest.raises(ClientError, match="will not allow you to update the key policy in the future"):
        put(kms, key, body)
    text = KeyPolicy.from_json(body).to_text()
    kms.administrator.put_key_policy(KeyId=key, Policy=text, BypassPolicyLockoutSafetyCheck=True)
    for who in kms.identities:
        client = kms.client(who)
        assert not _passes(partial(client.put_key_policy, KeyId=key, Policy=text))


@pytest.mark.parametrize(
    "fault",
    [
        {"Condition": {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:PRC0": "ab" * 48}}},
        {"Principal": {"AWS": "AROAEXAMPLEID"}},
        {"Action": "Decrypt"},
    ],
)
def test_what_put_key_policy_refuses(kms: RunningKms, fault: Document) -> None:
    key = kms.new_key(bound(kms))
    theirs = {**allow({"AWS": kms.identities.owner.role_arn}, "kms:Decrypt"), **fault}
    body = with_statements(bound(kms), theirs)
    assert rules(body, kms, key) & {"unknown-condition-key", "refused-by-kms"}
    with pytest.raises(ClientError, match="MalformedPolicyDocumentException"):
        put(kms, key, body)
