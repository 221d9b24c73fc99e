from __future__ import annotations

import json
from dataclasses import replace

import pytest

from necli import kms
from necli.eif import read_eif, write_eif
from necli.errors import AccessDenied, Conflict, MeasurementMismatch, NotReady
from necli.keypolicy import KeyPolicy
from necli.state import Build
from necli.workflows.policy import apply_policy, plan_policy, show_policy, update_policy
from necli.workflows.workload import Workload


def put(workload: Workload, policy: KeyPolicy, *, bypass: bool = False) -> None:
    workload.kms("administrator").put_key_policy(
        KeyId=workload.key().arn,
        PolicyName="default",
        Policy=policy.to_text(),
        BypassPolicyLockoutSafetyCheck=bypass,
    )


def with_statement(policy: KeyPolicy, sid: str) -> KeyPolicy:
    extra = {"Sid": sid, "Effect": "Deny", "Principal": "*", "Action": "kms:Encrypt", "Resource": "*",
             "Condition": {"Bool": {"aws:SecureTransport": "false"}}}  # fmt: skip
    body = policy.to_json()
    return KeyPolicy.from_json({**body, "Statement": [*body["Statement"], extra]})


def allows(workload: Workload, build: Build) -> bool:
    return workload.policy_allows(show_policy(workload), build.measurements, workload.key().arn)


def test_no_image_may_decrypt_until_the_policy_is_updated(workload: Workload, built: Build) -> None:
    assert not allows(workload, built)
    update_policy(workload)
    assert allows(workload, built)


def test_another_image_is_not_let_in(workload: Workload, built: Build) -> None:
    update_policy(workload)
    other = replace(built, measurements=replace(built.measurements, pcr2=bytes(47) + b"\1"))
    assert not allows(workload, other)


def test_the_policy_before_is_backed_up_word_for_word(workload: Workload, built: Build) -> None:
    before = show_policy(workload)
    backup = apply_policy(workload, plan_policy(workload))
    assert backup is not None
    assert backup.parent == workload.home.backups
    assert json.loads(backup.read_text()) == before.to_json()


def test_a_second_update_changes_and_writes_nothing(workload: Workload, built: Build) -> None:
    update_policy(workload)
    change = plan_policy(workload)
    assert change.unchanged
    assert change.diff == ()
    assert apply_policy(workload, change) is None
    assert len(list(workload.home.backups.iterdir())) == 1


def test_statements_of_others_stay_as_they_are(workload: Workload, built: Build) -> None:
    put(workload, with_statement(show_policy(workload), "OverTlsOnly"))
    before = show_policy(workload).to_json()["Statement"]
    update_policy(workload)
    after = show_policy(workload).to_json()["Statement"]
    ours = {"EnclaveDecrypt", "DenyDecryptUnlessPCR0", "DenyDecryptUnlessPCR1", "DenyDecryptUnlessPCR2"}
    assert [s for s in after if s["Sid"] not in ours] == [s for s in before if s["Sid"] not in ours]
    assert [s["Sid"] for s in after] == [s["Sid"] for s in before]


def test_a_policy_that_was_changed_meanwhile_is_not_overwritten(workload: Workload, built: Build) -> None:
    change = plan_policy(workload)
    put(workload, with_statement(show_policy(workload), "Theirs"))
    with pytest.raises(Conflict, match="changed by somebody else since it was read"):
        apply_policy(workload, change)
    assert show_policy(workload).statements[-1].sid == "Theirs"


def test_an_administrator_does_not_lock_himself_out(workload: Workload, built: Build) -> None:
    body = show_policy(workload).to_json()
    for statement in body["Statement"]:
        if statement["Sid"] == "AdministrationWithoutUse":
            statement["Action"].remove("kms:PutKeyPolicy")
    put(workload, KeyPolicy.from_json(body), bypass=True)
    with pytest.raises(AccessDenied, match="update the key policy in the future"):
        update_policy(workload)


def test_another_image_in_the_place_of_the_built_one_is_not_let_in(workload: Workload, built: Build) -> None:
    metadata = read_eif(built.path).metadata
    assert metadata
    write_eif(built.path, kernel=b"{}", cmdline="init=theirs", ramdisks=[b"x"], metadata=metadata)
    with pytest.raises(MeasurementMismatch, match="was changed after it was built") as caught:
        update_policy(workload)
    assert (caught.value.code, caught.value.hint) == ("eif_changed", "run necli build")


def test_an_image_with_a_flipped_bit_is_not_let_in(workload: Workload, built: Build) -> None:
    content = bytearray(built.path.read_bytes())
    content[-1000] ^= 1
    built.path.write_bytes(content)
    with pytest.raises(MeasurementMismatch, match=r"was changed after it was built.*checksum"):
        update_policy(workload)


def test_nothing_built_names_the_command_that_helps(workload: Workload) -> None:
    with pytest.raises(NotReady) as caught:
        plan_policy(workload)
    assert "necli build" in (caught.value.hint or "")


def test_the_parent_may_not_read_or_write_the_policy_as_administrator_does(workload: Workload) -> None:
    policy = show_policy(workload)
    with pytest.raises(AccessDenied, match="AccessDeniedException"):
        kms.write_policy(workload.kms("parent"), workload.key().arn, policy)
