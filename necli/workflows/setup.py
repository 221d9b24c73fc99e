"""The services and the key: what everything else stands on."""

from __future__ import annotations

from necli import kms
from necli.keypolicy import KeyPolicy, initial_policy
from necli.state import Key
from necli.workflows.workload import ALIAS, Workload


def set_up(workload: Workload) -> Key:
    """Services running and a key with its alias; nothing is made that exists already."""
    workload.backend.ensure_services(workload.progress)
    with workload.progress.step("Key") as step:
        client = workload.kms("administrator")
        arn = _known_key(workload, client)
        step.note(f"{ALIAS} exists" if arn else f"{ALIAS} made; its policy lets nobody decrypt yet")
        if arn is None:
            arn = kms.create_key(client, _policy(workload), "necli: data for an enclave")
            # Recorded before it has its alias: cut off in between, the next run goes on with this key.
            _remember(workload, arn)
        if kms.find_key(client, ALIAS) != arn:
            kms.point_alias(client, ALIAS, arn)
        _remember(workload, arn)
    return workload.key()


def _known_key(workload: Workload, client: object) -> str | None:
    recorded = workload.state.key
    return (recorded and kms.find_key(client, recorded.arn)) or kms.find_key(client, ALIAS)


def _remember(workload: Workload, arn: str) -> None:
    key = Key(arn, ALIAS)
    if workload.state.key != key:
        workload.update_state(lambda state: state.with_key(key))


def _policy(workload: Workload) -> KeyPolicy:
    backend = workload.backend
    return initial_policy(
        admin_arn=backend.administrator_arn,
        parent_arn=backend.parent_arn,
        owner_arn=backend.owner_arn,
        account=backend.parent_arn.split(":")[4],
    )
