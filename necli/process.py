"""Starts, finds and stops necli's own background processes.

A daemon holds a lock for as long as it lives (it inherits the open file), so two can't run at once and no
stale file is ever in the way. Its pid file names the process by pid and start time: a recycled pid is never
mistaken for it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from necli.errors import Conflict, HostError, InputError, ServiceFailed
from necli.home import host_errors, make_private_folder, read_json, write_json_atomically

# The child goes on when its pid file stands: should necli die before, nobody could ever find the child.
_GATE = """\
import os, sys
os.closerange(4, 1 << 20)
os.read(0, 1) or sys.exit()
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.chdir("/")
os.execv(sys.argv[1], sys.argv[1:])
"""
_ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
_LOCK_FD = 3
_START_BY_ANOTHER_S = 5.0


@dataclass(frozen=True)
class ProcessId:
    """A process, told apart from a later one with the same pid by its start time."""

    pid: int
    start_time: int

    @classmethod
    def now(cls, pid: int) -> ProcessId | None:
        """The process that has this pid now; None where there is none, or only a zombie."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        state, *fields = stat.rpartition(")")[2].split()
        return None if state in "ZX" else cls(pid, int(fields[18]))

    @property
    def alive(self) -> bool:
        return ProcessId.now(self.pid) == self

    def signal(self, signum: signal.Signals) -> None:
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signum)


@dataclass(frozen=True)
class Daemon:
    """A background process of necli's; its pid file, lock and log stand in `folder`."""

    name: str
    folder: Path
    argv: Sequence[str] = ()
    """The command line; not needed to find or stop it."""

    @classmethod
    def module(cls, name: str, folder: Path, module: str, *arguments: str | Path | int) -> Daemon:
        """A module of necli's, run by the interpreter that runs this."""
        return cls(name, folder, (sys.executable, "-m", module, *map(str, arguments)))

    @property
    def log(self) -> Path:
        """The output of this run, or of the last; the one before it has `.1` behind its name."""
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """None while it isn't running."""
        process = self._process()
        return process.pid if process else None

    @property
    def running_argv(self) -> list[str] | None:
        """The command line that it runs with, which may be an older necli's; None while it isn't running."""
        return self._record().get("argv") if self.pid else None

    def start(self, ready: Callable[[], bool], *, timeout: float = 30) -> bool:
        """Start it unless it runs already, and wait until `ready`; True if this call started it.

        :raises Conflict: another necli is starting it, and takes too long.
        :raises ServiceFailed: it ended, or wasn't ready in time; the message ends with its log.
        """
        with open_lock(self.folder / f"{self.name}.lock") as lock:
            started = self._acquire(lock)
            if started:
                self._spawn(lock)
        try:
            self._await(ready, timeout)
        except BaseException:
            if started:
                self.stop()
            raise
        return started

    def stop(self, *, grace: float = 5) -> bool:
        """TERM, and KILL after `grace` seconds; True if there was something to stop."""
        process = self._process()
        if process is None:
            return False
        for signum in (signal.SIGTERM, signal.SIGKILL):
            process.signal(signum)
            if _poll(lambda: self._process() != process, grace):
                return True
        raise HostError(f"{self.name} (pid {process.pid}) doesn't end", hint=f"see {self.log}")

    def log_tail(self, lines: int = 8) -> list[str]:
        try:
            return self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        except OSError:
            return []

    @property
    def _pid_file(self) -> Path:
        return self.folder / f"{self.name}.pid"

    def _record(self) -> dict[str, Any]:
        with suppress(InputError, OSError):
            record = read_json(self._pid_file)
            if isinstance(record, dict):
                return record
        return {}

    def _process(self) -> ProcessId | None:
        record = self._record()
        try:
            process = ProcessId(int(record["pid"]), int(record["start_time"]))
        except (KeyError, TypeError, ValueError):
            return None
        with suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
        return process if process.alive else None

    def _acquire(self, lock: IO[bytes]) -> bool:
        """Take the lock for a new process; False if one that runs has it."""
        deadline = time.monotonic() + _START_BY_ANOTHER_S
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            if self.pid:
                return False
            if time.monotonic() > deadline:
                raise Conflict(f"another necli is starting {self.name}", hint="wait a moment, then try again")
            time.sleep(0.02)

    def _spawn(self, lock: IO[bytes]) -> None:
        with host_errors(f"can't start {self.name}"):
            if self.log.exists():
                self.log.replace(self.log.with_suffix(".log.1"))
            gate, opener = os.pipe()
            try:
                process = ProcessId.now(self._fork(gate, lock.fileno()))
                if process is None:
                    raise ServiceFailed(f"{self.name} ended at once", hint="run necli doctor")
                write_json_atomically(self._pid_file, {**asdict(process), "argv": list(self.argv)})
                os.write(opener, b"\n")
            finally:
                os.close(gate)
                os.close(opener)

    def _fork(self, gate: int, lock: int) -> int:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", "-c", _GATE, *self.argv],
            _ENVIRONMENT,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, gate, 0),
                (os.POSIX_SPAWN_OPEN, 1, self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, lock, _LOCK_FD),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE),
        )

    def _await(self, ready: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not ready():
            if self.pid is None:
                raise self._failed("ended before it was ready")
            if time.monotonic() > deadline:
                raise self._failed(f"wasn't ready within {timeout:g} s")
            time.sleep(0.02)

    def _failed(self, what: str) -> ServiceFailed:
        tail = "".join(f"\n  {line}" for line in self.log_tail())
        return ServiceFailed(f"{self.name} {what}{tail}", hint=f"its log is {self.log}")


def open_lock(path: Path) -> IO[bytes]:
    """A file to take an flock on; the kernel drops that with the last process that has it open."""
    make_private_folder(path.parent)
    with host_errors(f"can't open {path}"):
        return path.open("ab")


def _poll(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
