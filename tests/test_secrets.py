"""While the main job is done, no secret stands where others could read it: argv, environment, log, file."""

from __future__ import annotations

import base64
import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from necli.models import InstalledModel
from tests.cli.program import Necli

_DECLARED = ("aws/credentials", "aws/identities.json", "kms/kms.sqlite")
"""Below NECLI_HOME, for their owner alone: what the AWS CLI reads, and what the local KMS is."""
_JOURNAL = ("kms/kms.sqlite-wal", "kms/kms.sqlite-shm")


class Watch(threading.Thread):
    """Looks for secrets in every process, and in every file below `folder`, again and again."""

    def __init__(self, secrets: Mapping[str, bytes], folder: Path) -> None:
        super().__init__(daemon=True)
        self._secrets, self._folder = secrets, folder
        self._stopped = threading.Event()
        self.rounds = 0
        self.found: set[str] = set()

    def run(self) -> None:
        while not self._stopped.wait(0.05):
            said = [path for name in ("cmdline", "environ") for path in Path("/proc").glob(f"[0-9]*/{name}")]
            for path in [*said, *self._folder.rglob("*")]:
                self.found.update(secrets_in(path, self._secrets))
            self.rounds += 1

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def secrets_in(path: Path, secrets: Mapping[str, bytes]) -> Iterator[str]:
    with contextlib.suppress(OSError):  # it is gone, or no file
        content = path.read_bytes()
        for name, secret in secrets.items():
            if secret in content:
                yield f"{name} in {path}"


def _secrets(home: Path, photo: bytes) -> dict[str, bytes]:
    identities = json.loads((home / "aws" / "identities.json").read_text())
    with contextlib.closing(sqlite3.connect(home / "kms" / "kms.sqlite")) as store:
        (material,) = store.execute("SELECT material FROM keys").fetchone()
    found = {
        f"{member} of {who}": value.encode()
        for who, members in identities.items()
        for member, value in members.items()
        if member in ("secret_access_key", "session_token")
    }
    assert len(found) >= 6
    keys = {
        "key": material,
        "key in hex": material.hex().encode(),
        "key in base64": base64.b64encode(material),
    }
    middle = photo[len(photo) // 2 :][:48]
    return found | keys | {"photo": middle, "photo in base64": base64.b64encode(middle)}


def test_the_watch_sees_what_it_looks_for(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("token=s3cret")
    assert list(secrets_in(tmp_path / "log", {"token": b"s3cret"})) == [f"token in {tmp_path / 'log'}"]


@pytest.mark.timeout(400)
def test_no_secret_stands_in_argv_environment_log_or_file(
    tmp_path: Path, embedded_model: InstalledModel
) -> None:
    for name in ("here", "tmp"):
        (tmp_path / name).mkdir()
    necli = Necli(tmp_path / "state", tmp_path / "here", {"TMPDIR": str(tmp_path / "tmp")})
    assert embedded_model.sample is not None
    photo = embedded_model.sample
    try:
        necli.ok("setup")
        secrets = _secrets(necli.home, photo.read_bytes())
        watch = Watch(secrets, tmp_path / "tmp")
        watch.start()
        screens = [necli.ok("up"), necli.ok("detect", photo), necli.ok("detect", photo, "--json")]
        screens.append(necli.ok("prove"))
        time.sleep(0.1)
        watch.stop()
        in_files = [found for path in _files(tmp_path) for found in secrets_in(path, secrets)]
        readable = [path for path in _DECLARED if (necli.home / path).stat().st_mode & 0o077]
    finally:
        necli.run("cleanup", "--yes")
    assert watch.rounds > 3
    assert not watch.found
    assert not in_files
    assert not readable
    assert not [name for name, secret in secrets.items() if any(secret in s.encode() for s in screens)]


def _files(folder: Path) -> Iterator[Path]:
    declared = {folder / "state" / name for name in (*_DECLARED, *_JOURNAL)}
    return (path for path in folder.rglob("*") if path.is_file() and path not in declared)
