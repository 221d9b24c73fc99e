"""The parent's proxy, locally: what vsock-proxy does on an EC2 instance, on an AF_UNIX socket.

It moves bytes and can't read them (TLS ends in the enclave). The allow-list has vsock-proxy's own format and
is enforced before anything listens. `--resolve` stands for DNS: it says where the local KMS answers for the
endpoint's name. Unlike vsock-proxy, it survives every failed connection, and it remembers the last error.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from necli.allow_list import Endpoint, read_allow_list
from necli.errors import InputError, NecliError
from necli.home import write_json_atomically
from necli.sockets import UnixAddress

CONNECT_TIMEOUT_S = 10.0
_CHUNK = 32 << 10


@dataclass
class Relay:
    """Connects whoever comes to one remote, and keeps count."""

    remote: Endpoint
    resolved: Endpoint
    status_file: Path
    connections: int = 0
    failed: int = 0
    last_error: str | None = None

    def __post_init__(self) -> None:
        self._write_status()

    async def serve(self, listener: socket.socket) -> None:
        server = await asyncio.start_unix_server(self._connection, sock=listener, limit=_CHUNK)
        async with server:
            await server.serve_forever()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._join(reader, writer)
        except OSError as exc:
            self.failed += 1
            reason = os.strerror(exc.errno) if exc.errno else "no answer in time"
            self.last_error = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {self.remote}: {reason}"
            sys.stderr.write(f"{self.last_error}\n")
            self._write_status()
        finally:
            writer.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            remote_reader, remote_writer = await asyncio.open_connection(
                self.resolved.host, self.resolved.port, limit=_CHUNK
            )
        try:
            await asyncio.gather(_pump(reader, remote_writer), _pump(remote_reader, writer))
        finally:
            remote_writer.close()

    def _write_status(self) -> None:
        # A full disk must not end the proxy.
        with suppress(NecliError):
            write_json_atomically(
                self.status_file,
                {
                    "remote": str(self.remote),
                    "resolved": str(self.resolved),
                    "failed": self.failed,
                    "last_error": self.last_error,
                },
            )


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="necli.local.proxy", description=__doc__)
    parser.add_argument("--listen", type=Path, required=True)
    parser.add_argument("--allow-list", type=Path, required=True)
    parser.add_argument("--remote", type=Endpoint.parse, required=True)
    parser.add_argument("--resolve", type=Endpoint.parse, required=True)
    parser.add_argument("--status", type=Path, required=True)
    options = parser.parse_args(argv)
    try:
        if options.remote not in read_allow_list(options.allow_list):
            raise InputError(f"{options.remote} isn't on the allow-list {options.allow_list}")
    except NecliError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return exc.exit_code
    relay = Relay(options.remote, options.resolve, options.status)
    asyncio.run(relay.serve(UnixAddress(options.listen).listen()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
