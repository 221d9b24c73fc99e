"""`--instance` on the real command line, against a loopback server that speaks SSM's protocol."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

INSTANCE = "i-0123456789abcdef0"


class Ssm(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scripts: list[str] = []
        self.report: dict[str, Any] = {"Status": "Success", "StandardOutputContent": "done there\n"}


class Handler(BaseHTTPRequestHandler):
    server: Ssm

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["X-Amz-Target"] == "AmazonSSM.SendCommand":
            self.server.scripts += asked["Parameters"]["commands"]
            answer: dict[str, Any] = {"Command": {"CommandId": "0831e1a8-a1ac-4257-a1fd-c831bEXAMPLE"}}
        else:
            answer = self.server.report
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def ssm() -> Iterator[Ssm]:
    with Ssm() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def necli(ssm: Ssm, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL_SSM": f"http://127.0.0.1:{ssm.server_port}",
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "example",
    }
    return subprocess.run(
        [sys.executable, "-m", "necli", *words], env=environment, capture_output=True, text=True
    )


def test_the_same_command_runs_there_and_its_output_comes_here(ssm: Ssm) -> None:
    ran = necli(ssm, "enclave", "list", "--instance", INSTANCE, "--home", "/of/this/machine")
    assert (ran.returncode, ran.stdout) == (0, "done there\n"), ran.stderr
    assert ssm.scripts == ["export HOME=/root\nexec necli --target nitro --region eu-central-1 enclave list"]


def test_its_failure_is_ours_with_its_exit_code(ssm: Ssm) -> None:
    said = "error: no enclave\nhint: necli up\n"
    ssm.report = {"Status": "Failed", "ResponseCode": 4, "StandardErrorContent": said}
    ran = necli(ssm, "--instance", INSTANCE, "status")
    assert ran.returncode == 4
    assert ran.stderr.endswith("hint: necli up\n")


def test_what_needs_files_of_this_machine_is_refused(ssm: Ssm) -> None:
    ran = necli(ssm, "--instance", INSTANCE, "encrypt", "photo.jpg")
    assert ran.returncode == 2
    assert "files of this machine" in ran.stderr
    assert ssm.scripts == []
