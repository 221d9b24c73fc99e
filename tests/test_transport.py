"""HTTP over the enclave's socket: whole bodies in small writes, any path, and errors that say what to do."""

from __future__ import annotations

import os
import socket
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest

from necli.errors import NotReady, ServiceFailed
from necli.sockets import UnixAddress, VsockAddress
from necli.transport import MAX_WRITE, enclave_client


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        if self.path == "/early":
            return self.answer(413, b"too large", close=True)
        return self.answer(200, self.rfile.read(int(self.headers["content-length"])))

    def do_GET(self) -> None:
        if self.path == "/slow":
            threading.Event().wait(2)
        elif self.path == "/cut":
            self.send_response(200)
            self.send_header("content-length", "100")
            self.end_headers()
            self.close_connection = True
            return
        self.answer(200, b"hello", close=self.path == "/last")

    def answer(self, status: int, body: bytes, *, close: bool = False) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = close

    def log_message(self, *args: Any) -> None: ...


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is part of these tests."""


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A listening socket, at a path that no AF_UNIX address could hold."""
    folder = tmp_path / ("deep" * 30)
    folder.mkdir()
    before = Path.cwd()
    os.chdir(folder)
    server = Server("5005.sock", Echo)
    os.chdir(before)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield folder / "5005.sock"
    server.shutdown()
    server.server_close()


@pytest.fixture
def client(path: Path) -> Iterator[httpx.Client]:
    with enclave_client(UnixAddress(path), name="demo") as client:
        yield client


@pytest.mark.parametrize("size", [0, 1, 4096, MAX_WRITE, MAX_WRITE + 1, 5_000_000])
def test_a_body_of_any_size_goes_there_and_back(client: httpx.Client, size: int) -> None:
    body = os.urandom(size)
    assert client.post("/", content=body).content == body


def test_no_single_write_is_larger_than_vsock_carries_safely() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    class Address(UnixAddress):
        def connect(self, timeout: float | None) -> socket.socket:
            return near

    writes: list[int] = []

    def receive() -> None:
        while packet := far.recv(1 << 20):
            writes.append(len(packet))
            if sum(writes) > 200_000:
                far.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    threading.Thread(target=receive, daemon=True).start()
    with enclave_client(Address(Path("unused")), name="demo") as client:
        client.post("/", content=bytes(200_000))
    assert max(writes) == MAX_WRITE


def test_an_answer_before_the_end_of_the_request_is_read(client: httpx.Client) -> None:
    answer = client.post("/early", content=bytes(3_000_000))
    assert (answer.status_code, answer.text) == (413, "too large")


def test_a_connection_that_the_enclave_closed_is_replaced(client: httpx.Client) -> None:
    assert [client.get(path).text for path in ("/last", "/", "/last", "/")] == ["hello"] * 4


def test_an_enclave_that_does_not_run_is_named_with_the_command_that_helps(tmp_path: Path) -> None:
    with (
        enclave_client(UnixAddress(tmp_path / "no" / "5005.sock"), name="demo") as client,
        pytest.raises(NotReady, match="the enclave demo isn't listening: No such file") as caught,
    ):
        client.get("/health")
    assert "necli enclave run" in str(caught.value.hint)


def test_a_stale_socket_is_not_an_enclave(tmp_path: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "5005.sock"))
    stale.close()
    with (
        enclave_client(UnixAddress(tmp_path / "5005.sock"), name="demo") as client,
        pytest.raises(NotReady, match="Connection refused"),
    ):
        client.get("/health")


def test_an_enclave_that_does_not_answer_in_time_is_a_failed_service(client: httpx.Client) -> None:
    with pytest.raises(ServiceFailed, match="didn't answer in time"):
        client.get("/slow", timeout=0.2)


def test_an_answer_that_breaks_off_is_a_failed_service(client: httpx.Client) -> None:
    with pytest.raises(ServiceFailed, match="the connection to the enclave demo broke"):
        client.get("/cut")


def test_vsock_without_a_listener_is_an_enclave_that_is_not_ready() -> None:
    with (
        enclave_client(VsockAddress(4_000_000, 5005), name="demo") as client,
        pytest.raises(NotReady, match="demo isn't listening"),
    ):
        client.get("/health", timeout=0.5)
