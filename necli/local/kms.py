"""The local KMS as a service: HTTPS on the loopback interface, the JSON protocol of KMS, one region.

Run as `python -m necli.local.kms --home STATE --port PORT`. Its log has one line a request: who, what, the
outcome and the time it took; never a plaintext, a key, a token or a signature.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sqlite3
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from necli.errors import Conflict, NecliError
from necli.home import Home
from necli.local.identities import Identities, ensure_identities
from necli.local.kms_access import Call
from necli.local.kms_operations import KeyManagement
from necli.local.kms_protocol import CONTENT_TYPE, KmsError, Parameters
from necli.local.kms_store import KeyStore
from necli.local.pki import LocalPki
from necli.local.sigv4 import SignedRequest, authenticate

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

DEFAULT_REGION = "eu-central-1"
_MAX_BODY_BYTES = 512 << 10
_BODY_TIMEOUT_S = 10
_KEEP_ALIVE_S = 75
_TARGET_PREFIX = "TrentService."


class Service:
    """Authenticates each request, performs it, and answers as KMS does."""

    def __init__(self, operations: KeyManagement, identities: Identities, region: str) -> None:
        self._operations = operations
        self._identities = identities
        self._region = region

    async def answer(self, request: Request) -> Response:
        from starlette.responses import Response

        start = time.perf_counter()
        request_id, operation = str(uuid4()), _operation(request)
        who, outcome = "-", "ok"
        status, body = 200, {}
        try:
            signed = await _read(request)
            now = datetime.now(UTC)
            caller = authenticate(signed, self._identities, region=self._region, service="kms", now=now)
            who = caller.name
            body = self._operations.perform(
                Call(
                    operation,
                    caller,
                    Parameters.parse(signed.body),
                    now,
                    request.client.host if request.client else "127.0.0.1",
                    signed.header("user-agent"),
                )
            )
        except KmsError as error:
            status, body, outcome = error.status, error.body(), f"{error.code} {error.detail}".rstrip()
        except sqlite3.Error as error:
            status, outcome = 500, f"KMSInternalException {error}"
            body = KmsError("KMSInternalException", f"The key store failed: {error}").body()
        _log(f"{request_id} {who} {operation} {outcome} {(time.perf_counter() - start) * 1000:.1f} ms")
        headers = {"x-amzn-RequestId": request_id, "Cache-Control": "no-store"}
        return Response(json.dumps(body), status, headers, CONTENT_TYPE)


def application(service: Service) -> Starlette:
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ready"})

    routes = [Route("/", service.answer, methods=["POST"]), Route("/health", health, methods=["GET"])]
    return Starlette(routes=routes)


def main() -> None:
    parser = argparse.ArgumentParser(prog="necli.local.kms", description="The local KMS (SIMULATED).")
    parser.add_argument("--home", type=Path, required=True, help="necli's state folder")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--region", default=DEFAULT_REGION)
    parser.add_argument(
        "--max-document-age", type=float, default=300, metavar="SECONDS", help="of attestation documents"
    )
    options = parser.parse_args()
    try:
        _serve(options.home, options.port, options.region, timedelta(seconds=options.max_document_age))
    except NecliError as error:
        _log(f"error: {error.message}")
        sys.exit(error.exit_code)


def _serve(state: Path, port: int, region: str, max_document_age: timedelta) -> None:
    import uvicorn

    home = Home(state=state, cache=state)
    identities = ensure_identities(home)
    pki = LocalPki.ensure(home.pki)
    store = KeyStore(home.kms, region)
    operations = KeyManagement(
        store, identities, roots=[pki.simulated_root], max_document_age=max_document_age
    )
    config = uvicorn.Config(
        application(Service(operations, identities, region)),
        ssl_certfile=pki.server_pem([f"kms.{region}.amazonaws.com", "localhost", "127.0.0.1"]),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=2,
        limit_concurrency=256,
    )
    with _listener(port) as listener, closing(store):
        _log(f"local KMS (SIMULATED) for {region} on https://127.0.0.1:{listener.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listener])


def _listener(port: int) -> socket.socket:
    # With its protocol named: asyncio then sets TCP_NODELAY, without which every answer takes 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except OSError as exc:
        raise Conflict(f"can't listen on port {port}: {exc.strerror}", hint="choose another port") from exc
    return listener


async def _read(request: Request) -> SignedRequest:
    """The whole request, if its body comes soon and isn't larger than any that KMS takes."""
    from starlette.requests import ClientDisconnect

    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _MAX_BODY_BYTES:
                    raise KmsError("RequestEntityTooLargeException", "The request is too large.", status=413)
    except ClientDisconnect:
        raise KmsError("RequestAbortedException", "The request was not sent to its end.") from None
    except TimeoutError:
        raise KmsError("RequestTimeoutException", "The request did not arrive in time.", status=408) from None
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw]
    return SignedRequest(request.method, request.url.path, request.url.query, headers, bytes(body))


def _operation(request: Request) -> str:
    target = request.headers.get("x-amz-target", "")
    name = target.removeprefix(_TARGET_PREFIX)
    return name if target != name and name.isascii() and name.isalpha() else "-"


def _log(line: str) -> None:
    printable = "".join(character if character.isprintable() else "?" for character in line)
    print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {printable}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
