"""Checks AWS Signature Version 4 on the server's side.

Follows "Create a signed AWS API request". The steps:

 1. The Authorization header is complete, and the request carries its date.
 2. The access key is known, its session token is the right one and hasn't expired.
 3. The scope names this day, region and service.
 4. The request's clock is within five minutes of ours.
 5. Every header that means something is signed, and the body is the one that was signed.
 6. The signature is what the secret key makes of all that.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from necli.local.identities import Identities, Identity
from necli.local.kms_protocol import KmsError

_ALGORITHM = "AWS4-HMAC-SHA256"
_MAX_SKEW = timedelta(minutes=5)
_TIME_FORMAT = "%Y%m%dT%H%M%SZ"
_MUST_BE_SIGNED = frozenset({"host", "x-amz-date", "x-amz-target", "x-amz-security-token"})


@dataclass(frozen=True)
class SignedRequest:
    """An HTTP request as it came; header names in lower case."""

    method: str
    path: str
    query: str
    headers: Sequence[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        return ",".join(" ".join(value.split()) for key, value in self.headers if key == name)


@dataclass(frozen=True)
class _Authorization:
    access_key_id: str
    scope: tuple[str, str, str, str]
    signed_headers: tuple[str, ...]
    signature: str


def authenticate(
    request: SignedRequest, identities: Identities, *, region: str, service: str, now: datetime
) -> Identity:
    """Who signed this request.

    :raises KmsError: nobody who is known here, or not this request.
    """
    # 1
    authorization = _authorization(request.header("authorization"))
    date = _date(request.header("x-amz-date"))
    # 2
    identity = identities.with_access_key(authorization.access_key_id)
    token = request.header("x-amz-security-token")
    if identity is None or not _equal(identity.credentials.session_token, token):
        raise KmsError(
            "UnrecognizedClientException", "The security token included in the request is invalid."
        )
    expiration = identity.credentials.expiration
    if expiration is not None and expiration <= now:
        raise KmsError("ExpiredTokenException", "The security token included in the request is expired")
    # 3
    _check_scope(authorization.scope, f"{date:%Y%m%d}", region, service)
    # 4
    _check_clock(date, now)
    # 5
    present = {name for name, _ in request.headers}
    for name in sorted(_MUST_BE_SIGNED & present - set(authorization.signed_headers)):
        raise _invalid_signature(f"'{name}' must be a 'SignedHeader' in the AWS Authorization.")
    body_hash = hashlib.sha256(request.body).hexdigest()
    if request.header("x-amz-content-sha256") not in ("", body_hash):
        raise _invalid_signature("The provided 'x-amz-content-sha256' header does not match the body.")
    # 6
    canonical = _canonical_request(request, authorization.signed_headers, body_hash)
    text = "\n".join(
        (
            _ALGORITHM,
            date.strftime(_TIME_FORMAT),
            "/".join(authorization.scope),
            hashlib.sha256(canonical.encode()).hexdigest(),
        )
    )
    key = _signing_key(identity.credentials.secret_access_key, authorization.scope)
    if not _equal(_hmac(key, text).hex(), authorization.signature):
        raise _invalid_signature(
            "The request signature we calculated does not match the signature you provided. Check your AWS "
            "Secret Access Key and signing method. Consult the service documentation for details."
        )
    return identity


def _authorization(header: str) -> _Authorization:
    if not header:
        raise KmsError("MissingAuthenticationTokenException", "Missing Authentication Token")
    algorithm, _, rest = header.partition(" ")
    if algorithm != _ALGORITHM:
        raise KmsError("IncompleteSignatureException", f"Unsupported AWS 'algorithm': '{algorithm:.64}'.")
    fields = dict(part.strip().partition("=")[::2] for part in rest.split(","))
    for name in ("Credential", "Signature", "SignedHeaders"):
        if not fields.get(name):
            raise KmsError(
                "IncompleteSignatureException", f"Authorization header requires '{name}' parameter."
            )
    access_key_id, *scope = fields["Credential"].split("/")
    if len(scope) != 4:
        raise KmsError(
            "IncompleteSignatureException", "Credential must have exactly 5 slash-delimited elements."
        )
    day, region, service, terminator = scope
    return _Authorization(
        access_key_id,
        (day, region, service, terminator),
        tuple(fields["SignedHeaders"].split(";")),
        fields["Signature"],
    )


def _date(header: str) -> datetime:
    if not re.fullmatch(r"\d{8}T\d{6}Z", header):
        raise KmsError(
            "IncompleteSignatureException",
            "Authorization header requires existence of an 'X-Amz-Date' header.",
        )
    try:
        return datetime.strptime(header, _TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        raise KmsError("IncompleteSignatureException", "'X-Amz-Date' is not a date.") from None


def _check_scope(scope: tuple[str, str, str, str], day: str, region: str, service: str) -> None:
    if scope[0] != day:
        raise _invalid_signature("Date in Credential scope does not match YYYYMMDD from ISO-8601 date.")
    if scope[1] != region:
        raise _invalid_signature(f"Credential should be scoped to a valid region, not '{scope[1]:.64}'.")
    if scope[2] != service:
        raise _invalid_signature(f"Credential should be scoped to correct service: '{service}'.")
    if scope[3] != "aws4_request":
        raise _invalid_signature("Credential should be scoped with a valid terminator: 'aws4_request'.")


def _check_clock(date: datetime, now: datetime) -> None:
    stamp, here = date.strftime(_TIME_FORMAT), now.strftime(_TIME_FORMAT)
    if date < now - _MAX_SKEW:
        limit = (now - _MAX_SKEW).strftime(_TIME_FORMAT)
        raise _invalid_signature(f"Signature expired: {stamp} is now earlier than {limit} ({here} - 5 min.)")
    if date > now + _MAX_SKEW:
        limit = (now + _MAX_SKEW).strftime(_TIME_FORMAT)
        raise _invalid_signature(
            f"Signature not yet current: {stamp} is still later than {limit} ({here} + 5 min.)"
        )


def _canonical_request(request: SignedRequest, signed_headers: Sequence[str], body_hash: str) -> str:
    headers = "".join(f"{name}:{request.header(name)}\n" for name in signed_headers)
    return "\n".join(
        (request.method, request.path, request.query, headers, ";".join(signed_headers), body_hash)
    )


def _signing_key(secret: str, scope: Sequence[str]) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in scope:
        key = _hmac(key, part)
    return key


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


def _equal(expected: str, given: str) -> bool:
    return hmac.compare_digest(expected.encode(), given.encode())


def _invalid_signature(message: str) -> KmsError:
    return KmsError("InvalidSignatureException", message)
