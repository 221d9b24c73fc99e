"""Removes what necli made on a target, and nothing else."""

from __future__ import annotations

import shutil

from necli import kms
from necli.errors import NecliError
from necli.home import Home, host_errors
from necli.state import Key
from necli.workflows.operate import take_down
from necli.workflows.workload import Workload

DELETION_DAYS = 7


def key_at_stake(workload: Workload) -> Key | None:
    """The key that `clean_up` would destroy. A damaged state file must not be in the way of removing it."""
    try:
        return workload.state.key
    except NecliError:
        return None


def clean_up(workload: Workload, *, models: bool) -> None:
    """Destroy the key, stop everything and remove the state; the models too where that is asked for."""
    if key := key_at_stake(workload):
        with workload.progress.step("Key") as step:
            step.note(_destroy(workload, key))
    take_down(workload)
    with workload.progress.step("Files") as step:
        removed = _remove_state(workload.home)
        if models and workload.home.models.exists():
            with host_errors(f"can't remove {workload.home.models}"):
                shutil.rmtree(workload.home.models)
            removed.append(str(workload.home.models))
        step.note(f"removed {len(removed)} folders and files" if removed else "there were none")


def _destroy(workload: Workload, key: Key) -> str:
    try:
        client = workload.kms("administrator")
        if kms.find_key(client, key.arn):
            kms.schedule_deletion(client, key.arn, days=DELETION_DAYS)
    except NecliError as exc:
        return f"could not be told: {exc.message}"
    return f"{key.alias}: deletion scheduled"


def _remove_state(home: Home) -> list[str]:
    """Only what necli puts there, by name: NECLI_HOME may be a folder with other things in it."""
    ours = [
        home.aws, home.backups, home.builds, home.enclaves, home.kms, home.pki, home.proxy,
        home.state / "demo", home.state_file,
    ]  # fmt: skip
    present = [path for path in ours if path.exists()]
    for path in present:
        with host_errors(f"can't remove {path}"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    return [str(path) for path in present]
