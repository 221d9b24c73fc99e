"""What necli made and must find again: the key, and the enclave image that was built last.

Everything else is asked of whoever knows: KMS for the policy, the backend for enclaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from necli.errors import InputError
from necli.home import Home, read_json, write_json_atomically
from necli.measurements import Measurements

_SCHEMA = 1


@dataclass(frozen=True)
class Key:
    arn: str
    alias: str


@dataclass(frozen=True)
class Build:
    """An enclave image as it was when it was built; the file may have changed since."""

    path: Path
    measurements: Measurements
    size: int
    model_name: str
    model_digest: str
    key_arn: str
    kms_client: str
    encryption_context: Mapping[str, str]
    built_at: datetime

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "measurements": self.measurements.to_json(),
            "size": self.size,
            "model_name": self.model_name,
            "model_digest": self.model_digest,
            "key_arn": self.key_arn,
            "kms_client": self.kms_client,
            "encryption_context": dict(self.encryption_context),
            "built_at": self.built_at.isoformat(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Build:
        return cls(
            path=Path(value["path"]),
            measurements=Measurements.from_json(value["measurements"]),
            size=int(value["size"]),
            model_name=str(value["model_name"]),
            model_digest=str(value["model_digest"]),
            key_arn=str(value["key_arn"]),
            kms_client=str(value["kms_client"]),
            encryption_context={str(k): str(v) for k, v in value["encryption_context"].items()},
            built_at=datetime.fromisoformat(value["built_at"]),
        )


@dataclass(frozen=True)
class State:
    """The state of one target; each has its own section of the file."""

    key: Key | None = None
    build: Build | None = None

    @classmethod
    def load(cls, home: Home, target: str) -> State:
        """:raises InputError: the file is damaged."""
        try:
            section = _sections(home).get(target, {})
            key, build = section.get("key"), section.get("build")
            return cls(
                key=Key(str(key["arn"]), str(key["alias"])) if key else None,
                build=Build.from_json(build) if build else None,
            )
        except (AttributeError, KeyError, TypeError, ValueError, InputError) as exc:
            raise InputError(
                f"the state file {home.state_file} is damaged: {exc}",
                hint=f"remove {home.state_file}, then run necli up: it finds the key by its alias",
                code="state_damaged",
            ) from exc

    def save(self, home: Home, target: str) -> None:
        section = {
            "key": {"arn": self.key.arn, "alias": self.key.alias} if self.key else None,
            "build": self.build.to_json() if self.build else None,
        }
        targets = {**_sections(home), target: section}
        write_json_atomically(home.state_file, {"schema": _SCHEMA, "targets": targets})

    def with_key(self, key: Key) -> State:
        return replace(self, key=key)

    def with_build(self, build: Build) -> State:
        return replace(self, build=build)


def _sections(home: Home) -> dict[str, Any]:
    content = read_json(home.state_file)
    if content is None:
        return {}
    if content["schema"] != _SCHEMA:
        raise ValueError(f"its schema is {content['schema']}, and this necli reads {_SCHEMA}")
    return dict(content["targets"])
