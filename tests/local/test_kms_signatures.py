"""Requests signed rightly and wrongly, as bytes over TLS: botocore signs, the test then meddles."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from running_kms import REGION, RunningKms

from necli.home import read_json, write_json_atomically
from necli.local.identities import Identities, ensure_identities
from necli.local.kms_protocol import KmsError
from necli.local.sigv4 import SignedRequest, authenticate

TARGET = "TrentService.ListKeys"


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningKms]:
    running = RunningKms(tmp_path_factory.mktemp("kms"))
    running.start()
    yield running
    running.stop()


def signed(
    kms: RunningKms, body: bytes = b"{}", *, region: str = REGION, service: str = "kms", **changes: str
) -> dict[str, str]:
    """The headers of a ListKeys that is signed by botocore."""
    held = kms.identities.administrator.credentials
    given = {
        "access_key": held.access_key_id,
        "secret_key": held.secret_access_key,
        "token": held.session_token,
    }
    credentials = ReadOnlyCredentials(**{**given, **changes})
    headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": TARGET}
    request = AWSRequest("POST", kms.endpoint + "/", headers, body)
    SigV4Auth(credentials, service, region).add_auth(request)
    return dict(request.headers.items())


def send(kms: RunningKms, headers: dict[str, str], body: bytes = b"{}") -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPSConnection("localhost", kms.port, context=kms.tls, timeout=10)
    try:
        connection.request("POST", "/", body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def refusal(kms: RunningKms, headers: dict[str, str], body: bytes = b"{}") -> tuple[str, str]:
    status, answer = send(kms, headers, body)
    assert status == 400
    return answer["__type"], answer["message"]


def test_a_request_as_botocore_signs_it_is_answered(kms: RunningKms) -> None:
    status, answer = send(kms, signed(kms))
    assert status == 200
    assert answer["Truncated"] is False


def test_an_unsigned_request_is_refused(kms: RunningKms) -> None:
    headers = signed(kms)
    del headers["Authorization"]
    assert refusal(kms, headers) == ("MissingAuthenticationTokenException", "Missing Authentication Token")


@pytest.mark.parametrize(
    "authorization",
    [
        "Basic dXNlcjpwYXNz",
        "AWS4-HMAC-SHA256",
        "AWS4-HMAC-SHA256 Credential=A/20260101/eu-central-1/kms/aws4_request, SignedHeaders=host",
        "AWS4-HMAC-SHA256 Credential=A/kms/aws4_request, SignedHeaders=host, Signature=00",
        "AWS4-ECDSA-P256-SHA256 Credential=A/20260101/kms/aws4_request, SignedHeaders=host, Signature=00",
        "AWS4-HMAC-SHA256 " + "=" * 1000,
    ],
)
def test_half_a_signature_is_incomplete(kms: RunningKms, authorization: str) -> None:
    code, _ = refusal(kms, {**signed(kms), "Authorization": authorization})
    assert code == "IncompleteSignatureException"


@pytest.mark.parametrize("date", ["", "yesterday", "20261399T000000Z"])
def test_a_date_that_is_none_is_incomplete(kms: RunningKms, date: str) -> None:
    code, _ = refusal(kms, {**signed(kms), "X-Amz-Date": date})
    assert code == "IncompleteSignatureException"


@pytest.mark.parametrize("change", [{"access_key": "ASIAUNKNOWN"}, {"token": "another"}, {"token": ""}])
def test_who_is_not_known_is_not_recognised(kms: RunningKms, change: dict[str, str]) -> None:
    assert refusal(kms, signed(kms, **change)) == (
        "UnrecognizedClientException",
        "The security token included in the request is invalid.",
    )


def test_the_session_token_of_another_identity_is_refused(kms: RunningKms) -> None:
    headers = signed(kms, token=kms.identities.parent.credentials.session_token)
    assert refusal(kms, headers)[0] == "UnrecognizedClientException"


def test_a_wrong_secret_does_not_match(kms: RunningKms) -> None:
    code, message = refusal(kms, signed(kms, secret_key="wrong"))
    assert code == "InvalidSignatureException"
    assert message.startswith("The request signature we calculated does not match")


def test_another_body_than_the_signed_one_does_not_match(kms: RunningKms) -> None:
    assert refusal(kms, signed(kms, b"{}"), b'{"Limit": 1}')[0] == "InvalidSignatureException"


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-Amz-Target", "TrentService.CreateKey"), ("Content-Type", "application/json"), ("Host", "elsewhere")],
)
def test_a_signed_header_that_was_changed_does_not_match(kms: RunningKms, name: str, value: str) -> None:
    assert refusal(kms, {**signed(kms), name: value})[0] == "InvalidSignatureException"


@pytest.mark.parametrize("header", ["x-amz-target", "x-amz-date", "host", "x-amz-security-token"])
def test_a_header_that_matters_has_to_be_signed(kms: RunningKms, header: str) -> None:
    headers = signed(kms)
    kept = headers["Authorization"].replace(f"{header};", "").replace(f";{header},", ",")
    assert refusal(kms, {**headers, "Authorization": kept}) == (
        "InvalidSignatureException",
        f"'{header}' must be a 'SignedHeader' in the AWS Authorization.",
    )


def test_a_body_hash_of_another_body_is_refused(kms: RunningKms) -> None:
    headers = {**signed(kms), "X-Amz-Content-SHA256": "0" * 64}
    assert refusal(kms, headers)[0] == "InvalidSignatureException"


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        ({"region": "us-east-1"}, "Credential should be scoped to a valid region, not 'us-east-1'."),
        ({"service": "sts"}, "Credential should be scoped to correct service: 'kms'."),
    ],
)
def test_a_scope_for_something_else_is_refused(kms: RunningKms, scope: dict[str, str], message: str) -> None:
    assert refusal(kms, signed(kms, **scope)) == ("InvalidSignatureException", message)


def test_a_body_above_the_limit_is_refused(kms: RunningKms) -> None:
    body = b" " * (1 << 20)
    status, answer = send(kms, signed(kms, body), body)
    assert (status, answer["__type"]) == (413, "RequestEntityTooLargeException")


@pytest.mark.parametrize("body", [b"x", b"[]", b'"x"', b"\xff\xfe", b'{"Limit": "many"}', b"[" * 50_000])
def test_a_body_that_is_no_request_is_refused(kms: RunningKms, body: bytes) -> None:
    status, answer = send(kms, signed(kms, body), body)
    assert (status, answer["__type"]) == (400, "SerializationException")


def test_only_https_is_spoken(kms: RunningKms) -> None:
    connection = http.client.HTTPConnection("localhost", kms.port, timeout=5)
    connection.request("GET", "/health")
    with pytest.raises((http.client.HTTPException, OSError)):
        connection.getresponse()


def test_the_certificate_is_for_the_endpoints_true_name(kms: RunningKms) -> None:
    connection = http.client.HTTPSConnection("127.0.0.1", kms.port, context=kms.tls, timeout=5)
    connection.connect()
    names = {name for _, name in connection.sock.getpeercert()["subjectAltName"]}
    connection.close()
    assert names == {f"kms.{REGION}.amazonaws.com", "localhost", "127.0.0.1"}
    stranger = http.client.HTTPSConnection("localhost", kms.port, timeout=5)
    with pytest.raises(ssl.SSLCertVerificationError):
        stranger.connect()


class TestClocks:
    """`authenticate` is given its time, so these ask it directly."""

    def ask(self, kms: RunningKms, identities: Identities, now: datetime) -> str:
        headers = [(name.lower(), value) for name, value in signed(kms).items()]
        headers.append(("host", f"localhost:{kms.port}"))
        request = SignedRequest("POST", "/", "", headers, b"{}")
        return authenticate(request, identities, region=REGION, service="kms", now=now).name

    @pytest.mark.parametrize("minutes", [-4, 0, 4])
    def test_up_to_five_minutes_of_skew_are_accepted(self, kms: RunningKms, minutes: int) -> None:
        now = datetime.now(UTC) + timedelta(minutes=minutes)
        assert self.ask(kms, kms.identities, now) == "administrator"

    @pytest.mark.parametrize(
        ("minutes", "message"), [(6, "Signature expired: "), (-6, "Signature not yet current: ")]
    )
    def test_more_is_refused(self, kms: RunningKms, minutes: int, message: str) -> None:
        with pytest.raises(KmsError, match=message) as failure:
            self.ask(kms, kms.identities, datetime.now(UTC) + timedelta(minutes=minutes))
        assert failure.value.code == "InvalidSignatureException"

    def test_an_expired_session_is_refused(self, kms: RunningKms) -> None:
        now = datetime.now(UTC)
        administrator = kms.identities.administrator
        ended = replace(administrator.credentials, expiration=now - timedelta(seconds=1))
        identities = replace(kms.identities, administrator=replace(administrator, credentials=ended))
        with pytest.raises(KmsError) as failure:
            self.ask(kms, identities, now)
        assert failure.value.code == "ExpiredTokenException"


def test_an_expiration_in_the_file_is_kept(kms: RunningKms) -> None:
    path = kms.home.aws / "identities.json"
    stored = read_json(path)
    stored["parent"]["expiration"] = "2020-01-01T00:00:00+00:00"
    write_json_atomically(path, stored)
    assert ensure_identities(kms.home).parent.credentials.expiration == datetime(2020, 1, 1, tzinfo=UTC)
