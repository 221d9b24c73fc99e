"""Boots one local enclave and keeps it: the hypervisor's part, played by an ordinary process.

Its own log says what happened to the enclave, never what the payload printed: that is for the console, and
for debug mode alone.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from necli.backends import EnclaveInfo
from necli.eif import EifImage, InvalidEif, read_eif
from necli.errors import InputError, NecliError, ServiceFailed, UsageError
from necli.home import Home, host_errors
from necli.local import boot
from necli.local.distributions import MeasuredDistribution, link_site
from necli.local.enclave import HOME, NSM, PROXY, LocalEnclave, new_cid
from necli.local.identities import ensure_identities
from necli.local.image import LocalImage
from necli.local.nsm import SimulatedNsm, serve_nsm
from necli.local.pki import LocalPki
from necli.measurements import ZERO, extend_from_zero
from necli.sockets import UnixAddress

INSTANCE_ID = "i-05111a7ed00000000"
MIB = 1 << 20
_WATCH_S = 0.1
_NEARLY_ALL = 0.9
"""Of its memory in use when it died: then that is the likely cause."""
_MEMORY_LIMIT = "its data by the kernel (RLIMIT_DATA), its resident memory by the hypervisor"
_ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8", "TF_CPP_MIN_LOG_LEVEL": "2"}


@dataclass(frozen=True)
class Settings:
    enclave: LocalEnclave
    eif: Path
    memory_mib: int
    cpu_ids: tuple[int, ...]
    debug: bool
    started: float = field(default_factory=time.monotonic)

    @property
    def console_hint(self) -> str:
        if self.debug:
            return f"see necli enclave console {self.enclave.name}"
        return "run it again with --debug-mode, then see its console"


class Record:
    """The enclave's state file, kept in step with what happens to it."""

    def __init__(self, enclave: LocalEnclave, info: EnclaveInfo) -> None:
        self._enclave = enclave
        self.info = info
        enclave.save(info)

    def update(self, **changes: Any) -> None:
        self.info = replace(self.info, **changes)
        self._enclave.save(self.info)


def keep(settings: Settings, stop: threading.Event) -> None:
    """Boot the image and watch the enclave until it ends (which raises) or is told to stop."""
    with (
        unpacked(settings) as image,
        registered(settings, image.eif) as record,
        attesting(settings, record),
        running(settings, record, image.module) as process,
    ):
        watch(settings, record, process, stop)
        record.update(state="TERMINATING")


@contextmanager
def unpacked(settings: Settings) -> Iterator[LocalImage]:
    """The image: measured, found to fit this machine, and unpacked into the enclave's own folder."""
    root = settings.enclave.root
    try:
        with opened_once(settings.eif) as eif:
            check_memory(settings)
            image = LocalImage.of(eif)
            root.mkdir(mode=0o700)
            distributions = image.unpack(root)
        furnish(settings.enclave, distributions)
        yield image
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def opened_once(path: Path) -> Iterator[EifImage]:
    """Measure an image; whatever is read from it meanwhile is what was measured, or an error is raised."""
    try:
        pinned = path.open("rb")
    except OSError as exc:
        raise InputError(
            f"can't open {path}: {exc.strerror}", hint="build an image with necli build"
        ) from exc
    with pinned:
        this_very_file = Path(f"/proc/self/fd/{pinned.fileno()}")
        before = os.fstat(pinned.fileno())
        try:
            yield read_eif(this_very_file)
        except InvalidEif as exc:
            raise InvalidEif(exc.message.replace(str(this_very_file), str(path)), hint=exc.hint) from exc
        after = os.fstat(pinned.fileno())
        if (before.st_ctime_ns, before.st_size) != (after.st_ctime_ns, after.st_size):
            raise InvalidEif(f"{path} was changed while it booted")


def check_memory(settings: Settings) -> None:
    """Nitro's own rule, so that what runs here has a chance there."""
    needed = 4 * settings.eif.stat().st_size // MIB + 1
    if settings.memory_mib < needed:
        raise UsageError(
            f"{settings.memory_mib} MiB of memory are too little: it takes four times the image's size",
            hint=f"give it {needed} MiB or more with --memory",
            code="E26",
        )


def furnish(enclave: LocalEnclave, distributions: list[MeasuredDistribution]) -> None:
    """Add what isn't in the image: links to the measured distributions, a place for sockets, a home."""
    with host_errors(f"can't prepare {enclave.root}"):
        link_site([distribution.name for distribution in distributions], enclave.root / "site")
        proxy = enclave.root / PROXY
        proxy.parent.mkdir()
        proxy.symlink_to(enclave.home.proxy / proxy.name)
        (enclave.root / HOME).mkdir()


@contextmanager
def registered(settings: Settings, eif: EifImage) -> Iterator[Record]:
    """The enclave in the list of enclaves, with a CID and at last the reason of its end."""
    with new_cid(settings.enclave.home) as cid:
        info = EnclaveInfo(
            name=settings.enclave.name,
            enclave_id=f"{INSTANCE_ID}-enc{secrets.token_hex(8)}",
            cid=cid,
            state="STARTING",
            process_id=None,
            cpu_ids=settings.cpu_ids,
            memory_mib=settings.memory_mib,
            debug=settings.debug,
            measurements=eif.measurements,
            eif=settings.eif,
            simulated=True,
            started_at=datetime.now(UTC),
        )
        record = Record(settings.enclave, info)
    reason = "its hypervisor failed"
    try:
        yield record
        reason = "stopped"
    except NecliError as exc:
        reason = exc.message
        raise
    finally:
        with suppress(NecliError):  # a full disk is no reason to keep the rest from being cleaned up
            record.update(state="TERMINATED", process_id=None, exit_reason=reason)


@contextmanager
def attesting(settings: Settings, record: Record) -> Iterator[None]:
    """The enclave's NSM answers on its socket."""
    home = settings.enclave.home
    pcrs = attested_pcrs(record.info, ensure_identities(home).parent.role_arn)
    nsm = SimulatedNsm(LocalPki.ensure(home.pki), record.info.enclave_id, pcrs)
    with UnixAddress(settings.enclave.root / NSM).listen(socket.SOCK_SEQPACKET) as listener:
        threading.Thread(target=serve_nsm, args=(nsm, listener), name="nsm", daemon=True).start()
        yield


def attested_pcrs(info: EnclaveInfo, parent_arn: str) -> dict[int, bytes]:
    """PCRs 0 to 15, as Nitro fills them; in debug mode those of the image are zero."""
    image = {} if info.debug else info.measurements.pcrs()
    instance = {3: extend_from_zero(parent_arn.encode()), 4: extend_from_zero(INSTANCE_ID.encode())}
    return {**dict.fromkeys(range(16), ZERO), **image, **instance}


@contextmanager
def running(settings: Settings, record: Record, module: str) -> Iterator[subprocess.Popen[bytes]]:
    """The payload's process, killed at the end."""
    process, report = start(settings, module)
    try:
        if not report:
            raise ended(process.wait(), settings)
        refusal = json.loads(report)["network_refusal"]
        if refusal:
            log(f"NOT ISOLATED from the network, since this kernel refuses it a namespace: {refusal}")
        record.update(process_id=process.pid, network_isolated=refusal is None, memory_limit=_MEMORY_LIMIT)
        yield process
    finally:
        # As on Nitro, without a warning; and whatever it started, too.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def start(settings: Settings, module: str) -> tuple[subprocess.Popen[bytes], bytes]:
    """Start the boot code; returns its report too, which is empty if it failed."""
    root = settings.enclave.root
    reader, writer = os.pipe()
    task = {
        "module": module,
        "parent": os.getpid(),
        "memory_bytes": settings.memory_mib * MIB,
        "cpus": settings.cpu_ids,
        "report_fd": writer,
    }
    with os.fdopen(reader, "rb") as report:
        with os.fdopen(writer, "wb"), console(settings) as output, host_errors("can't start the payload"):
            process = subprocess.Popen(
                # Nothing of this interpreter's environment, site-packages or bytecode folders.
                [sys.executable, "-I", "-S", "-B", "-u", boot.__file__, json.dumps(task)],
                cwd=root,
                env={**_ENVIRONMENT, "HOME": str(root / HOME), "TMPDIR": str(root / HOME)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[writer],
                start_new_session=True,
            )
        return process, report.read()


@contextmanager
def console(settings: Settings) -> Iterator[IO[bytes] | int]:
    """Where the payload's output goes: nowhere, unless in debug mode."""
    if not settings.debug:
        yield subprocess.DEVNULL
        return
    with settings.enclave.console.open("ab") as file:
        yield file


def watch(
    settings: Settings, record: Record, process: subprocess.Popen[bytes], stop: threading.Event
) -> None:
    """:raises ServiceFailed: it ended by itself, couldn't start, or took more memory than it has."""
    peak_mib = 0
    while not stop.wait(_WATCH_S):
        use = memory_use(process.pid)
        peak_mib = max(peak_mib, use.data_mib)
        if process.poll() is not None:
            raise ended(process.returncode, settings, peak_mib)
        if use.resident_mib > settings.memory_mib:
            raise out_of_memory(use.resident_mib, settings)
        if record.info.state == "STARTING" and is_ready(settings):
            seconds = round(time.monotonic() - settings.started, 2)
            record.update(state="RUNNING", ready_after_s=seconds)
            log(f"ready after {seconds} s")


def is_ready(settings: Settings) -> bool:
    """Whether the payload itself says so.

    :raises ServiceFailed: it says that it never will.
    """
    from necli.transport import enclave_client  # takes a while to import, while the payload boots

    with enclave_client(settings.enclave.address, name=settings.enclave.name) as client:
        try:
            answer = client.get("/health", timeout=1)
            health = answer.json()
        except (NecliError, ValueError):
            return False
    if isinstance(health, dict) and health.get("status") == "failed":
        reason = str(health.get("reason"))[:300]
        raise ServiceFailed(f"the payload could not start: {reason}", hint=settings.console_hint)
    return answer.status_code == 200


@dataclass(frozen=True)
class MemoryUse:
    resident_mib: int = 0
    data_mib: int = 0
    """What RLIMIT_DATA counts."""


def memory_use(pid: int) -> MemoryUse:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return MemoryUse()
    sizes = {
        name: int(value.split()[0]) // 1024
        for name, _, value in (line.partition(":") for line in status.splitlines())
        if name in ("VmRSS", "VmData")
    }
    return MemoryUse(sizes.get("VmRSS", 0), sizes.get("VmData", 0))


def ended(status: int, settings: Settings, peak_mib: int = 0) -> ServiceFailed:
    if status and peak_mib >= _NEARLY_ALL * settings.memory_mib:
        return out_of_memory(peak_mib, settings)
    how = f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
    return ServiceFailed(f"the payload ended {how}", hint=settings.console_hint)


def out_of_memory(used_mib: int, settings: Settings) -> ServiceFailed:
    return ServiceFailed(
        f"out of memory: {used_mib} MiB used of {settings.memory_mib}",
        hint="run it again with more --memory",
        code="out_of_memory",
    )


def log(text: str) -> None:
    sys.stderr.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="necli.local.hypervisor", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--eif", type=Path, required=True)
    parser.add_argument("--memory", type=int, required=True, help="MiB")
    parser.add_argument("--cpu-ids", required=True, help="with commas between them")
    parser.add_argument("--debug-mode", action="store_true")
    options = parser.parse_args(argv)
    enclave = LocalEnclave(Home(options.home, cache=options.home), options.name)
    cpu_ids = tuple(int(number) for number in options.cpu_ids.split(","))
    settings = Settings(enclave, options.eif, options.memory, cpu_ids, options.debug_mode)
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    log(f"boots {settings.eif}")
    try:
        keep(settings, stop)
    except NecliError as exc:
        log(f"failed: {exc.message}")
        enclave.save_failure(exc)
        return exc.exit_code
    log("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
