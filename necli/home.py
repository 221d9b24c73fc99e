"""Where necli keeps its state, and how a file there is replaced: whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from necli.errors import Conflict, HostError, InputError


@dataclass(frozen=True)
class Home:
    """The state folder (NECLI_HOME) and the model cache; every path below them has its name here."""

    state: Path
    cache: Path

    @property
    def state_file(self) -> Path:
        return self.state / "state.json"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def aws(self) -> Path:
        """AWS config and credentials files for the local identities."""
        return self.state / "aws"

    @property
    def kms(self) -> Path:
        return self.state / "kms"

    @property
    def proxy(self) -> Path:
        return self.state / "proxy"

    @property
    def builds(self) -> Path:
        return self.state / "builds"

    @property
    def enclaves(self) -> Path:
        return self.state / "enclaves"

    @property
    def backups(self) -> Path:
        return self.state / "backups"

    @property
    def models(self) -> Path:
        return self.cache / "models"

    @contextmanager
    def lock(self, doing: str) -> Iterator[None]:
        """Hold the state folder for one command that changes it; the kernel drops it with the process.

        :raises Conflict: another necli holds it; the error names what it is doing and its pid.
        """
        make_private_folder(self.state)
        with open(self.state / "lock", "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another necli"
                raise Conflict(
                    f"{holder} is at work in {self.state}",
                    hint="wait until it is done, or set NECLI_HOME to another folder",
                ) from None
            file.seek(0)
            file.truncate()
            file.write(f"necli {doing} (pid {os.getpid()})")
            file.flush()
            yield


def make_private_folder(path: Path) -> Path:
    """Make `path` and its parents if need be, readable by the user alone.

    :raises HostError: the folder can't be made.
    """
    with host_errors(f"can't make the folder {path}"):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def write_atomically(path: Path, data: bytes | str, *, mode: int = 0o600) -> None:
    """Replace `path` by `data`: a reader, or a crash at any point, sees the old file or the new one.

    :raises HostError: disk full, no permission.
    """
    import tempfile  # takes as long as a tenth of `necli --help`

    raw = data.encode() if isinstance(data, str) else data
    make_private_folder(path.parent)
    with host_errors(f"can't write {path}"):
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink()
            raise


def write_json_atomically(path: Path, value: Any, *, mode: int = 0o600) -> None:
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", mode=mode)


def read_json(path: Path) -> Any:
    """The parsed file, or None where there is none.

    :raises InputError: the file isn't JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as exc:
        raise InputError(f"{path} isn't valid JSON: {exc}", hint="restore or remove the file") from exc


@contextmanager
def host_errors(what: str) -> Iterator[None]:
    """Turn an OSError of this machine into a HostError that says `what` failed and the usual cure."""
    try:
        yield
    except OSError as exc:
        hint = {
            errno.ENOSPC: "free some space on that disk, or set NECLI_HOME to another one",
            errno.EDQUOT: "free some space in your quota, or set NECLI_HOME to another disk",
            errno.EACCES: "check the folder's owner and permissions",
            errno.EPERM: "check the folder's owner and permissions",
            errno.EROFS: "that file system is read-only: set NECLI_HOME to another folder",
        }.get(exc.errno or 0, "run necli doctor")
        raise HostError(f"{what}: {exc.strerror or exc}", hint=hint) from exc
