"""Binds the key to the measurements of the built image, and keeps what stood in its policy before."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from necli import kms
from necli.errors import Conflict
from necli.home import write_atomically
from necli.keypolicy import KeyPolicy, PolicyChange, check_lock_out, plan_measurements
from necli.workflows.workload import Workload


def show_policy(workload: Workload) -> KeyPolicy:
    return kms.read_policy(workload.kms("administrator"), workload.key().arn)


def plan_policy(workload: Workload) -> PolicyChange:
    """What `update_policy` would change: only the measured build may decrypt, the rest stays as it is."""
    build = workload.measured_build()
    return plan_measurements(
        show_policy(workload), build.measurements, parent_arn=workload.backend.parent_arn
    )


def apply_policy(workload: Workload, change: PolicyChange) -> Path | None:
    """Put a planned policy in force; returns the backup of the old one, None where nothing changes.

    :raises AccessDenied: the administrator would lock himself out.
    :raises Conflict: the policy was changed by somebody else since it was planned.
    """
    if change.unchanged:
        return None
    client, key_arn = workload.kms("administrator"), workload.key().arn
    check_lock_out(change.after, workload.backend.administrator_arn, key_arn=key_arn)
    backup = _back_up(workload, change.before, key_arn)
    _expect(kms.read_policy(client, key_arn), change.before, "since it was read")
    kms.write_policy(client, key_arn, change.after)
    _expect(kms.read_policy(client, key_arn), change.after, "while it was written")
    return backup


def update_policy(workload: Workload) -> PolicyChange:
    with workload.progress.step("Key policy") as step:
        change = plan_policy(workload)
        apply_policy(workload, change)
        step.note("bound to this image already" if change.unchanged else "bound to this image")
    return change


def _back_up(workload: Workload, policy: KeyPolicy, key_arn: str) -> Path:
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    path = workload.home.backups / f"key-policy-{key_arn.rpartition('/')[2]}-{now}.json"
    write_atomically(path, policy.to_text() + "\n")
    return path


def _expect(found: KeyPolicy, expected: KeyPolicy, when: str) -> None:
    if found.to_json() != expected.to_json():
        raise Conflict(
            f"the key policy was changed by somebody else {when}",
            hint="look at necli policy plan, then run necli policy update again",
            code="policy_changed",
        )
