"""The parent's proxy: only what is on the list, only bytes, and no failed connection ends it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from necli.allow_list import Endpoint, read_allow_list, write_allow_list
from necli.errors import InputError, UsageError
from necli.home import read_json
from necli.local.proxy import main
from necli.process import Daemon
from necli.sockets import UnixAddress

KMS = "kms.eu-central-1.amazonaws.com:443"


class Upstream:
    """A TCP server that echoes until its client's end of file, then says goodbye."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)
            connection.sendall(b"goodbye")


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    yield server
    server.listener.close()


@contextmanager
def proxy(folder: Path, resolve: str, remote: str = KMS) -> Iterator[Daemon]:
    write_allow_list(folder / "allow.yaml", "eu-central-1")
    daemon = Daemon.module(
        "proxy",
        folder,
        "necli.local.proxy",
        *("--listen", folder / "3-8000.sock"),
        *("--allow-list", folder / "allow.yaml"),
        *("--remote", remote),
        *("--resolve", resolve),
        *("--status", folder / "status.json"),
    )
    try:
        daemon.start(lambda: listening(folder))
        yield daemon
    finally:
        daemon.stop()


def listening(folder: Path) -> bool:
    try:
        connect(folder).close()
    except OSError:
        return False
    return True


def connect(folder: Path) -> socket.socket:
    return UnixAddress(folder / "3-8000.sock").connect(5)


def exchange(folder: Path, data: bytes) -> bytes:
    with connect(folder) as client:
        threading.Thread(target=lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR))).start()
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_bytes_go_both_ways_and_each_end_of_file_is_passed_on(tmp_path: Path, upstream: Upstream) -> None:
    data = os.urandom(3_000_000)
    with proxy(tmp_path, upstream.address):
        assert exchange(tmp_path, data) == data + b"goodbye"


def test_many_connections_at_once_do_not_wait_for_a_silent_one(tmp_path: Path, upstream: Upstream) -> None:
    with proxy(tmp_path, upstream.address):
        silent = [connect(tmp_path) for _ in range(20)]
        assert exchange(tmp_path, b"x") == b"xgoodbye"
        for client in silent:
            client.close()


def test_a_refused_connection_is_remembered_and_does_not_end_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with proxy(tmp_path, f"127.0.0.1:{port}") as daemon:
        for _ in range(3):
            assert exchange(tmp_path, b"") == b""
        status = read_json(tmp_path / "status.json")
        assert status["failed"] >= 3
        assert status["last_error"].endswith(f"{KMS}: Connection refused")
        with socket.create_server(("127.0.0.1", port)) as server, connect(tmp_path) as client:
            server.accept()[0].sendall(b"back")
            assert client.recv(4) == b"back"
        assert daemon.pid


def test_a_client_that_resets_does_not_end_it(tmp_path: Path, upstream: Upstream) -> None:
    with proxy(tmp_path, upstream.address):
        for _ in range(5):
            client = connect(tmp_path)
            client.sendall(bytes(1_000_000))
            client.close()  # with the echo unread: the other end is reset
        assert exchange(tmp_path, b"x") == b"xgoodbye"


def test_after_a_kill_9_it_starts_again_over_its_stale_socket(tmp_path: Path, upstream: Upstream) -> None:
    with proxy(tmp_path, upstream.address) as daemon:
        assert daemon.pid
        os.kill(daemon.pid, 9)
    assert (tmp_path / "3-8000.sock").exists()
    with proxy(tmp_path, upstream.address):
        assert exchange(tmp_path, b"x") == b"xgoodbye"


def test_its_socket_is_for_this_user_alone(tmp_path: Path, upstream: Upstream) -> None:
    with proxy(tmp_path, upstream.address):
        assert (tmp_path / "3-8000.sock").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "remote", ["example.com:443", "kms.eu-central-1.amazonaws.com:80", "kms.us-east-1.amazonaws.com:443"]
)
def test_what_is_not_on_the_list_is_refused(
    tmp_path: Path, remote: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_allow_list(tmp_path / "allow.yaml", "eu-central-1")
    arguments = ["--listen", "s", "--allow-list", str(tmp_path / "allow.yaml"), "--remote", remote]
    assert main([*arguments, "--resolve", "127.0.0.1:1", "--status", str(tmp_path / "s")]) == 3
    assert f"{remote} isn't on the allow-list" in capsys.readouterr().err


def test_the_written_list_has_exactly_the_endpoint_in_use(tmp_path: Path) -> None:
    write_allow_list(tmp_path / "allow.yaml", "eu-central-1")
    assert read_allow_list(tmp_path / "allow.yaml") == {Endpoint("kms.eu-central-1.amazonaws.com", 443)}


def test_a_list_of_vsock_proxys_own_is_read(tmp_path: Path) -> None:
    (tmp_path / "allow.yaml").write_text(
        "allowlist:\n- {address: kms.us-east-1.amazonaws.com, port: 443}\n"
        "- {address: ec2.us-east-1.amazonaws.com, port: 443}\n"
    )
    assert len(read_allow_list(tmp_path / "allow.yaml")) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: b",
        "allowlist: 3",
        "allowlist: [x]",
        "allowlist: [{address: x}]",
        "[",
        "allowlist: [{address: x, port: y}]",
    ],
)
def test_a_damaged_list_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "allow.yaml").write_text(text)
    with pytest.raises(InputError, match=r"allow\.yaml isn't an allow-list"):
        read_allow_list(tmp_path / "allow.yaml")


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:0", "host:65536", "host:-1", "host:x"])
def test_an_endpoint_has_a_host_and_a_port(text: str) -> None:
    with pytest.raises(UsageError, match="isn't HOST:PORT"):
        Endpoint.parse(text)
