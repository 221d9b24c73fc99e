"""HTTP/1.1 on an AF_VSOCK or AF_UNIX socket: uvicorn, made fit for clients that mean harm.

What is added to uvicorn: every refusal is a JSON answer with a code, clients that are slow or silent lose
their connection, and no single write is larger than vsock carries safely.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from enclave_payload.app import error_response
from enclave_payload.config import Address, UnixAddress
from enclave_payload.errors import PayloadError

MAX_CONNECTIONS: Final = 256
HEAD_TIMEOUT_S: Final = 10.0
"""How long a connection may take to its next whole request head, the rest of an unread body included."""

STALL_TIMEOUT_S: Final = 10.0
"""How long a client may leave its answers unread."""

_SHUTDOWN_S: Final = 10
_BACKLOG: Final = 512
_MAX_HEAD_BYTES: Final = 32 * 1024
_MAX_WRITE: Final = 32 * 1024
"""Larger single writes to a vsock were seen corrupted on recent kernels."""


def listen(address: Address) -> socket.socket:
    """:raises OSError: the address is taken, or can't be bound."""
    if isinstance(address, UnixAddress):
        listener = _SmallWrites(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(address.path))
    else:
        listener = _SmallWrites(socket.AF_VSOCK, socket.SOCK_STREAM)
        listener.bind((address.cid, address.port))
    listener.listen(_BACKLOG)
    return listener


def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
        timeout_keep_alive=round(HEAD_TIMEOUT_S),
        timeout_graceful_shutdown=_SHUTDOWN_S,
        backlog=_BACKLOG,
    )
    uvicorn.Server(config).run(sockets=[listener])


class _SmallWrites(socket.socket):
    """Never sends more than 32 KiB at once, nor does what it accepts; asyncio sends the rest later."""

    def accept(self) -> tuple[socket.socket, Any]:
        accepted, peer = super().accept()
        return _SmallWrites(accepted.family, accepted.type, accepted.proto, accepted.detach()), peer

    def send(self, data: bytes | bytearray | memoryview, flags: int = 0, /) -> int:  # type: ignore[override]
        return super().send(memoryview(data)[:_MAX_WRITE], flags)

    def sendmsg(self, buffers: Any, *rest: Any) -> int:
        return self.send(next(iter(buffers)))


class _Protocol(H11Protocol):
    """One connection."""

    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(PayloadError("busy", "too many connections; try again"))
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def eof_received(self) -> None:
        if self._answering and self.cycle.more_body:
            self._refuse(PayloadError("bad_request", "the body ended before the length it announced"))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALL_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled:
            self._stalled.cancel()
            self._stalled = None

    def send_400_response(self, msg: str) -> None:
        self._refuse(PayloadError("bad_request", msg))

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        """Run a deadline exactly while the next request is due; more bytes don't put it off."""
        if self._answering or self.transport.is_closing():
            if self._deadline:
                self._deadline.cancel()
                self._deadline = None
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.abort)

    def _refuse(self, error: PayloadError) -> None:
        """Answer for the application, which learns that its client is gone, and hang up."""
        if self._answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = error_response(error, {"connection": "close"})
            head = h11.Response(status_code=response.status_code, headers=response.raw_headers)
            for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
