"""Small enclave images for tests: a payload of a few lines in the place of the real one."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

from necli.backends import BuildSpec, BuiltEif
from necli.local.image import build_local_eif

SERVER = """
import http.server, json, os, socketserver, sys

KEPT = {}

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(HEALTH)

    def do_POST(self):
        code = self.rfile.read(int(self.headers["content-length"])).decode()
        try:
            value = eval(code, KEPT)
        except Exception as exc:
            value = {"raised": type(exc).__name__, "text": str(exc)}
        self.answer(value)

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200 if value is not HEALTH or HEALTH["status"] == "ready" else 503)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return "enclave"

class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

print("hello from the payload", flush=True)
Server("vsock/5005.sock", Handler).serve_forever(0.05)
"""
"""Answers /health, and evaluates whatever Python expression is posted to it: a look around from inside."""

READY = '{"status": "ready"}'


def make_spec(
    folder: Path, code: str = SERVER, *, health: str = READY, needs: tuple[str, ...] = ()
) -> BuildSpec:
    """A payload with `code` as its main module and `needs` as its distributions, and a model of two files."""
    package = folder / "payload" / "src" / "enclave_payload"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "1.2.3"\n')
    (package / "__main__.py").write_text(f"HEALTH = {health}\n{dedent(code)}")
    dependencies = ", ".join(f'"{name}"' for name in needs)
    (folder / "payload" / "pyproject.toml").write_text(f"[project]\ndependencies = [{dependencies}]\n")
    model = folder / "model"
    (model / "variables").mkdir(parents=True)
    (model / "saved_model.pb").write_bytes(b"graph" * 1000)
    (model / "variables" / "variables.index").write_bytes(b"index")
    return BuildSpec(
        name="test",
        model=model,
        model_name="tiny",
        model_digest="ab" * 48,
        payload=folder / "payload" / "src",
        key_arn="arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        region="eu-central-1",
        encryption_context={"necli:workload": "object-detection"},
    )


def build(spec: BuildSpec, path: Path) -> BuiltEif:
    return build_local_eif(spec, path, trust_roots_pem=b"-----BEGIN CERTIFICATE-----\n")
