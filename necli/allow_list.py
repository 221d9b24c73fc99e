"""What the parent's proxy may connect an enclave to, in vsock-proxy's own format."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import yaml

from necli.errors import InputError, NecliError, UsageError
from necli.home import write_atomically
from necli.resources import resource_folder


@dataclass(frozen=True, order=True)
class Endpoint:
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UsageError(f"{text!r} isn't HOST:PORT")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def write_allow_list(path: Path, region: str) -> None:
    """The allow-list of exactly the endpoints in use: KMS of that region."""
    template = (resource_folder("templates") / "vsock-proxy.yaml").read_text(encoding="utf-8")
    write_atomically(path, string.Template(template).substitute(region=region))


def read_allow_list(path: Path) -> frozenset[Endpoint]:
    """:raises InputError: it isn't a list of addresses and ports, or can't be read."""
    hint = "write it again with necli setup"
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))["allowlist"]
        return frozenset(Endpoint.parse(f"{entry['address']}:{entry['port']}") for entry in entries)
    except OSError as exc:
        raise InputError(f"can't read the allow-list {path}: {exc.strerror}", hint=hint) from exc
    except (yaml.YAMLError, KeyError, TypeError, NecliError) as exc:
        raise InputError(f"{path} isn't an allow-list: {exc}", hint=hint) from exc
