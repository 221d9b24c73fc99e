"""The payload server over its real socket: whatever a client does, it is answered and the server lives on."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from enclave_payload.config import UnixAddress, VsockAddress
from enclave_payload.errors import PayloadError
from enclave_payload.receipt import attestation_user_data, receipt_user_data
from enclave_payload.server import listen
from enclave_payload.workers import Workers
from tests.payload.baked import baked_config
from tests.payload.stand_in_server import small_png

CREDENTIALS = {"x-aws-access-key-id": "ASIAEXAMPLE", "x-aws-secret-access-key": "secret"}
CREDENTIAL_LINES = "".join(f"{name}: {value}\r\n" for name, value in CREDENTIALS.items()).encode()
MIB = 2**20
VMADDR_CID_LOCAL = 1  # as in linux/vm_sockets.h; the socket module lacks it


@dataclass
class RunningServer:
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def socket_path(self) -> str:
        return str(self.folder / "e.sock")

    def client(self, timeout: float = 10) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=self.socket_path)
        return httpx.Client(transport=transport, base_url="http://enclave", timeout=timeout)

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.socket_path)
        connection.settimeout(10)
        return connection

    def health(self) -> dict[str, Any]:
        with self.client() as client:
            return dict(client.get("/health").json())

    def detect(self, message: bytes, **options: Any) -> httpx.Response:
        headers = {**CREDENTIALS, **options.pop("headers", {})}
        with self.client() as client:
            return client.post("/detect", content=message, headers=headers, **options)

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "console").read_text().splitlines()]

    def rss_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


@contextmanager
def running_server(*present: str, wait_until: int = 200, **limits: int) -> Iterator[RunningServer]:
    with server_process("unix:e.sock", *present, **limits) as server:
        _await_status(server, wait_until)
        yield server


@contextmanager
def server_process(listen: str, *present: str, **limits: int) -> Iterator[RunningServer]:
    """A server process in a short-named folder: an AF_UNIX path has 108 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="enclave-") as folder_name:
        folder = Path(folder_name)
        (folder / "config.json").write_text(json.dumps({**baked_config(**limits), "listen": listen}))
        for name in present:
            (folder / name).touch()
        with (folder / "console").open("wb") as console:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.payload.stand_in_server"],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        try:
            yield RunningServer(folder, process)
        finally:
            process.kill()
            process.wait()


def _await_status(server: RunningServer, status: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.process.poll() is None:
        with contextlib.suppress(httpx.HTTPError), server.client() as client:
            if client.get("/health").status_code == status:
                return
        time.sleep(0.02)
    pytest.fail((server.folder / "console").read_text())


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(max_message_bytes=MIB, queue=2) as running:
        yield running
        assert running.process.poll() is None
        assert running.health()["status"] == "ready"


@pytest.fixture(scope="module")
def hasty_server() -> Iterator[RunningServer]:
    with running_server(request_timeout_s=1) as running:
        yield running


def code_of(response: httpx.Response) -> str:
    return str(response.json()["error"]["code"])


def exchange(server: RunningServer, request: bytes, *, end: bool = False) -> bytes:
    """Send raw bytes, and return everything that comes back until the server hangs up."""
    with server.connect() as connection, contextlib.suppress(ConnectionError):
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(request)
        if end:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


def body_of(answer: bytes) -> dict[str, Any]:
    return dict(json.loads(answer.partition(b"\r\n\r\n")[2]))


# What works


def test_health_names_what_runs(server: RunningServer) -> None:
    health = server.health()
    assert health["status"] == "ready"
    assert health["version"] == "0.1.0"
    assert health["model"] == {"name": "m", "digest": "ab" * 48}
    assert health["kms_client"] == "native"
    assert set(health["requests"]) == {"served", "failed", "busy"}


def test_an_answer_comes_with_timings_and_a_receipt_over_it(server: RunningServer) -> None:
    nonce = base64.urlsafe_b64encode(b"\xff\xfe nonce").decode().rstrip("=")
    response = server.detect(
        small_png(), params={"min_score": "0.5"}, headers={"x-necli-nonce": nonce, "x-request-id": "r-1"}
    )
    assert response.status_code == 200
    assert response.headers["x-request-id"] == "r-1"
    value = response.json()
    assert value["answer"]["image"] == {"width": 30, "height": 20, "format": "PNG"}
    assert value["answer"]["objects"] == [{"name": "Zebra é", "score": 0.876543, "box": [0.1, 0.2, 0.3, 1.0]}]
    assert set(value["timings_ms"]) == {"receive", "kms", "decrypt", "decode", "infer", "receipt", "total"}
    document = json.loads(base64.b64decode(value["receipt"]))
    assert base64.b64decode(document["user_data"]) == receipt_user_data(value["answer"])
    assert base64.b64decode(document["nonce"]) == b"\xff\xfe nonce"


def test_the_threshold_is_the_clients_choice(server: RunningServer) -> None:
    found = [
        len(server.detect(small_png(), params={"min_score": s}).json()["answer"]["objects"]) for s in "01"
    ]
    assert found == [2, 0]
    assert len(server.detect(small_png()).json()["answer"]["objects"]) == 2


def test_attested_user_data_is_kept_apart_from_receipts(server: RunningServer) -> None:
    request = {"nonce": base64.b64encode(b"n").decode(), "user_data": base64.b64encode(b"mine").decode()}
    with server.client() as client:
        document = json.loads(base64.b64decode(client.post("/attest", json=request).json()["document"]))
    assert base64.b64decode(document["user_data"]) == attestation_user_data(b"mine")
    assert base64.b64decode(document["nonce"]) == b"n"


def test_a_body_in_chunks_is_read_whole(server: RunningServer) -> None:
    png = small_png()
    response = server.detect(iter([png[:10], png[10:11], png[11:]]))  # type: ignore[arg-type]
    assert response.status_code == 200


def test_one_connection_serves_many_requests(server: RunningServer) -> None:
    with server.client() as client:
        for _ in range(20):
            assert client.post("/detect", content=small_png(), headers=CREDENTIALS).status_code == 200
            assert code_of(client.post("/detect", content=b"no", headers=CREDENTIALS)) == "not_an_image"


def test_requests_are_counted(server: RunningServer) -> None:
    before = server.health()["requests"]
    server.detect(small_png())
    server.detect(b"no")
    after = server.health()["requests"]
    assert after["served"] - before["served"] == 1
    assert after["failed"] - before["failed"] == 1


# What is refused


@pytest.mark.parametrize(
    ("headers", "code", "status"),
    [
        ({"x-aws-access-key-id": ""}, "credentials_missing", 401),
        ({"x-aws-secret-access-key": ""}, "credentials_missing", 401),
        ({"x-aws-access-key-id": "with space"}, "bad_request", 400),
        ({"x-aws-session-token": "caf\xe9"}, "bad_request", 400),
        ({"x-aws-session-token": "x" * 8193}, "bad_request", 400),
        ({"x-necli-nonce": "***"}, "bad_request", 400),
        ({"x-necli-nonce": "\xe9"}, "bad_request", 400),
        ({"x-necli-nonce": base64.urlsafe_b64encode(bytes(513)).decode()}, "bad_request", 400),
        ({"x-request-id": "a b"}, "bad_request", 400),
        ({"x-request-id": "x" * 65}, "bad_request", 400),
    ],
)
def test_bad_headers_are_refused(
    server: RunningServer, headers: dict[str, str], code: str, status: int
) -> None:
    raw = {name.encode(): value.encode("latin-1") for name, value in {**CREDENTIALS, **headers}.items()}
    with server.client() as client:
        response = client.post("/detect", content=small_png(), headers=raw)  # type: ignore[arg-type]
    assert (code_of(response), response.status_code) == (code, status)


@pytest.mark.parametrize("score", ["", "x", "nan", "inf", "-0.1", "1.1", "0.5;", "%ff"])
def test_a_bad_threshold_is_refused(server: RunningServer, score: str) -> None:
    assert code_of(server.detect(small_png(), params=f"min_score={score}")) == "bad_request"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 4000,
        b'{"nonce": 1}',
        b'{"nonce": "\xc3\xa9"}',
        b'{"other": ""}',
        b'{"user_data": "%s"}' % base64.b64encode(bytes(513)),
    ],
)
def test_a_bad_attestation_request_is_refused(server: RunningServer, body: bytes) -> None:
    with server.client() as client:
        response = client.post("/attest", content=body)
    assert (response.status_code, code_of(response)) == (400, "bad_request")


@pytest.mark.parametrize(
    ("message", "code", "status"),
    [
        (b"", "not_an_image", 400),
        (b"plain text", "not_an_image", 400),
        (small_png()[:40], "image_truncated", 400),
        (b"fail:message_invalid", "message_invalid", 400),
        (b"fail:access_denied", "access_denied", 403),
        (b"fail:credentials_expired", "credentials_expired", 401),
        (b"fail:kms_error", "kms_error", 502),
        (b"fail:kms_unreachable", "kms_unreachable", 504),
        (b"crash:secret-marker", "internal", 500),
    ],
)
def test_a_failure_has_its_code_and_status(
    server: RunningServer, message: bytes, code: str, status: int
) -> None:
    response = server.detect(message, headers={"x-request-id": "r-2"})
    assert (code_of(response), response.status_code) == (code, status)
    assert response.headers["x-request-id"] == "r-2"
    assert "secret-marker" not in response.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/detect", 405), ("PUT", "/attest", 405), ("POST", "/detect/", 404)],
)
def test_an_unknown_resource_is_refused(server: RunningServer, method: str, path: str, status: int) -> None:
    with server.client() as client:
        response = client.request(method, path)
    assert (code_of(response), response.status_code) == ("bad_request", status)


@pytest.mark.parametrize("chunked", [False, True])
def test_an_oversized_body_is_refused(server: RunningServer, chunked: bool) -> None:
    body = bytes(3 * MIB)
    response = server.detect(iter([body]) if chunked else body)  # type: ignore[arg-type]
    assert (code_of(response), response.status_code) == ("message_too_large", 413)


def test_a_length_that_nobody_could_send_is_refused_before_the_body(server: RunningServer) -> None:
    head = b"POST /attest HTTP/1.1\r\nHost: e\r\nContent-Length: 99999999999999\r\n\r\n"
    assert b" 413 " in exchange(server, head).splitlines()[0]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: e\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: e\r\nB\xffd: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: e\r\nA: \x00\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: e\r\nA: " + b"x" * 300_000 + b"\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nHost: e\r\nContent-Length: abc\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nHost: e\r\nContent-Length: -1\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nHost: e\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /detect HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /attest HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 100 + b"\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused(server: RunningServer, request_bytes: bytes) -> None:
    answer = exchange(server, request_bytes)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert body_of(answer)["error"]["code"] == "bad_request"


def test_a_body_that_ends_too_early_is_refused(server: RunningServer) -> None:
    head = b"POST /attest HTTP/1.1\r\nHost: e\r\nContent-Length: 1000\r\n\r\nhalf"
    answer = exchange(server, head, end=True)
    assert body_of(answer)["error"]["code"] == "bad_request"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"CONNECT e:80 HTTP/1.1\r\nHost: e\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: e\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: e\r\nUpgrade: websocket\r\nConnection: upgrade, close\r\n\r\n",
        b"GET /health HTTP/1.0\r\n\r\n",
        b"GET /health HTTP/9.9\r\nHost: e\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: e\r\n\r\n" * 50,
        b"GET /%ff%00 HTTP/1.1\r\nHost: e\r\n\r\n",
        b"GET /" + b"../" * 1000 + b" HTTP/1.1\r\nHost: e\r\n\r\n",
    ],
)
def test_odd_but_legal_http_is_answered(server: RunningServer, request_bytes: bytes) -> None:
    assert exchange(server, request_bytes, end=True).startswith((b"HTTP/1.1 200", b"HTTP/1.1 40", b""))
    assert server.health()["status"] == "ready"


def test_a_thousand_garbage_requests_change_nothing(server: RunningServer) -> None:
    chance = random.Random(6)
    good = b"POST /detect HTTP/1.1\r\nHost: e\r\nContent-Length: 4\r\n\r\nbody"
    for _ in range(500):
        answer = exchange(server, chance.randbytes(chance.randrange(1, 400)), end=True)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
        mutated = bytearray(good)
        for position in chance.sample(range(len(good)), 3):
            mutated[position] = chance.randrange(256)
        answer = exchange(server, bytes(mutated), end=True)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert server.detect(small_png()).status_code == 200


# Clients that are slow, silent or gone


def test_silent_clients_delay_nobody_and_are_dropped(server: RunningServer) -> None:
    connections = [server.connect() for _ in range(100)]
    try:
        assert server.detect(small_png()).status_code == 200
        assert all(connection.recv(1) == b"" for connection in connections)  # the test's server waits 2 s
    finally:
        for connection in connections:
            connection.close()


def test_a_client_that_stops_within_its_body_delays_nobody(server: RunningServer) -> None:
    with server.connect() as stopped:
        stopped.sendall(b"POST /detect HTTP/1.1\r\nHost: e\r\n" + CREDENTIAL_LINES)
        stopped.sendall(b"Content-Length: 1000\r\n\r\nhalf")
        assert server.detect(small_png()).status_code == 200
        stopped.setblocking(False)
        with pytest.raises(BlockingIOError):  # it wasn't even answered yet
            stopped.recv(1)


def test_a_head_that_trickles_in_is_dropped(server: RunningServer) -> None:
    def trickle(connection: socket.socket) -> None:
        for _ in range(80):
            connection.sendall(b"G")
            time.sleep(0.1)

    with server.connect() as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
        trickle(connection)


def test_a_body_that_stops_is_answered(server: RunningServer) -> None:
    head = b"POST /attest HTTP/1.1\r\nHost: e\r\nContent-Length: 1000\r\n\r\nhalf"
    answer = exchange(server, head)
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert body_of(answer)["error"]["code"] == "timeout"


def test_a_body_that_trickles_in_cannot_take_longer_than_a_request_may(hasty_server: RunningServer) -> None:
    with hasty_server.connect() as connection:
        connection.sendall(b"POST /attest HTTP/1.1\r\nHost: e\r\nContent-Length: 1000\r\n\r\n")
        connection.settimeout(0.2)
        answer = b""
        for _ in range(100):
            connection.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(1000)
                break
    assert answer.startswith(b"HTTP/1.1 504 ")


def test_a_client_that_does_not_read_is_dropped(server: RunningServer) -> None:
    requests = b"GET /health HTTP/1.1\r\nHost: e\r\n\r\n" * 100_000
    with server.connect() as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
        connection.sendall(requests)


def test_resets_in_the_middle_change_nothing(server: RunningServer) -> None:
    request = b"POST /detect HTTP/1.1\r\nHost: e\r\n" + CREDENTIAL_LINES
    request += b"Content-Length: 9\r\n\r\nsleep:0.1"
    for length in range(1, len(request) + 1, 3):
        with server.connect() as connection:
            connection.sendall(request[:length])
    time.sleep(0.5)
    assert server.detect(small_png()).status_code == 200


def test_connections_without_number_are_refused_with_an_answer(server: RunningServer) -> None:
    connections = [server.connect() for _ in range(256)]
    answer = exchange(server, b"")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert body_of(answer)["error"]["code"] == "busy"
    for connection in connections:
        connection.close()


# Overload


def test_more_than_workers_and_queue_hold_is_busy(server: RunningServer) -> None:
    with ThreadPoolExecutor(8) as clients:
        responses = list(clients.map(lambda _: server.detect(b"sleep:2"), range(8)))
    codes = sorted(response.status_code for response in responses)
    assert codes == [200] * 4 + [503] * 4
    refused = [response for response in responses if response.status_code == 503]
    assert {code_of(response) for response in refused} == {"busy"}
    assert {response.headers["retry-after"] for response in refused} == {"1"}
    assert server.detect(small_png()).status_code == 200


def test_health_and_attest_answer_while_all_workers_are_busy(server: RunningServer) -> None:
    with ThreadPoolExecutor(4) as clients:
        detections = [clients.submit(server.detect, b"sleep:2") for _ in range(4)]
        time.sleep(0.5)
        assert server.health()["status"] == "ready"
        with server.client() as client:
            assert client.post("/attest", json={}).status_code == 200
        assert not any(detection.done() for detection in detections)
        assert {detection.result().status_code for detection in detections} == {200}


def test_a_request_that_takes_too_long_is_answered(hasty_server: RunningServer) -> None:
    with hasty_server.client() as client:
        response = client.post("/detect", content=b"sleep:6", headers=CREDENTIALS)
    assert (code_of(response), response.status_code) == ("timeout", 504)


def test_a_place_stays_taken_until_its_thread_is_through() -> None:
    async def scenario() -> None:
        workers = Workers(1, queue=0, name="test")
        release = threading.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                with workers.place() as place:
                    await place.run(release.wait)
        with pytest.raises(PayloadError, match="busy"):
            workers.place()
        release.set()
        await asyncio.sleep(0.1)
        with workers.place() as place:
            assert await place.run(lambda: 5) == 5

    asyncio.run(scenario())


def test_a_request_that_fails_before_its_work_gives_its_place_back() -> None:
    workers = Workers(1, queue=0, name="test")
    for _ in range(3):
        with contextlib.suppress(ValueError), workers.place():
            raise ValueError


def test_failing_requests_leave_no_memory_behind() -> None:
    with running_server() as server:
        message = bytes(6 * MIB)
        for _ in range(4):
            server.detect(message)
        before = server.rss_mib()
        for _ in range(25):
            assert code_of(server.detect(message)) == "not_an_image"
        assert server.rss_mib() - before < 48


# The life of the process


def test_until_the_model_is_loaded_everything_answers_starting() -> None:
    with running_server("hold", wait_until=503) as server:
        assert server.health() == {"status": "starting", "reason": "loading the model"}
        response = server.detect(small_png())
        assert (code_of(response), response.status_code) == ("starting", 503)
        (server.folder / "hold").unlink()
        _await_status(server, 200)
        assert server.detect(small_png()).status_code == 200


def test_a_model_that_does_not_load_is_named_by_health() -> None:
    with running_server("hold", "broken", wait_until=503) as server:
        (server.folder / "hold").unlink()
        time.sleep(0.2)
        assert server.health() == {"status": "failed", "reason": "OSError: the model is broken"}


def test_on_sigterm_the_running_request_is_answered() -> None:
    with running_server() as server, ThreadPoolExecutor(1) as client:
        detection = client.submit(server.detect, b"sleep:1")
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        assert detection.result().status_code == 200
        assert server.process.wait(5) in (0, -signal.SIGTERM)


def test_a_bad_configuration_ends_the_process_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**baked_config(), "key_arn": "alias/mine"}))
    done = subprocess.run(
        [sys.executable, "-m", "enclave_payload"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    line = json.loads(done.stdout)
    assert line["event"] == "can't start"
    assert line["reason"].startswith("config.key_arn: ")


def test_the_console_has_json_lines_without_payload_data() -> None:
    with running_server() as server:
        server.detect(b"crash:secret-marker", headers={"x-request-id": "r-3"})
        server.detect(small_png())
        events = server.log()
    crash = next(line for line in events if line["event"] == "internal error")
    assert crash["exception"]["type"] == "RuntimeError"
    assert any(line.get("request_id") == "r-3" and line["code"] == "internal" for line in events)
    text = json.dumps(events)
    assert "secret-marker" not in text
    assert "Zebra" not in text


def test_no_write_is_larger_than_a_vsock_carries(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        with listen(UnixAddress(path)) as listener, socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.send(bytes(100_000)) == 32768
                assert accepted.sendmsg([bytes(100_000), b"x"]) == 32768


def test_it_serves_on_a_vsock() -> None:
    """As far as this machine goes: without the kernel's vsock loopback, nobody can connect to it."""
    port = 20_000 + os.getpid() % 10_000
    try:
        with listen(VsockAddress(port)):
            pass
    except OSError as exc:
        pytest.skip(f"no AF_VSOCK here: {exc}")
    with server_process(f"vsock:{port}") as server:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not any(line["event"] == "ready" for line in server.log()):
            time.sleep(0.05)
        time.sleep(0.2)
        assert server.process.poll() is None, server.log()
        with socket.socket(socket.AF_VSOCK) as client:
            client.settimeout(2)
            try:
                client.connect((VMADDR_CID_LOCAL, port))
            except OSError as exc:
                pytest.skip(f"it listens, but this kernel has no vsock loopback: {exc}")
            client.sendall(b"GET /health HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
