"""One local enclave as it stands in the state folder: who writes what, and how it is found and swept away.

<name>/lock              held by the command that runs or stops it
<name>/hypervisor.*      the hypervisor's lock, pid file and log
<name>/enclave.json      what it is, written by the hypervisor alone
<name>/failure.json      why it didn't boot, or ended
<name>/console.log       in debug mode
<name>/root/             what was unpacked from the image; gone with the enclave
"""

from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import necli.errors
from necli.backends import EnclaveInfo
from necli.errors import Conflict, InputError, NecliError, ServiceFailed, UsageError
from necli.home import Home, host_errors, read_json, write_json_atomically
from necli.process import Daemon, open_lock
from necli.sockets import UnixAddress

# In the enclave's root folder, where the payload finds them.
LISTEN = "vsock/5005.sock"
"""Its own port 5005."""
PROXY = "vsock/3-8000.sock"
"""Port 8000 of CID 3, the parent."""
NSM = "nsm.sock"
HOME = "home"

_FIRST_CID = 16
"""Nitro gives enclaves 16 and up; 3 is the parent."""


@dataclass(frozen=True)
class LocalEnclave:
    home: Home
    name: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", self.name):
            raise UsageError(
                f"{self.name!r} can't be an enclave's name", hint="use letters, digits, - and _; at most 63"
            )

    @property
    def folder(self) -> Path:
        return self.home.enclaves / self.name

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def console(self) -> Path:
        return self.folder / "console.log"

    @property
    def address(self) -> UnixAddress:
        """Where its port 5005 is found."""
        return UnixAddress(self.root / LISTEN)

    @property
    def hypervisor(self) -> Daemon:
        return Daemon("hypervisor", self.folder)

    @property
    def exists(self) -> bool:
        """Whether there is anything to stop or to sweep away."""
        return self._info_file.exists() or self.root.exists() or self.hypervisor.pid is not None

    def info(self) -> EnclaveInfo | None:
        """What is known of it; None where nothing ran since it was last swept away."""
        value = read_json(self._info_file)
        if value is None:
            return None
        try:
            info = EnclaveInfo.from_json(value)
        except (KeyError, TypeError, ValueError, NecliError) as exc:
            raise InputError(f"{self._info_file} is damaged", hint=f"necli enclave stop {self.name}") from exc
        if info.state != "TERMINATED" and self.hypervisor.pid is None:
            return replace(info, state="TERMINATED", process_id=None, exit_reason="its hypervisor was killed")
        return info

    def save(self, info: EnclaveInfo) -> None:
        write_json_atomically(self._info_file, info.to_json())

    def failure(self) -> NecliError | None:
        """Why it didn't boot, as the hypervisor saw it."""
        value = read_json(self._failure_file)
        if not isinstance(value, dict):
            return None
        kind = getattr(necli.errors, str(value.get("kind")), ServiceFailed)
        error: NecliError = kind(str(value["message"]), hint=value["hint"], code=value["code"])
        return error

    def save_failure(self, error: NecliError) -> None:
        kind = next(base for base in type(error).__mro__ if base.__module__ == necli.errors.__name__)
        value = {"kind": kind.__name__, "message": error.message, "hint": error.hint, "code": error.code}
        with suppress(NecliError):  # a full disk may be the failure
            write_json_atomically(self._failure_file, value)

    def sweep(self) -> None:
        """Remove what an enclave leaves, however it ended; logs stay."""
        with host_errors(f"can't clean up {self.folder}"):
            if self.root.exists():
                shutil.rmtree(self.root)
            for path in (self._info_file, self._failure_file, self.console):
                path.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """:raises Conflict: another command runs or stops this enclave."""
        with open_lock(self.folder / "lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict(
                    f"another command is at work on the enclave {self.name}",
                    hint="wait until it is done, or use another name",
                ) from None
            yield

    @property
    def _info_file(self) -> Path:
        return self.folder / "enclave.json"

    @property
    def _failure_file(self) -> Path:
        return self.folder / "failure.json"


def all_enclaves(home: Home) -> list[LocalEnclave]:
    found = sorted(path.parent.name for path in home.enclaves.glob("*/enclave.json"))
    return [LocalEnclave(home, name) for name in found]


@contextmanager
def new_cid(home: Home) -> Iterator[int]:
    """A CID that no enclave has; the caller's must be in its state file before this ends."""
    with open_lock(home.enclaves / "cids.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        infos: list[Any] = [enclave.info() for enclave in all_enclaves(home)]
        taken = {info.cid for info in infos if info and info.state != "TERMINATED"}
        yield next(cid for cid in range(_FIRST_CID, 1 << 20) if cid not in taken)
