"""The HTTP interface: health, detect, attest. Every failure is an answer with a code."""

from __future__ import annotations

import asyncio
import base64
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from enclave_payload.config import Config
from enclave_payload.errors import PayloadError
from enclave_payload.incoming import attestation_request, detection_request, read_body, request_id
from enclave_payload.logs import log_event
from enclave_payload.receipt import attestation_user_data
from enclave_payload.workers import Workers

if TYPE_CHECKING:  # it takes half a second to import, and the socket is to answer before
    from enclave_payload.pipeline import Attester, Pipeline

_log = logging.getLogger(__name__)

Answer: TypeAlias = dict[str, object]


def make_app(config: Config, nsm: Attester, load: Callable[[], Pipeline]) -> Starlette:
    """`load` may take its time: it runs in a thread, and until it's done the app answers `starting`."""
    service = _Service(config, nsm, load)
    app = Starlette(
        routes=[
            Route("/health", service.health, methods=["GET"]),
            Route("/detect", service.answering(service.detect), methods=["POST"]),
            Route("/attest", service.answering(service.attest), methods=["POST"]),
        ],
        exception_handlers={HTTPException: _no_such_resource},
        lifespan=service.lifespan,
    )
    app.router.redirect_slashes = False
    return app


def error_response(error: PayloadError, headers: dict[str, str] | None = None) -> JSONResponse:
    retry = {"retry-after": "1"} if error.status == 503 else {}
    return JSONResponse(error.to_json(), error.status, headers={**retry, **(headers or {})})


@dataclass
class _Counters:
    served: int = 0
    failed: int = 0
    busy: int = 0

    def count(self, error: PayloadError | None) -> None:
        if error is None:
            self.served += 1
        elif error.code == "busy":
            self.busy += 1
        else:
            self.failed += 1


class _Service:
    def __init__(self, config: Config, nsm: Attester, load: Callable[[], Pipeline]) -> None:
        self._config = config
        self._nsm = nsm
        self._load = load
        self._pipeline: Pipeline | None = None
        self._load_failure: str | None = None
        self._counters = _Counters()
        self._started = time.monotonic()
        limits = config.limits
        self._detectors = Workers(limits.concurrency, queue=limits.queue, name="detect")
        self._attesters = Workers(1, queue=limits.queue, name="attest")

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        threading.Thread(target=self._become_ready, name="load", daemon=True).start()
        yield
        self._detectors.close()
        self._attesters.close()

    def _become_ready(self) -> None:
        try:
            self._pipeline = self._load()
        except Exception as exc:  # whatever it is, health has to say it
            self._load_failure = f"{type(exc).__name__}: {exc}"
            log_event(_log, "load failed", exc=exc, reason=self._load_failure)
        else:
            seconds = round(time.monotonic() - self._started, 3)
            log_event(_log, "ready", model=self._config.model.name, seconds=seconds)

    def _ready_pipeline(self) -> Pipeline:
        if self._pipeline is None:
            raise PayloadError("starting", self._load_failure or "the model is still being loaded")
        return self._pipeline

    async def health(self, _: Request) -> Response:
        if self._pipeline is None:
            status = "failed" if self._load_failure else "starting"
            reason = self._load_failure or "loading the model"
            return JSONResponse({"status": status, "reason": reason}, 503, headers={"retry-after": "1"})
        config = self._config
        return JSONResponse(
            {
                "status": "ready",
                "version": config.version,
                "model": {"name": config.model.name, "digest": config.model.digest},
                "kms_client": config.kms.client,
                "uptime_s": round(time.monotonic() - self._started, 3),
                "requests": vars(self._counters),
            }
        )

    async def detect(self, request: Request) -> Answer:
        started = time.perf_counter()
        pipeline = self._ready_pipeline()
        wanted = detection_request(request)
        with self._detectors.place() as place:
            message = await read_body(request, limit=self._config.limits.max_message_bytes)
            received = time.perf_counter()
            result = await place.run(partial(pipeline.run, message, wanted))
        return {
            **_shown(result.answer),
            "timings_ms": {
                "receive": _milliseconds(started, received),
                **result.timings_ms,
                "total": _milliseconds(started, time.perf_counter()),
            },
            "receipt": base64.b64encode(result.receipt).decode(),
        }

    async def attest(self, request: Request) -> Answer:
        wanted = await attestation_request(request)
        user_data = attestation_user_data(wanted.user_data)
        with self._attesters.place() as place:
            document = await place.run(partial(self._nsm.attest, user_data=user_data, nonce=wanted.nonce))
        return {"document": base64.b64encode(document).decode()}

    def answering(
        self, endpoint: Callable[[Request], Awaitable[Answer]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Bound the endpoint's time, and make one response, one count and one log line of how it ends."""

        async def respond(request: Request) -> Response:
            started = time.perf_counter()
            identity: str | None = None
            error: PayloadError | None = None
            answer: Answer = {}
            try:
                identity = request_id(request)
                async with asyncio.timeout(self._config.limits.request_timeout_s):
                    answer = await endpoint(request)
            except Exception as exc:  # the edge: whatever it was, the server answers and lives on
                # Its frames hold images, and this frame holds it: only the collector would free them.
                error = _payload_error(exc).with_traceback(None)
            self._counters.count(error)
            log_event(
                _log,
                "answered",
                path=request.url.path,
                request_id=identity,
                code=error.code if error else "ok",
                total_ms=_milliseconds(started, time.perf_counter()),
            )
            headers = {"x-request-id": identity} if identity else {}
            return error_response(error, headers) if error else JSONResponse(answer, headers=headers)

        return respond


def _shown(answer: Answer | bytes) -> Answer:
    if isinstance(answer, bytes):
        return {"sealed": base64.b64encode(answer).decode()}
    return {"answer": answer}


def _payload_error(exc: Exception) -> PayloadError:
    match exc:
        case PayloadError():
            return exc
        case TimeoutError():
            return PayloadError("timeout", "the request took too long")
        case ClientDisconnect():
            return PayloadError("bad_request", "the client went away before its request ended")
        case _:
            log_event(_log, "internal error", exc=exc)
            return PayloadError("internal", "the enclave failed; its console says where")


def _milliseconds(start: float, end: float) -> float:
    return round((end - start) * 1000, 3)


async def _no_such_resource(_: Request, exc: Any) -> Response:
    """An unknown path or method: a bad request, under HTTP's own status."""
    error = PayloadError("bad_request", "this server has GET /health, POST /detect and POST /attest")
    return JSONResponse(error.to_json(), exc.status_code, headers=exc.headers)
