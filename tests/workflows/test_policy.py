from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from necli import kms
from necli.backends import open_backend
from necli.eif import read_eif, write_eif
from necli.errors import AccessDenied, Conflict, InputError, MeasurementMismatch, NotReady, UsageError
from necli.keypolicy import KeyPolicy
from necli.keypolicy.plan import live_sets
from necli.settings import DEFAULT_REGION
from necli.state import Build
from necli.workflows.policy import (
    apply_policy,
    attested_as,
    backups,
    explain_afterwards,
    explain_policy,
    lint_policy,
    plan_policy,
    plan_retire,
    plan_rollback,
    plan_stage,
    show_policy,
    update_policy,
)
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


@pytest.fixture
def next_image(built: Build, tmp_path: Path) -> Path:
    """Another image, as a next version's."""
    metadata = read_eif(built.path).metadata
    assert metadata
    path = tmp_path / "next.eif"
    write_eif(path, kernel=b"{}", cmdline="init=next", ramdisks=[b"x"], metadata=metadata)
    return path


def sids(workload: Workload) -> list[str | None]:
    return [statement.sid for statement in show_policy(workload).statements]


def test_a_rolling_upgrade(workload: Workload, built: Build, next_image: Path) -> None:
    update_policy(workload)
    apply_policy(workload, plan_stage(workload, eif=next_image))
    assert [sid for sid in sids(workload) if sid and sid.startswith("Enclave")] == [
        "EnclaveDecrypt",
        "EnclaveDecrypt2",
    ]
    following = replace(built, measurements=read_eif(next_image).measurements)
    assert allows(workload, built)
    assert allows(workload, following)
    assert not allows(
        workload, replace(built, measurements=replace(built.measurements, pcr1=following.measurements.pcr1))
    )
    apply_policy(workload, plan_retire(workload))
    assert allows(workload, built)
    assert not allows(workload, following)
    assert plan_policy(workload).unchanged


def test_the_old_image_is_retired_by_its_pcr0(workload: Workload, built: Build, next_image: Path) -> None:
    update_policy(workload)
    apply_policy(workload, plan_stage(workload, eif=next_image))
    apply_policy(workload, plan_retire(workload, built.measurements.pcr0.hex()[:12]))
    assert not allows(workload, built)
    with pytest.raises(NotReady, match="without the others nothing could decrypt"):
        plan_retire(workload)


def test_the_registers_that_were_chosen_stay_chosen(
    workload: Workload, built: Build, next_image: Path
) -> None:
    apply_policy(workload, plan_policy(workload, pcr="0,3"))
    assert allows(workload, built)
    assert list(live_sets(show_policy(workload))[0].values) == ["PCR0", "PCR3"]
    assert plan_policy(workload).unchanged
    apply_policy(workload, plan_stage(workload, eif=next_image))
    assert [list(each.values) for each in live_sets(show_policy(workload))] == [["PCR0", "PCR3"]] * 2
    apply_policy(workload, plan_policy(workload, pcr="0,1,2"))
    assert list(live_sets(show_policy(workload))[0].values) == ["PCR0", "PCR1", "PCR2"]


def test_an_image_without_a_signature_is_not_bound_to_one(workload: Workload, built: Build) -> None:
    with pytest.raises(InputError, match="PCR8: the image isn't signed"):
        plan_policy(workload, pcr="0,8")


def test_a_rollback_to_the_last_backup_and_back_again(workload: Workload, built: Build) -> None:
    before = show_policy(workload).to_json()
    update_policy(workload)
    after = show_policy(workload).to_json()
    apply_policy(workload, plan_rollback(workload))
    assert show_policy(workload).to_json() == before
    apply_policy(workload, plan_rollback(workload))
    assert show_policy(workload).to_json() == after


def test_backups_have_names(workload: Workload, built: Build) -> None:
    before = show_policy(workload).to_json()
    apply_policy(workload, plan_policy(workload), backup="before-v1")
    apply_policy(workload, plan_policy(workload, pcr="0"))
    assert "before-v1" in {backup.name for backup in backups(workload)}
    assert plan_rollback(workload, "before-v1").after.to_json() == before
    with pytest.raises(InputError, match="no backup nonsense") as caught:
        plan_rollback(workload, "nonsense")
    assert "before-v1" in (caught.value.hint or "")
    with pytest.raises(Conflict, match="a backup before-v1 already"):
        apply_policy(workload, plan_policy(workload, pcr="0,1"), backup="before-v1")
    with pytest.raises(UsageError, match="can't be the name"):
        apply_policy(workload, plan_policy(workload, pcr="0,1"), backup="../elsewhere")


def test_there_is_nothing_to_roll_back_to_at_first(workload: Workload) -> None:
    with pytest.raises(InputError, match="no backup of this key's policy"):
        plan_rollback(workload)


def test_a_rollback_does_not_overwrite_what_somebody_else_wrote(workload: Workload, built: Build) -> None:
    update_policy(workload)
    change = plan_rollback(workload)
    put(workload, with_statement(show_policy(workload), "Theirs"))
    with pytest.raises(Conflict, match="changed by somebody else"):
        apply_policy(workload, change)


def test_a_rollback_does_not_lock_out_the_administrator(workload: Workload, built: Build) -> None:
    body = show_policy(workload).to_json()
    locked = [s for s in body["Statement"] if s["Sid"] != "AdministrationWithoutUse"]
    path = apply_policy(workload, plan_policy(workload))
    assert path is not None
    path.write_text(json.dumps({**body, "Statement": locked}))
    with pytest.raises(AccessDenied, match="update the key policy in the future"):
        apply_policy(workload, plan_rollback(workload))


def test_the_policy_in_force_is_linted_for_its_administrator(workload: Workload, built: Build) -> None:
    assert [each.rule for each in lint_policy(workload)] == ["not-bound", "may-change-policy"]
    update_policy(workload)
    assert [each.rule for each in lint_policy(workload)] == ["may-change-policy"]


def test_the_policy_in_force_explains_itself(workload: Workload, built: Build) -> None:
    attested = attested_as(workload, built.measurements)
    denied = explain_policy(workload, attested)
    assert denied.fix == "run necli policy update"
    assert denied.statement is not None
    assert denied.statement.sid == "DenyDecryptUnlessPCR0"
    update_policy(workload)
    assert explain_policy(workload, attested).decision.allowed
    assert not explain_policy(workload, {}).decision.allowed


def test_a_change_that_does_not_help_is_seen_before_it_is_made(workload: Workload, built: Build) -> None:
    assert explain_afterwards(workload, plan_policy(workload)).decision.allowed
    body = show_policy(workload).to_json()
    frozen = {"Sid": "Frozen", "Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*"}
    put(workload, KeyPolicy.from_json({**body, "Statement": [*body["Statement"], frozen]}))
    shut = explain_afterwards(workload, plan_policy(workload))
    assert shut.statement is not None
    assert shut.statement.sid == "Frozen"


def test_an_edit_right_after_the_write_is_noticed(workload: Workload, built: Build) -> None:
    change = plan_policy(workload)
    somebody_else = open_backend("local", workload.home, DEFAULT_REGION).kms("administrator")
    theirs = with_statement(change.after, "Theirs").to_text()

    def edit(**_: object) -> None:
        somebody_else.put_key_policy(KeyId=workload.key().arn, PolicyName="default", Policy=theirs)

    events = workload.kms("administrator").meta.events
    events.register("after-call.kms.PutKeyPolicy", edit)
    try:
        with pytest.raises(Conflict, match="changed by somebody else while it was written") as caught:
            apply_policy(workload, change)
    finally:
        events.unregister("after-call.kms.PutKeyPolicy", edit)
    assert caught.value.code == "policy_changed"
    assert show_policy(workload).statements[-1].sid == "Theirs"
