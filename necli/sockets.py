"""Addresses to and from an enclave: AF_VSOCK, and the AF_UNIX sockets that stand for it locally."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class UnixAddress:
    """A socket in the file system; unlike the kernel's own limit of 108 bytes, its path has any length."""

    path: Path

    def connect(self, timeout: float | None) -> socket.socket:
        with self._short_name() as name:
            return _connect(socket.AF_UNIX, name, timeout)

    def listen(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """Listen in the place of a stale socket, open to this user alone."""
        listener = socket.socket(socket.AF_UNIX, kind)
        try:
            self.path.unlink(missing_ok=True)
            with self._short_name() as name:
                listener.bind(name)
            self.path.chmod(0o600)
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
        return listener

    @contextmanager
    def _short_name(self) -> Iterator[str]:
        folder = os.open(self.path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{folder}/{self.path.name}"
        finally:
            os.close(folder)


@dataclass(frozen=True)
class VsockAddress:
    cid: int
    port: int

    def connect(self, timeout: float | None) -> socket.socket:
        return _connect(socket.AF_VSOCK, (self.cid, self.port), timeout)


def _connect(family: int, address: Any, timeout: float | None) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection
