"""HTTP to an enclave: httpx over AF_VSOCK, or over the AF_UNIX socket that stands for it locally.

Single vsock writes above 32 KiB were seen corrupted on recent kernels, so no write here is larger.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx

from necli.errors import NotReady, ServiceFailed
from necli.sockets import UnixAddress, VsockAddress

MAX_WRITE = 32 << 10
CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 75.0
"""Longer than the payload's own time limit, so that its answer comes first."""


def enclave_client(address: UnixAddress | VsockAddress, *, name: str) -> httpx.Client:
    """A client of the enclave `name`; what goes wrong below HTTP is raised as a NecliError."""
    return httpx.Client(
        transport=EnclaveTransport(address, name),
        base_url="http://enclave",
        timeout=httpx.Timeout(REQUEST_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
    )


class EnclaveTransport(httpx.BaseTransport):
    """httpx's transport, with the socket replaced and the errors in the user's words."""

    def __init__(self, address: UnixAddress | VsockAddress, name: str) -> None:
        self._name = name
        self._pool = httpcore.ConnectionPool(network_backend=_Network(address.connect))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.SyncByteStream)
        with _errors(self._name):
            answer = self._pool.handle_request(
                httpcore.Request(
                    request.method,
                    httpcore.URL(
                        scheme=request.url.raw_scheme,
                        host=request.url.raw_host,
                        port=request.url.port,
                        target=request.url.raw_path,
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        assert isinstance(answer.stream, Iterable)
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_Body(answer, self._name),
            extensions=answer.extensions,
        )

    def close(self) -> None:
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, answer: httpcore.Response, name: str) -> None:
        self._answer = answer
        self._name = name

    def __iter__(self) -> Iterator[bytes]:
        with _errors(self._name):
            yield from self._answer.iter_stream()

    def close(self) -> None:
        self._answer.close()


class _Network(httpcore.NetworkBackend):
    def __init__(self, connect: Callable[[float | None], socket.socket]) -> None:
        self._connect = connect

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:
        with _mapped(httpcore.ConnectTimeout, httpcore.ConnectError):
            return _Stream(self._connect(timeout))


class _Stream(httpcore.NetworkStream):
    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _mapped(httpcore.ReadTimeout, httpcore.ReadError):
            self._socket.settimeout(timeout)
            return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        rest = memoryview(buffer)
        with _mapped(httpcore.WriteTimeout, httpcore.WriteError):
            self._socket.settimeout(timeout)
            while rest:
                rest = rest[self._socket.send(rest[:MAX_WRITE]) :]

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        raise NotImplementedError("an enclave's HTTP has no TLS below it")

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # how the pool finds that an idle connection was closed by the other end
            return self._socket.fileno() < 0 or _readable(self._socket)
        return self._socket if info == "socket" else None


def _readable(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


@contextmanager
def _mapped(on_timeout: type[Exception], on_error: type[Exception]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as exc:
        raise on_timeout(str(exc)) from exc
    except OSError as exc:
        raise on_error(exc.strerror or str(exc)) from exc


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """httpcore's errors as ours."""
    try:
        yield
    except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
        raise NotReady(
            f"the enclave {name} isn't listening: {exc}",
            hint=f"start it with necli enclave run, or see necli enclave describe {name}",
        ) from exc
    except httpcore.TimeoutException as exc:
        raise ServiceFailed(
            f"the enclave {name} didn't answer in time",
            hint=f"see necli enclave describe {name}",
            code="timeout",
        ) from exc
    except (httpcore.NetworkError, httpcore.ProtocolError) as exc:
        raise ServiceFailed(
            f"the connection to the enclave {name} broke: {exc}", hint=f"see necli enclave describe {name}"
        ) from exc
