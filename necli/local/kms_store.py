"""Keys, aliases and policies of the local KMS, in one SQLite file that a kill at any moment can't damage."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from necli.errors import HostError, InputError
from necli.home import host_errors, make_private_folder
from necli.local.identities import ACCOUNT

_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    key_id TEXT PRIMARY KEY,
    region TEXT NOT NULL,
    material BLOB NOT NULL,
    description TEXT NOT NULL,
    policy TEXT NOT NULL,
    created REAL NOT NULL,
    state TEXT NOT NULL,
    deletion_date REAL
);
CREATE TABLE IF NOT EXISTS aliases (
    region TEXT NOT NULL,
    name TEXT NOT NULL,
    key_id TEXT NOT NULL REFERENCES keys ON DELETE CASCADE,
    created REAL NOT NULL,
    updated REAL NOT NULL,
    PRIMARY KEY (region, name)
);
"""


@dataclass(frozen=True)
class Key:
    key_id: str
    region: str
    material: bytes = field(repr=False)
    description: str
    policy: str
    created: datetime
    state: str = "Enabled"
    deletion_date: datetime | None = None

    @property
    def arn(self) -> str:
        return f"arn:aws:kms:{self.region}:{ACCOUNT}:key/{self.key_id}"


@dataclass(frozen=True)
class Alias:
    name: str
    region: str
    key_id: str
    created: datetime
    updated: datetime

    @property
    def arn(self) -> str:
        return alias_arn(self.region, self.name)


def alias_arn(region: str, name: str) -> str:
    return f"arn:aws:kms:{region}:{ACCOUNT}:{name}"


class KeyStore:
    """What the KMS of one region keeps. Each call that changes something is one durable transaction."""

    def __init__(self, folder: Path, region: str) -> None:
        """:raises HostError: no room or no permission. :raises InputError: the file is damaged."""
        self.region = region
        path = make_private_folder(folder) / "kms.sqlite"
        with host_errors(f"can't open {path}"):
            # Made here, so that the key material is never readable by others; -wal and -shm follow suit.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=10)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA secure_delete=ON")
            self._db.execute("PRAGMA foreign_keys=ON")
            self._db.executescript(_SCHEMA)
        except sqlite3.OperationalError as exc:
            raise HostError(f"can't open {path}: {exc}", hint="run necli doctor") from exc
        except sqlite3.DatabaseError as exc:
            raise InputError(
                f"{path} is damaged: {exc}",
                hint=f"move {path.parent} away; what is encrypted under its keys is lost",
            ) from exc

    def close(self) -> None:
        self._db.close()

    def add_key(self, key: Key) -> None:
        self._db.execute(
            "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
            (
                key.key_id,
                self.region,
                key.material,
                key.description,
                key.policy,
                key.created.timestamp(),
                key.state,
            ),
        )

    def key(self, key_id: str) -> Key | None:
        row = self._db.execute(
            "SELECT * FROM keys WHERE key_id = ? AND region = ?", (key_id, self.region)
        ).fetchone()
        return _key(row) if row else None

    def all_keys(self) -> list[Key]:
        rows = self._db.execute("SELECT * FROM keys WHERE region = ? ORDER BY key_id", (self.region,))
        return [_key(row) for row in rows]

    def set_policy(self, key_id: str, policy: str) -> None:
        self._db.execute("UPDATE keys SET policy = ? WHERE key_id = ?", (policy, key_id))

    def set_state(self, key_id: str, state: str, deletion_date: datetime | None = None) -> None:
        self._db.execute(
            "UPDATE keys SET state = ?, deletion_date = ? WHERE key_id = ?",
            (state, deletion_date.timestamp() if deletion_date else None, key_id),
        )

    def delete_overdue_keys(self, now: datetime) -> None:
        """Destroy what was scheduled for deletion by now, aliases included."""
        self._db.execute("DELETE FROM keys WHERE deletion_date <= ?", (now.timestamp(),))

    def add_alias(self, name: str, key_id: str, now: datetime) -> bool:
        """False where the name is taken."""
        with suppress(sqlite3.IntegrityError):
            self._db.execute(
                "INSERT INTO aliases VALUES (?, ?, ?, ?, ?)",
                (self.region, name, key_id, now.timestamp(), now.timestamp()),
            )
            return True
        return False

    def set_alias(self, name: str, key_id: str, now: datetime) -> None:
        self._db.execute(
            "UPDATE aliases SET key_id = ?, updated = ? WHERE region = ? AND name = ?",
            (key_id, now.timestamp(), self.region, name),
        )

    def delete_alias(self, name: str) -> None:
        self._db.execute("DELETE FROM aliases WHERE region = ? AND name = ?", (self.region, name))

    def alias(self, name: str) -> Alias | None:
        row = self._db.execute(
            "SELECT * FROM aliases WHERE region = ? AND name = ?", (self.region, name)
        ).fetchone()
        return _alias(row) if row else None

    def aliases(self, key_id: str | None = None) -> list[Alias]:
        rows = self._db.execute(
            "SELECT * FROM aliases WHERE region = ?1 AND (?2 IS NULL OR key_id = ?2) ORDER BY name",
            (self.region, key_id),
        )
        return [_alias(row) for row in rows]


def _moment(timestamp: float) -> datetime:
    return datetime.fromtimestamp(timestamp, UTC)


def _key(row: tuple[str, str, bytes, str, str, float, str, float | None]) -> Key:
    key_id, region, material, description, policy, created, state, deletion = row
    deletion_date = None if deletion is None else _moment(deletion)
    return Key(key_id, region, material, description, policy, _moment(created), state, deletion_date)


def _alias(row: tuple[str, str, str, float, float]) -> Alias:
    region, name, key_id, created, updated = row
    return Alias(name, region, key_id, _moment(created), _moment(updated))
