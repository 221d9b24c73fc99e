"""Reads requests of the parent, every one of them hostile until it has been parsed here."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request

from enclave_payload.errors import PayloadError
from enclave_payload.kms import Credentials

BODY_IDLE_TIMEOUT_S: Final = 10.0
"""How long a client may pause within a body."""

_DEFAULT_MIN_SCORE: Final = "0.4"
_MAX_ATTESTED_BYTES: Final = 512  # what the NSM takes as a nonce or as user data
_MAX_ATTEST_BODY: Final = 4096
_FROM_BASE64URL: Final = str.maketrans("-_", "+/")
_REQUEST_ID: Final = r"[A-Za-z0-9-]{1,64}"
_CREDENTIAL: Final = r"[!-~]{1,8192}"  # goes into headers of the request to KMS


@dataclass(frozen=True)
class DetectionRequest:
    credentials: Credentials
    min_score: float
    nonce: bytes | None


@dataclass(frozen=True)
class AttestationRequest:
    nonce: bytes | None
    user_data: bytes


def request_id(request: Request) -> str | None:
    value = request.headers.get("x-request-id")
    if value is not None and not re.fullmatch(_REQUEST_ID, value):
        raise PayloadError("bad_request", "x-request-id: not 1 to 64 letters, digits and hyphens")
    return value


def detection_request(request: Request) -> DetectionRequest:
    return DetectionRequest(
        credentials=_credentials(request), min_score=_min_score(request), nonce=_nonce(request)
    )


async def attestation_request(request: Request) -> AttestationRequest:
    body = await read_body(request, limit=_MAX_ATTEST_BODY)
    try:
        value = json.loads(body.getvalue())
    except (ValueError, RecursionError) as exc:
        raise PayloadError("bad_request", "the body is not JSON") from exc
    if not isinstance(value, dict) or not value.keys() <= {"nonce", "user_data"}:
        raise PayloadError("bad_request", "the body is not an object with nonce and user_data only")
    return AttestationRequest(
        nonce=_decoded("nonce", value["nonce"]) if "nonce" in value else None,
        user_data=_decoded("user_data", value.get("user_data", "")),
    )


async def read_body(request: Request, *, limit: int) -> io.BytesIO:
    """The whole body. Raises PayloadError when it's too large, TimeoutError when the client pauses too long.

    A BytesIO because it grows without a second copy, and is what the Encryption SDK reads from.
    """
    too_large = PayloadError("message_too_large", f"the body is larger than {limit:,} bytes")
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_large
    body = io.BytesIO()
    clock = asyncio.get_running_loop().time
    async with asyncio.timeout(BODY_IDLE_TIMEOUT_S) as pause:
        async for chunk in request.stream():
            pause.reschedule(clock() + BODY_IDLE_TIMEOUT_S)
            if body.tell() + len(chunk) > limit:
                raise too_large
            body.write(chunk)
    body.seek(0)
    return body


def _credentials(request: Request) -> Credentials:
    names = ("access-key-id", "secret-access-key", "session-token")
    key_id, secret, token = (request.headers.get(f"x-aws-{name}") for name in names)
    if not key_id or not secret:
        raise PayloadError(
            "credentials_missing", "x-aws-access-key-id and x-aws-secret-access-key are required"
        )
    for name, value in zip(names, (key_id, secret, token), strict=True):
        if value is not None and not re.fullmatch(_CREDENTIAL, value):
            raise PayloadError("bad_request", f"x-aws-{name}: not printable ASCII without spaces")
    return Credentials(key_id, secret, token)


def _min_score(request: Request) -> float:
    text = request.query_params.get("min_score", _DEFAULT_MIN_SCORE)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:  # nor is NaN
        raise PayloadError("bad_request", "min_score: not a number from 0 to 1")
    return value


def _nonce(request: Request) -> bytes | None:
    text = request.headers.get("x-necli-nonce")
    if text is None:
        return None
    unpadded = text.rstrip("=").translate(_FROM_BASE64URL)
    return _decoded("x-necli-nonce", unpadded + "=" * (-len(unpadded) % 4))


def _decoded(name: str, text: object) -> bytes:
    try:
        value = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except ValueError:
        value = None
    if value is None or len(value) > _MAX_ATTESTED_BYTES:
        raise PayloadError("bad_request", f"{name}: not base64 of up to {_MAX_ATTESTED_BYTES} bytes")
    return value
