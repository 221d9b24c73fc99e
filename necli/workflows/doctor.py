"""Looks for what stands in the way, and says what helps."""

from __future__ import annotations

import getpass
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from necli import kms
from necli.backends.local import MEMORY_MIB
from necli.errors import NecliError, NotReady
from necli.nitro.checks import HOST_CHECKS
from necli.nitro.host import Machine
from necli.workflows.workload import Workload

Level = Literal["ok", "warning", "failed"]

_NEEDED_DISK_MIB = 1024
_MAX_SKEW_S = 60
_ENCLAVE_MODULES = ("tensorflow", "uvicorn", "starlette", "asn1crypto")


@dataclass(frozen=True)
class Finding:
    check: str
    level: Level
    detail: str
    fix: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"check": self.check, "status": self.level, "detail": self.detail, "fix": self.fix}


def examine(workload: Workload) -> Iterator[Finding]:
    """Every check, this machine's first; one that fails doesn't stop the others."""
    if workload.target == "nitro":
        yield from examine_host(Machine())
    for check, look in _CHECKS:
        if workload.target == "nitro" and check in _ONLY_LOCAL:
            continue
        try:
            yield look(workload, check)
        except NecliError as exc:
            yield Finding(check, "failed", exc.message, exc.hint)


def examine_host(machine: Machine) -> Iterator[Finding]:
    """The parent instance, under the user who runs this."""
    user = getpass.getuser()
    for check, look in HOST_CHECKS:
        try:
            yield Finding(check, "ok", look(machine, user))
        except NecliError as exc:
            yield Finding(check, "failed", exc.message, exc.hint)


def repair(workload: Workload, findings: Sequence[Finding]) -> list[str]:
    """What can be mended without losing anything: services that don't run. Returns what was done."""
    broken = {finding.check for finding in findings if finding.level != "ok"}
    if not broken & {"services", "KMS", "clock"} or workload.state.key is None:
        return []
    workload.backend.ensure_services(workload.progress)
    return ["services started"]


def _python(_: Workload, check: str) -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= (3, 11)
    return Finding(check, "ok" if ok else "failed", version, None if ok else "use Python 3.11 or later")


def _modules(_: Workload, check: str) -> Finding:
    missing = [name for name in _ENCLAVE_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        return Finding(check, "failed", f"missing: {', '.join(missing)}", "pip install 'necli[local]'")
    return Finding(check, "ok", ", ".join(_ENCLAVE_MODULES))


def _npm(workload: Workload, check: str) -> Finding:
    if found := shutil.which("npm"):
        return Finding(check, "ok", found)
    if workload.home.models.is_dir() and any(workload.home.models.iterdir()):
        return Finding(check, "ok", "not found, and not needed: a model is in the cache")
    return Finding(check, "failed", "not found: the default model comes from an npm package", "install npm")


def _disk(workload: Workload, check: str) -> Finding:
    free = {
        place: shutil.disk_usage(_existing(place)).free >> 20
        for place in (workload.home.state, workload.home.cache)
    }
    place, least = min(free.items(), key=lambda item: item[1])
    if least < _NEEDED_DISK_MIB:
        return Finding(
            check,
            "failed",
            f"{least} MiB free for {place}; {_NEEDED_DISK_MIB} MiB are needed",
            "free some space, or set NECLI_HOME and XDG_CACHE_HOME to another disk",
        )
    return Finding(check, "ok", f"{least >> 10} GiB free")


def _permissions(workload: Workload, check: str) -> Finding:
    for place in (workload.home.state, workload.home.cache):
        existing = _existing(place)
        if not os.access(existing, os.W_OK | os.X_OK):
            return Finding(
                check, "failed", f"no permission to write to {existing}", f"sudo chown $USER {existing}"
            )
    return Finding(check, "ok", str(workload.home.state))


def _memory(_: Workload, check: str) -> Finding:
    available = _available_memory_mib()
    if available < MEMORY_MIB:
        detail = f"{available} MiB available; the enclave may take {MEMORY_MIB} MiB"
        return Finding(check, "warning", detail, "end other programs, or use small photos")
    return Finding(check, "ok", f"{available / 1024:.1f} GiB available")


def _user_namespaces(_: Workload, check: str) -> Finding:
    for path, closed in (
        ("/proc/sys/user/max_user_namespaces", "0"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
    ):
        with suppress(OSError):
            if Path(path).read_text(encoding="ascii").strip() == closed:
                name = path.removeprefix("/proc/sys/").replace("/", ".")
                detail = (
                    f"the kernel doesn't allow them ({name}={closed}): the local enclave keeps its network"
                )
                return Finding(check, "warning", detail, "nothing to do: only the simulation is weaker")
    return Finding(check, "ok", "allowed: the local enclave has no network")


def _state(workload: Workload, check: str) -> Finding:
    state = workload.state
    if state.key is None:
        return Finding(check, "warning", "nothing is set up yet", "necli up")
    return Finding(check, "ok", "read")


def _services(workload: Workload, check: str) -> Finding:
    services = workload.backend.services()
    dead = [s.name + (f" ({s.last_error})" if s.last_error else "") for s in services if not s.running]
    if dead and workload.state.key is None:
        return Finding(check, "ok", "not started yet")
    if dead:
        return Finding(check, "failed", f"not running: {', '.join(dead)}", "necli up")
    return Finding(check, "ok", ", ".join(f"{s.name} (pid {s.pid})" for s in services))


def _kms(workload: Workload, check: str) -> Finding:
    key = workload.state.key
    if key is None:
        return Finding(check, "ok", "no key yet")
    if kms.find_key(workload.kms("owner"), key.arn) is None:
        return Finding(check, "failed", f"the key {key.arn} is gone", "necli setup, then necli build")
    return Finding(check, "ok", f"answers; {key.alias} is enabled")


def _clock(workload: Workload, check: str) -> Finding:
    if workload.state.key is None:
        return Finding(check, "ok", "not compared: no KMS yet")
    from email.utils import parsedate_to_datetime

    with kms.kms_errors("ask KMS for the time"):
        answer = workload.kms("parent").list_aliases(Limit=1)
    sent = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if sent is None:
        return Finding(check, "warning", "KMS doesn't tell the time")
    skew = time.time() - parsedate_to_datetime(sent).timestamp()
    if abs(skew) > _MAX_SKEW_S:
        return Finding(
            check, "failed", f"{skew:+.0f} s from KMS's", "synchronise the clock: timedatectl set-ntp true"
        )
    return Finding(check, "ok", f"within {max(1, round(abs(skew)))} s of KMS's")


def _image(workload: Workload, check: str) -> Finding:
    if workload.state.build is None:
        return Finding(check, "ok", "nothing built yet")
    build = workload.measured_build()
    key = workload.state.key
    if key and build.key_arn != key.arn:
        return Finding(check, "failed", "built for another key", "necli build")
    return Finding(check, "ok", f"PCR0 {build.measurements.pcr0.hex()[:16]}…, as built")


def _policy(workload: Workload, check: str) -> Finding:
    state = workload.state
    if state.key is None or state.build is None:
        return Finding(check, "ok", "nothing to bind yet")
    policy = kms.read_policy(workload.kms("administrator"), state.key.arn)
    if workload.policy_allows(policy, state.build.measurements, state.key.arn):
        return Finding(check, "ok", "bound to the built image")
    return Finding(check, "failed", "not bound to the built image", "necli policy update")


def _enclave(workload: Workload, check: str) -> Finding:
    build = workload.state.build
    if build is None:
        return Finding(check, "ok", "nothing to run yet")
    running = [enclave for enclave in workload.backend.enclaves() if enclave.state == "RUNNING"]
    if not running:
        raise NotReady("no enclave is running", hint="necli up")
    for enclave in running:
        if enclave.debug:
            detail = f"{enclave.name} runs in debug mode: it attests zeros"
            return Finding(check, "warning", detail, f"necli enclave stop {enclave.name}, then necli up")
        if enclave.measurements != build.measurements:
            return Finding(
                check, "failed", f"{enclave.name} runs another image than the one built last", "necli up"
            )
    return Finding(check, "ok", f"{', '.join(e.name for e in running)}: runs the built image")


_CHECKS: Sequence[tuple[str, Callable[[Workload, str], Finding]]] = (
    ("Python", _python),
    ("packages", _modules),
    ("npm", _npm),
    ("disk", _disk),
    ("permissions", _permissions),
    ("memory", _memory),
    ("user namespaces", _user_namespaces),
    ("state", _state),
    ("services", _services),
    ("KMS", _kms),
    ("clock", _clock),
    ("image", _image),
    ("key policy", _policy),
    ("enclave", _enclave),
)


_ONLY_LOCAL = ("packages", "memory", "user namespaces", "clock")
"""Of the local target's parts; the clock, because the enclave's sessions may only decrypt."""


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def _available_memory_mib() -> int:
    with open("/proc/meminfo", encoding="ascii") as lines:
        values = dict(line.split(":", 1) for line in lines)
    return int(values["MemAvailable"].split()[0]) >> 10
