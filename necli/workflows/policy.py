"""Binds the key to measurements, keeps what stood in its policy before, and says what it decides and why."""

from __future__ import annotations

import base64
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from necli import kms
from necli.backends import EnclaveInfo
from necli.errors import Conflict, HostError, InputError, NotReady, ServiceFailed, UsageError
from necli.home import host_errors, write_atomically
from necli.keypolicy import KeyPolicy, PolicyChange, caller_arns, check_lock_out, plan_measurements
from necli.keypolicy.explain import Explanation, explain
from necli.keypolicy.lint import PolicyFinding, lint
from necli.keypolicy.measurement_set import IMAGE, MeasurementSet, attested_registers, parse_registers
from necli.keypolicy.plan import live_sets, parent_in, same
from necli.keypolicy.simulation import IAM_ALLOWS_ALL, Simulation, request_of
from necli.keypolicy.stages import retire, retire_others, stage
from necli.measurements import Measurements
from necli.workflows.workload import Workload

_MAX_POLICY_BYTES = 32 << 10
"""Of PutKeyPolicy."""
_BACKUP_NAME = re.compile(r"[\w.+@-]{1,80}")
_ALL_IMAGE_REGISTERS = {"PCR0", "PCR1", "PCR2"}
_READ_BACK_S = (0.0, 0.5, 1.0, 2.0, 4.0)
"""KMS is eventually consistent: a policy just written may not be the one that is read."""


@dataclass(frozen=True)
class Backup:
    """A policy as it stood before necli changed it."""

    name: str
    path: Path
    made_at: datetime


def show_policy(workload: Workload) -> KeyPolicy:
    return kms.read_policy(workload.kms("administrator"), workload.key().arn)


def read_policy_file(file: Path) -> KeyPolicy:
    """:raises InputError: there is no such file, it is too large for a policy, or isn't one."""
    try:
        with host_errors(f"can't read {file}"), open(file, "rb") as opened:
            content = opened.read(_MAX_POLICY_BYTES + 1)
    except HostError as exc:
        raise InputError(exc.message, hint="check the path", code="no_such_file") from exc
    if len(content) > _MAX_POLICY_BYTES:
        limit = f"{_MAX_POLICY_BYTES >> 10} KiB"
        raise InputError(f"{file} is larger than the {limit} of a key policy", code="not_a_policy")
    try:
        return KeyPolicy.from_json(content.decode())
    except (InputError, UnicodeDecodeError) as exc:
        reason = exc.message if isinstance(exc, InputError) else "it isn't UTF-8"
        raise InputError(f"{file} is not a key policy: {reason}", code="not_a_policy") from exc


# Planning


def plan_policy(
    workload: Workload, *, pcr: str | None = None, eif: Path | None = None, file: Path | None = None
) -> PolicyChange:
    """What `update_policy` would change: only the measured build may decrypt, the rest stays as it is.

    :param pcr: the registers to bind, as in `0,1,2,8`; the same as now, if it isn't given.
    :param eif: another image than the one built last.
    :param file: a policy in a file instead of the one in force.
    """
    measurements = measured(workload, eif)
    policy = read_policy_file(file) if file else show_policy(workload)
    parent = (file and parent_in(policy)) or workload.backend.parent_arn
    return plan_measurements(policy, _chosen(policy, measurements, pcr, parent), parent_arn=parent)


def plan_stage(workload: Workload, *, pcr: str | None = None, eif: Path | None = None) -> PolicyChange:
    """The built image beside those that may decrypt now."""
    measurements, policy, parent = measured(workload, eif), show_policy(workload), workload.backend.parent_arn
    return stage(policy, _chosen(policy, measurements, pcr, parent), parent_arn=parent)


def plan_retire(workload: Workload, image: str | None = None) -> PolicyChange:
    """Without the set whose PCR0 begins with `image`, or without all but the built image's."""
    parent = workload.backend.parent_arn
    if image is not None:
        return retire(show_policy(workload), image, parent_arn=parent)
    attested = attested_as(workload, workload.measured_build().measurements)
    return retire_others(show_policy(workload), attested, parent_arn=parent)


def plan_rollback(workload: Workload, name: str | None = None) -> PolicyChange:
    """Back to a backup: the one of that name, or the one made last.

    :raises InputError: there is none.
    """
    made = backups(workload)
    found = [backup for backup in made if name in (None, backup.name)]
    if not found:
        known = ", ".join(backup.name for backup in made) or "none yet"
        raise InputError(
            f"there is no backup {name}" if name else "there is no backup of this key's policy",
            hint=f"necli policy rollback --list shows them: {known}",
            code="no_such_backup",
        )
    return PolicyChange(show_policy(workload), read_policy_file(found[-1].path))


def backups(workload: Workload) -> list[Backup]:
    """Of the present key's policy, the oldest first."""
    prefix = _backup_prefix(workload.key().arn)
    found = [
        Backup(path.stem.removeprefix(prefix), path, datetime.fromtimestamp(path.stat().st_mtime, UTC))
        for path in workload.home.backups.glob(f"{prefix}*.json")
    ]
    return sorted(found, key=lambda backup: (backup.made_at, backup.name))


def measured(workload: Workload, eif: Path | None = None) -> Measurements:
    """Of an image in a file, or of the one built last; read again in either case."""
    from necli.eif import read_eif

    return read_eif(eif).measurements if eif else workload.measured_build().measurements


def _chosen(policy: KeyPolicy, measurements: Measurements, pcr: str | None, parent: str) -> MeasurementSet:
    registers = parse_registers(pcr) if pcr is not None else _registers_in_force(policy)
    return MeasurementSet.of(measurements, registers, parent_role_arn=caller_arns(parent)[-1])


def _registers_in_force(policy: KeyPolicy) -> tuple[str, ...] | None:
    """Those that were asked for last; None for the usual ones, where PCR8 comes and goes with a signature."""
    for each in live_sets(policy)[:1]:
        if set(each.values) - {"PCR8"} != _ALL_IMAGE_REGISTERS:
            return tuple(each.values)
    return None


# Changing


def apply_policy(workload: Workload, change: PolicyChange, *, backup: str | None = None) -> Path | None:
    """Put a planned policy in force; returns the backup of the old one, None where nothing changes.

    KMS can't compare and swap: an edit in the instant between the last look and the write is overwritten,
    and stands in nobody's backup but AWS's CloudTrail.

    :param backup: what to call the backup, if not after the time.
    :raises AccessDenied: the administrator would lock himself out.
    :raises Conflict: the policy was changed by somebody else since it was planned; or there is such a backup.
    """
    if change.unchanged:
        return None
    client, key_arn = workload.kms("administrator"), workload.key().arn
    check_lock_out(change.after, workload.backend.administrator_arn, key_arn=key_arn)
    _expect(kms.read_policy(client, key_arn), change.before, "since it was read")
    path = _back_up(workload, change.before, key_arn, backup)
    kms.write_policy(client, key_arn, change.after)
    _expect(_read_back(client, key_arn, change), change.after, "while it was written")
    return path


def update_policy(workload: Workload) -> PolicyChange:
    with workload.progress.step("Key policy") as step:
        change = plan_policy(workload)
        apply_policy(workload, change)
        step.note("bound to this image already" if change.unchanged else "bound to this image")
    return change


def _back_up(workload: Workload, policy: KeyPolicy, key_arn: str, name: str | None) -> Path:
    if name is not None and not _BACKUP_NAME.fullmatch(name):
        raise UsageError(f"{name!r} can't be the name of a backup", hint="use letters, digits, and . _ + @ -")
    name = name or datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    path = workload.home.backups / f"{_backup_prefix(key_arn)}{name}.json"
    if path.exists():
        raise Conflict(f"there is a backup {name} already", hint="use another name", code="backup_exists")
    write_atomically(path, policy.to_text() + "\n")
    return path


def _backup_prefix(key_arn: str) -> str:
    return f"key-policy-{key_arn.rpartition('/')[2]}-"


def _read_back(client: object, key_arn: str, change: PolicyChange) -> KeyPolicy:
    for pause in _READ_BACK_S:
        time.sleep(pause)
        found = kms.read_policy(client, key_arn)
        if not same(found.to_json(), change.before.to_json()):
            break
    return found


def _expect(found: KeyPolicy, expected: KeyPolicy, when: str) -> None:
    if not same(found.to_json(), expected.to_json()):
        raise Conflict(
            f"the key policy was changed by somebody else {when}",
            hint="look at necli policy plan, then run necli policy update again",
            code="policy_changed",
        )


# Judging


def lint_policy(workload: Workload) -> list[PolicyFinding]:
    """What is wrong with the policy in force, or would lock out its administrator."""
    return lint(
        show_policy(workload), key_arn=workload.key().arn, caller_arn=workload.backend.administrator_arn
    )


def explain_file(
    file: Path, image: Measurements | None, *, caller: str | None, action: str, context: Mapping[str, str]
) -> Explanation:
    """The decision of a policy in a file on an enclave with this image, or on a request without one.

    :param caller: who asks; the parent that the policy lets decrypt, if it isn't given.
    """
    policy = read_policy_file(file)
    simulation = Simulation.of(policy)
    who = caller or parent_in(policy) or simulation.somebody
    attested = attested_registers(image, caller_arns(who)[-1]) if image else {}
    request = request_of(who, action, simulation.key_arn, attested, _encryption_context(context))
    planned = plan_measurements(policy, image, parent_arn=who).after if image and not caller else None
    return explain(policy, request, identity_policy=IAM_ALLOWS_ALL, planned=planned)


def explain_policy(
    workload: Workload,
    attested: Mapping[str, str],
    *,
    caller: str | None = None,
    action: str = "kms:Decrypt",
    context: Mapping[str, str] | None = None,
) -> Explanation:
    """The decision of the policy in force, for the parent if nobody else is named.

    IAM is taken to allow it: its policies can't be seen from here.
    """
    policy, key_arn = show_policy(workload), workload.key().arn
    pairs = context if context is not None else workload.required_context()
    who = caller or workload.backend.parent_arn
    request = request_of(who, action, key_arn, attested, _encryption_context(pairs))
    return explain(policy, request, identity_policy=IAM_ALLOWS_ALL, planned=_planned(workload))


def explain_afterwards(
    workload: Workload, change: PolicyChange, image: Measurements | None = None
) -> Explanation:
    """What the policy will say to the built image, or to another one, once the change is in force."""
    caller = parent_in(change.after) or workload.backend.parent_arn
    attested = attested_registers(image or workload.build().measurements, caller_arns(caller)[-1])
    key = workload.state.key
    arn = key.arn if key else Simulation.of(change.after).key_arn
    context = _encryption_context(workload.required_context())
    request = request_of(caller, "kms:Decrypt", arn, attested, context)
    return explain(change.after, request, identity_policy=IAM_ALLOWS_ALL)


def attested_as(workload: Workload, measurements: Measurements) -> dict[str, str]:
    """What an enclave with these measurements would attest on this parent instance."""
    return attested_registers(measurements, caller_arns(workload.backend.parent_arn)[-1])


def attested_by(workload: Workload, enclave: EnclaveInfo) -> dict[str, str]:
    """What an enclave's registers hold by its own attestation document, made now.

    :raises AttestationInvalid: the document doesn't verify.
    """
    from necli.attestation import unsafe_any_pcrs, verify_document

    nonce = os.urandom(32)
    with workload.backend.connect(enclave.name) as client:
        answer = client.post("/attest", json={"nonce": base64.b64encode(nonce).decode()})
    try:
        data = base64.b64decode(answer.json()["document"], validate=True)
    except (KeyError, TypeError, ValueError) as exc:
        raise ServiceFailed(f"the enclave {enclave.name} gave no document", hint="run necli up") from exc
    document = verify_document(
        data, roots=workload.backend.attestation_roots(), expected=unsafe_any_pcrs, nonce=nonce
    )
    registers = {f"PCR{index}": value.hex() for index, value in sorted(document.pcrs.items())}
    return {**registers, IMAGE: registers["PCR0"]} if "PCR0" in registers else registers


def _planned(workload: Workload) -> KeyPolicy | None:
    try:
        return plan_policy(workload).after
    except NotReady:  # nothing built: no update to try out
        return None


def _encryption_context(pairs: Mapping[str, str]) -> dict[str, str]:
    return {f"kms:EncryptionContext:{name}": value for name, value in pairs.items()}
