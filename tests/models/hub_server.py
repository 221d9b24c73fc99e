"""A loopback server that stands for TensorFlow Hub, with every way of failing that a download can meet."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class HubServer:
    """Serves `content` at /model, and at /redirected by way of a redirect."""

    content: bytes
    etag: str | None = '"1"'
    cut_after: list[int] = field(default_factory=list)
    """How many bytes of its body each coming answer has before the connection breaks."""
    statuses: list[int] = field(default_factory=list)
    """With what each coming request is refused."""
    ignores_ranges: bool = False
    lies_about_ranges: bool = False
    requests: list[str | None] = field(default_factory=list)
    """The Range header of every request for the content."""
    port: int = 0

    def url(self, path: str = "/model") -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@contextmanager
def hub_server(content: bytes) -> Iterator[HubServer]:
    hub = HubServer(content)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gives up is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16

    def do_GET(self) -> None:
        hub = self.hub
        if self.path != "/model":
            self._head(302, {"Location": hub.url() if self.path == "/redirected" else self.path})
            return
        hub.requests.append(self.headers["Range"])
        start = self._start()
        if hub.statuses:
            self._head(hub.statuses.pop(0), {})
        elif start and start >= len(hub.content):
            self._head(416, {})
        else:
            self._send(start)

    def _send(self, start: int) -> None:
        hub = self.hub
        headers = {"ETag": hub.etag} if hub.etag else {}
        if start:
            said = start + 1 if hub.lies_about_ranges else start
            headers["Content-Range"] = f"bytes {said}-{len(hub.content) - 1}/{len(hub.content)}"
        body = hub.content[start:]
        self._head(206 if start else 200, headers, len(body))
        if hub.cut_after:
            self.wfile.write(body[: hub.cut_after.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def _start(self) -> int:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        unchanged = self.headers["If-Range"] == self.hub.etag
        return int(match[1]) if match and unchanged and not self.hub.ignores_ranges else 0

    def _head(self, status: int, headers: dict[str, str], length: int = 0) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: Any) -> None: ...
