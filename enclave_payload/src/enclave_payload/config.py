"""What the enclave accepts: its configuration, baked into the measured image and parsed once at the start.

`config.json` stands at the root of the image, and relative paths in it start there. Nothing in it comes from
the parent, so a key, a region or a limit can't be changed without changing PCR0.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, Self, TypeAlias, cast

_SCHEMA: Final = 1
_MAX_PORT: Final = 2**32 - 2  # vsock ports have 32 bits, and the highest one means "any"
_REGION: Final = r"[a-z]{2}(-[a-z]+)+-\d"
_KEY_ARN: Final = r"arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):\d{12}:key/[A-Za-z0-9-]+"
_HOST: Final = r"[a-z0-9-]+(\.[a-z0-9-]+)+"
_SHA384: Final = r"[0-9a-f]{96}"


class ConfigError(Exception):
    """The configuration in the image is missing, damaged or contradicts itself."""


@dataclass(frozen=True)
class VsockAddress:
    port: int
    cid: int = socket.VMADDR_CID_ANY

    def __str__(self) -> str:
        return f"vsock:{self.port}" if self.cid == socket.VMADDR_CID_ANY else f"vsock:{self.cid}:{self.port}"


@dataclass(frozen=True)
class UnixAddress:
    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address: TypeAlias = VsockAddress | UnixAddress


def parse_address(text: str) -> Address:
    """Read `vsock:PORT`, `vsock:CID:PORT` or `unix:PATH`. Raises ValueError."""
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest:
        return UnixAddress(Path(rest))
    if kind == "vsock" and re.fullmatch(r"(\d{1,10}:)?\d{1,10}", rest, re.ASCII):
        *cid, port = (int(number) for number in rest.split(":"))
        if 0 < port <= _MAX_PORT and all(number < socket.VMADDR_CID_ANY for number in cid):
            return VsockAddress(port, *cid)
    raise ValueError(f"{text!r} is neither vsock:PORT, vsock:CID:PORT nor unix:PATH")


@dataclass(frozen=True)
class KmsConfig:
    client: Literal["native", "kmstool"]
    region: str
    host: str
    """The name that TLS verifies, whatever the address is."""
    address: Address
    trust_roots: Path
    timeout_s: int
    kmstool: Path


@dataclass(frozen=True)
class ModelConfig:
    name: str
    path: Path
    digest: str


@dataclass(frozen=True)
class Limits:
    max_message_bytes: int
    max_pixels: int
    request_timeout_s: int
    concurrency: int
    queue: int
    max_objects: int


@dataclass(frozen=True)
class Config:
    version: str
    listen: Address
    nsm: Path
    kms: KmsConfig
    key_arn: str
    encryption_context: Mapping[str, str]
    """The pairs that a message must carry; it may carry more."""
    model: ModelConfig
    limits: Limits

    @classmethod
    def load(cls, path: Path) -> Self:
        try:
            value = json.loads(path.read_bytes())
        except OSError as exc:
            raise ConfigError(f"{path}: {exc.strerror}") from exc
        except (ValueError, RecursionError) as exc:
            raise ConfigError(f"{path}: not JSON") from exc
        return cls.from_json(value)

    @classmethod
    def from_json(cls, value: object) -> Self:
        table = _Table(value, "config")
        table.integer("schema", low=_SCHEMA, high=_SCHEMA)
        config = cls(
            version=table.text("version"),
            listen=table.address("listen"),
            nsm=Path(table.text("nsm")),
            kms=_kms(table.table("kms")),
            key_arn=table.text("key_arn", _KEY_ARN),
            encryption_context=table.table("encryption_context").pairs(),
            model=_model(table.table("model")),
            limits=_limits(table.table("limits")),
        )
        table.finish()
        _check_agreement(config)
        return config


def _kms(table: _Table) -> KmsConfig:
    kms = KmsConfig(
        client=cast(Literal["native", "kmstool"], table.text("client", "native|kmstool")),
        region=table.text("region", _REGION),
        host=table.text("host", _HOST),
        address=table.address("address"),
        trust_roots=Path(table.text("trust_roots")),
        timeout_s=table.integer("timeout_s", high=300),
        kmstool=Path(table.text("kmstool", default="/app/kmstool_enclave_cli")),
    )
    table.finish()
    return kms


def _model(table: _Table) -> ModelConfig:
    model = ModelConfig(
        name=table.text("name"), path=Path(table.text("path")), digest=table.text("digest", _SHA384)
    )
    table.finish()
    return model


def _limits(table: _Table) -> Limits:
    limits = Limits(
        max_message_bytes=table.integer("max_message_bytes", high=2**30),
        max_pixels=table.integer("max_pixels", high=2**30),
        request_timeout_s=table.integer("request_timeout_s", high=3600),
        concurrency=table.integer("concurrency", high=256),
        queue=table.integer("queue", low=0, high=4096),
        max_objects=table.integer("max_objects", high=100_000),
    )
    table.finish()
    return limits


def _check_agreement(config: Config) -> None:
    match = re.fullmatch(_KEY_ARN, config.key_arn)
    if match is None or match["region"] != config.kms.region:
        raise ConfigError(f"config.key_arn: not a key of {config.kms.region}, which config.kms.region names")
    address = config.kms.address
    if isinstance(address, VsockAddress) and address.cid == socket.VMADDR_CID_ANY:
        raise ConfigError("config.kms.address: needs a CID, as in vsock:3:8000")
    if config.kms.client == "kmstool" and config.encryption_context:
        raise ConfigError(
            "config.encryption_context: kmstool_enclave_cli can't send one, so it must be empty"
        )


class _Table:
    """One JSON object of the configuration. Every complaint names the member by its full path."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: not a JSON object")
        self._members = cast(dict[str, object], value)
        self._where = where
        self._seen: set[str] = set()

    def text(self, name: str, pattern: str = r"[^\0]+", *, default: str | None = None) -> str:
        value = self._take(name, default)
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
            raise ConfigError(f"{self._where}.{name}: not text of the form {pattern}")
        return value

    def integer(self, name: str, *, low: int = 1, high: int) -> int:
        value = self._take(name)
        if type(value) is not int or not low <= value <= high:  # a bool is an int, but not one of these
            raise ConfigError(f"{self._where}.{name}: not a whole number from {low} to {high}")
        return value

    def address(self, name: str) -> Address:
        try:
            return parse_address(self.text(name))
        except ValueError as exc:
            raise ConfigError(f"{self._where}.{name}: {exc}") from exc

    def table(self, name: str) -> _Table:
        return _Table(self._take(name), f"{self._where}.{name}")

    def pairs(self) -> Mapping[str, str]:
        return MappingProxyType({name: self.text(name) for name in self._members})

    def finish(self) -> None:
        """Refuse what nobody asked for: a misspelt limit must not pass for an absent one."""
        if unknown := sorted(self._members.keys() - self._seen):
            raise ConfigError(f"{self._where}.{unknown[0]}: unknown")

    def _take(self, name: str, default: object = None) -> object:
        self._seen.add(name)
        value = self._members.get(name, default)
        if value is None:
            raise ConfigError(f"{self._where}.{name}: missing")
        return value
