"""The enclave's sessions, against STS as moto has it and as botocore's stub replays it."""

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from moto import mock_aws

from necli.errors import AccessDenied, NecliError, ServiceFailed, UsageError
from necli.nitro.session import LIFETIME, RENEW_BEFORE, EnclaveSessions, session_policy

REGION = "eu-central-1"
ROLE = "arn:aws:iam::111122223333:role/necli-EnclaveRole"
KEY = f"arn:aws:kms:{REGION}:111122223333:key/0d4b5a1e-6b6e-4a55-9f9c-6f1f3f9c8d11"


class Clock:
    def __init__(self) -> None:
        self.time = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture
def sts() -> Iterator[Any]:
    with mock_aws():
        yield boto3.client(
            "sts", REGION, aws_access_key_id="AKIAIOSFODNN7EXAMPLE", aws_secret_access_key="example"
        )


def asked_for(client: Any) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    client.meta.events.register(
        "provide-client-params.sts.AssumeRole", lambda params, **_: calls.append(dict(params))
    )
    return calls


def test_a_session_may_only_decrypt_with_this_key_and_is_as_short_as_sts_gives(sts: Any) -> None:
    calls = asked_for(sts)
    session = EnclaveSessions(sts, ROLE, KEY).credentials()
    assert session.access_key_id.startswith("ASIA")
    assert session.session_token
    (call,) = calls
    assert call["RoleArn"] == ROLE
    assert call["DurationSeconds"] == LIFETIME.total_seconds() == 900
    assert json.loads(call["Policy"])["Statement"] == [
        {"Effect": "Allow", "Action": "kms:Decrypt", "Resource": KEY}
    ]


def test_a_session_is_used_again_until_it_is_nearly_over(sts: Any) -> None:
    calls, clock = asked_for(sts), Clock()
    sessions = EnclaveSessions(sts, ROLE, KEY, now=clock)
    first = sessions.credentials()
    assert sessions.credentials() == first
    clock.time += LIFETIME - RENEW_BEFORE - timedelta(minutes=1)
    assert sessions.credentials() == first
    clock.time += timedelta(minutes=2)
    assert sessions.credentials() != first
    assert len(calls) == 2


def test_no_secret_shows_in_repr_or_log(sts: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="necli")
    sessions = EnclaveSessions(sts, ROLE, KEY)
    session = sessions.credentials()
    shown = f"{sessions!r} {session!r} {caplog.text}"
    assert session.secret_access_key not in shown
    assert session.session_token is not None
    assert session.session_token not in shown


@pytest.mark.parametrize("key", ["*", "arn:aws:kms:*:111122223333:key/*", "alias/necli", f"{KEY}*", ""])
def test_a_policy_for_anything_but_one_key_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match="isn't the ARN of one key"):
        session_policy(key)


@pytest.mark.parametrize(
    ("code", "message", "error", "hint"),
    [
        ("AccessDenied", "not authorized to perform: sts:AssumeRole", AccessDenied, "own instance"),
        ("ExpiredToken", "The security token included in the request is expired", AccessDenied, "sign in"),
        ("Throttling", "Rate exceeded", ServiceFailed, "again"),
        ("RegionDisabledException", "STS is not activated in this region", ServiceFailed, "again"),
    ],
)
def test_each_refusal_of_sts_names_the_role_the_cause_and_a_fix_and_the_next_try_works(
    sts: Any, code: str, message: str, error: type[NecliError], hint: str
) -> None:
    sessions = EnclaveSessions(sts, ROLE, KEY)
    with Stubber(sts) as stub:
        stub.add_client_error("assume_role", code, message)
        with pytest.raises(error, match=f"session of the enclave's role {ROLE}.*{message}") as caught:
            sessions.credentials()
    assert hint in (caught.value.hint or "")
    assert caught.value.code == code
    assert sessions.credentials().session_token
