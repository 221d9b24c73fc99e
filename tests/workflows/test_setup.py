from __future__ import annotations

from necli import kms
from necli.keypolicy import KeyPolicy
from necli.state import Key, State
from necli.workflows.policy import show_policy
from necli.workflows.setup import set_up
from necli.workflows.workload import ALIAS, Workload


def keys(workload: Workload) -> set[str]:
    return {key["KeyArn"] for key in workload.kms("administrator").list_keys()["Keys"]}


def test_setting_up_again_makes_nothing_new(workload: Workload) -> None:
    before = workload.key(), keys(workload), show_policy(workload).to_json()
    assert set_up(workload) == before[0]
    assert (workload.key(), keys(workload), show_policy(workload).to_json()) == before


def test_a_lost_state_file_costs_nothing(workload: Workload) -> None:
    key = workload.key()
    workload.home.state_file.unlink()
    before = keys(workload)
    assert set_up(workload) == key
    assert keys(workload) == before


def test_a_setup_that_was_cut_off_before_the_alias_goes_on_with_the_same_key(workload: Workload) -> None:
    administrator, key = workload.kms("administrator"), workload.key()
    administrator.delete_alias(AliasName=ALIAS)
    before = keys(workload)
    assert set_up(workload) == key
    assert kms.find_key(administrator, ALIAS) == key.arn
    assert keys(workload) == before


def test_a_key_that_is_about_to_be_deleted_is_replaced_and_the_alias_moves(workload: Workload) -> None:
    administrator, old = workload.kms("administrator"), workload.key()
    kms.schedule_deletion(administrator, old.arn, days=7)
    new = set_up(workload)
    assert new.arn != old.arn
    assert kms.find_key(administrator, ALIAS) == new.arn


def test_keys_and_policy_survive_the_services(workload: Workload) -> None:
    key, policy = workload.key(), show_policy(workload).to_json()
    workload.backend.stop_services()
    assert set_up(workload) == key
    assert show_policy(workload).to_json() == policy


def test_the_first_policy_separates_the_three_roles(workload: Workload) -> None:
    policy: KeyPolicy = show_policy(workload)
    assert {statement.sid for statement in policy.statements} >= {
        "AdministrationWithoutUse",
        "DataOwnerEncrypts",
        "EnclaveDecrypt",
        "DenyDecryptUnlessPCR0",
    }


def test_the_state_of_another_target_is_kept(workload: Workload) -> None:
    State(key=Key("arn:other", "alias/other")).save(workload.home, "nitro")
    workload.update_state(lambda state: state.with_key(Key("arn:mine", ALIAS)))
    assert State.load(workload.home, "nitro").key == Key("arn:other", "alias/other")
