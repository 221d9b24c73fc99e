"""The parent's proxy on Nitro: AWS's vsock-proxy, kept running, with a list of exactly the endpoints in use.

vsock-proxy ends when one name can't be resolved and loses a worker to each refused connection, and tells
that on its stderr alone. So a supervisor starts it again, ever later, and remembers what it said last. The
supervisor is necli's own background process, or systemd's (templates/necli-proxy.service).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import signal
import socket
import ssl
import string
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from necli.allow_list import Endpoint, write_allow_list
from necli.backends import ServiceStatus
from necli.errors import Conflict, HostError, InputError, NecliError, ServiceFailed
from necli.home import make_private_folder, read_json, write_json_atomically
from necli.process import Daemon, ProcessId, open_lock
from necli.progress import Progress
from necli.resources import resource_folder

PORT = 8000
"""Where the enclave finds it, on the parent's CID 3."""
WORKERS = 16
"""Connections at a time; one that isn't answered keeps its worker, so more than the payload's own."""
UNIT = "necli-proxy.service"
CONNECT_TIMEOUT_S = 10.0
FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 60.0
_STEADY_S = 60.0
"""After so long a life, the next failure is a new one."""
_LISTENS = "in listening state"
_COMPLAINT = re.compile(r"^Error: |panicked at|Could not|command not found")
_PR_SET_PDEATHSIG = 1

ProxyState = Literal["starting", "listening", "waiting"]
"""Waiting: for the next start, after it ended."""

_libc = ctypes.CDLL(None, use_errno=True)


def check_endpoint(endpoint: Endpoint, *, trust: ssl.SSLContext | None = None) -> None:
    """Resolve its name, connect and verify its certificate, as the enclave will: before an enclave waits.

    :raises ServiceFailed: with the code `dns_failed`, `kms_unreachable` or `tls_untrusted`.
    """
    try:
        with socket.create_connection((endpoint.host, endpoint.port), CONNECT_TIMEOUT_S) as connection:
            context = trust or ssl.create_default_context()
            context.wrap_socket(connection, server_hostname=endpoint.host).close()
    except socket.gaierror as exc:
        raise ServiceFailed(
            f"the name {endpoint.host} can't be resolved: {exc.strerror}",
            hint="check --region, and that the VPC has DNS support and DNS host names enabled",
            code="dns_failed",
        ) from exc
    except ssl.SSLCertVerificationError as exc:
        raise ServiceFailed(
            f"what answers as {endpoint} isn't AWS: {exc.verify_message}",
            hint="let nothing intercept TLS between this instance and KMS: the enclave refuses it too",
            code="tls_untrusted",
        ) from exc
    except OSError as exc:
        reason = "no answer in time" if isinstance(exc, TimeoutError) else exc.strerror or str(exc)
        raise ServiceFailed(
            f"{endpoint} can't be reached: {reason}",
            hint="check the KMS endpoint or NAT, and that its security group lets this instance in on 443",
            code="kms_unreachable",
        ) from exc


def failure_of(said: str) -> NecliError:
    """The error that vsock-proxy's last words stand for."""
    if "not allowed" in said:
        return InputError(
            f"vsock-proxy: {said}", hint="run necli proxy start again: it writes the allow-list"
        )
    if re.search("open the file|read the file|yaml|No (allowlist|address|port) field", said):
        return InputError(f"vsock-proxy can't use its allow-list: {said}", hint="run necli proxy start again")
    if "bind" in said:
        return Conflict(
            f"vsock-proxy can't listen on vsock port {PORT}: {said}",
            hint="stop what has it: sudo systemctl disable --now nitro-enclaves-vsock-proxy",
            code="port_taken",
        )
    if re.search("resolve|lookup|DNS|No IP", said, re.IGNORECASE):
        return ServiceFailed(
            f"vsock-proxy can't resolve its endpoint: {said}",
            hint="check --region and the VPC's DNS",
            code="dns_failed",
        )
    return ServiceFailed(f"vsock-proxy ended: {said}", hint="run necli doctor, then necli proxy start")


@dataclass(frozen=True)
class NitroProxy:
    """The proxy of one region's KMS; everything of it stands in `folder`."""

    folder: Path
    region: str
    program: str = "vsock-proxy"
    check: Callable[[Endpoint], None] = check_endpoint

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"kms.{self.region}.amazonaws.com", 443)

    def start(self, progress: Progress) -> None:
        """Start it unless it runs, and wait until it listens.

        :raises HostError: vsock-proxy isn't installed.
        :raises NecliError: KMS can't be reached from here, or what vsock-proxy says is wrong.
        """
        with progress.step("Proxy") as step:
            if self._runs_elsewhere:
                step.note("runs already, under systemd")
                return
            self._start()
            step.note(f"allows {self.endpoint} only")

    def run(self) -> None:
        """Supervise it in the foreground, until a signal.

        :raises Conflict: it is supervised already.
        """
        supervisor = Supervisor(self._command(), self.endpoint, make_private_folder(self.folder))
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: supervisor.stop())
        supervisor.run()

    def stop(self) -> None:
        """:raises Conflict: systemd runs it, and would start it again."""
        if self._runs_elsewhere:
            raise Conflict("systemd runs the proxy", hint=f"sudo systemctl stop {UNIT}")
        self._daemon.stop()

    def status(self) -> ServiceStatus:
        record = self._record
        supervisor = _supervisor_in(record)
        return ServiceStatus(
            "proxy",
            running=supervisor is not None and record.get("state") == "listening",
            pid=supervisor.pid if supervisor else None,
            address=str(self.endpoint),
            log=self._daemon.log,
            last_error=record.get("last_error"),
        )

    def unit(self, *, necli: Path, user: str, state: Path) -> str:
        """A systemd unit that supervises it from boot on."""
        template = (resource_folder("templates") / UNIT).read_text(encoding="utf-8")
        return string.Template(template).substitute(
            necli=necli, user=user, state=state, region=self.region, path=os.defpath
        )

    @property
    def _daemon(self) -> Daemon:
        return Daemon.module(
            "proxy",
            self.folder,
            "necli.nitro.proxy",
            *(self.folder.absolute(), self.region, shutil.which(self.program) or self.program),
        )

    @property
    def _record(self) -> dict[str, Any]:
        with suppress(InputError, OSError):
            record = read_json(self.folder / "status.json")
            if isinstance(record, dict):
                return record
        return {}

    @property
    def _runs_elsewhere(self) -> bool:
        supervisor = _supervisor_in(self._record)
        return supervisor is not None and supervisor.pid != self._daemon.pid

    def _start(self) -> None:
        daemon = self._daemon
        self._command()
        if daemon.running_argv not in (None, list(daemon.argv)):
            daemon.stop()  # of another region
        self.check(self.endpoint)
        daemon.start(lambda: self._settled(daemon))
        record = self._record
        if record["state"] != "listening":
            daemon.stop()
            raise failure_of(record["said"])

    def _settled(self, daemon: Daemon) -> bool:
        """It listens, or has ended once."""
        supervisor = _supervisor_in(self._record)
        mine = supervisor is not None and supervisor.pid == daemon.pid
        return mine and self._record["state"] != "starting"

    def _command(self) -> list[str]:
        program = shutil.which(self.program)
        if program is None:
            raise HostError(
                f"{self.program} isn't installed",
                hint="run necli setup on the parent instance: it installs aws-nitro-enclaves-cli",
            )
        allow_list = self.folder / "vsock-proxy.yaml"
        write_allow_list(allow_list, self.region)
        where = (str(PORT), self.endpoint.host, str(self.endpoint.port))
        return [program, *where, "--config", str(allow_list), "--num_workers", str(WORKERS)]


@dataclass
class Supervisor:
    """Runs `command` again whenever it ends, each time after a longer pause."""

    command: Sequence[str]
    remote: Endpoint
    folder: Path
    first_delay_s: float = FIRST_DELAY_S
    state: ProxyState = "starting"
    starts: int = 0
    said: str | None = None
    """vsock-proxy's last complaint; `last_error` adds when and of what."""
    last_error: str | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)
    _child: subprocess.Popen[str] | None = None

    def run(self) -> None:
        with open_lock(self.folder / "supervisor.lock") as lock:
            self._acquire(lock)
            delay = self.first_delay_s
            while not self._stopping.is_set():
                started = time.monotonic()
                self._run_once()
                if time.monotonic() - started > _STEADY_S:
                    delay = self.first_delay_s
                self._stopping.wait(delay)
                delay = min(2 * delay, LONGEST_DELAY_S)

    def stop(self) -> None:
        self._stopping.set()
        if self._child is not None:
            self._child.terminate()

    def _acquire(self, lock: IO[bytes]) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict("the proxy runs already", hint="see necli proxy status") from None

    def _run_once(self) -> None:
        self.starts += 1
        self._enter("starting")
        said = ""
        try:
            self._child = self._spawn()
        except OSError as exc:
            said = f"{self.command[0]}: {exc.strerror}"
        else:
            said = self._listen_to(self._child)
        if not self._stopping.is_set():
            self.state = "waiting"
            self._complain(said)

    def _spawn(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={"PATH": os.defpath, "RUST_LOG": "vsock_proxy=info"},
            # A supervisor that is killed must not leave a proxy behind that keeps the port.
            preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
        )

    def _listen_to(self, child: subprocess.Popen[str]) -> str:
        """Until it ends; what it said last that was a complaint."""
        assert child.stderr is not None
        said = ""
        if self._stopping.is_set():  # the signal came while it was being started
            child.terminate()
        with child.stderr as lines:
            for line in map(str.strip, lines):
                if _LISTENS in line:
                    self._enter("listening")
                elif _COMPLAINT.search(line):
                    said = line.removeprefix("Error: ").strip('"')
                    self._complain(said)
        status = child.wait()
        return said or f"it ended with status {status}"

    def _complain(self, said: str) -> None:
        self.said = said
        self.last_error = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {self.remote}: {said}"
        sys.stderr.write(f"{self.last_error}\n")
        self._tell()

    def _enter(self, state: ProxyState) -> None:
        self.state = state
        self._tell()

    def _tell(self) -> None:
        process = ProcessId.now(os.getpid())
        assert process is not None
        # A full disk must not end the proxy.
        with suppress(NecliError):
            write_json_atomically(
                self.folder / "status.json",
                {
                    "state": self.state,
                    "pid": process.pid,
                    "start_time": process.start_time,
                    "remote": str(self.remote),
                    "starts": self.starts,
                    "said": self.said,
                    "last_error": self.last_error,
                },
            )


def _supervisor_in(record: dict[str, Any]) -> ProcessId | None:
    with suppress(KeyError, TypeError, ValueError):
        process = ProcessId(int(record["pid"]), int(record["start_time"]))
        return process if process.alive else None
    return None


def main(argv: Sequence[str]) -> int:
    folder, region, program = argv
    try:
        NitroProxy(Path(folder), region, program).run()
    except NecliError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
