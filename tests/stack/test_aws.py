"""What AWS refuses, and what never reaches it, as errors that a user can act on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import boto3
import pytest
from botocore import exceptions
from botocore.parsers import ResponseParserError
from botocore.stub import Stubber

from necli.aws import Account, aws_errors
from necli.errors import AccessDenied, Conflict, NecliError, ServiceFailed, UsageError


@pytest.mark.parametrize(
    ("code", "expected", "hint"),
    [
        ("AccessDenied", AccessDenied, "administrator"),
        ("UnauthorizedOperation", AccessDenied, "administrator"),
        ("ExpiredToken", AccessDenied, "aws sso login"),
        ("InvalidClientTokenId", AccessDenied, "aws sso login"),
        ("ValidationError", UsageError, "correct the option"),
        ("InvalidInstanceType", UsageError, "correct the option"),
        ("AlreadyExistsException", Conflict, "wait"),
        ("Throttling", ServiceFailed, "busy"),
        ("InternalFailure", ServiceFailed, "again"),
    ],
)
def test_a_refusal_becomes_an_error_with_its_code_and_a_way_out(
    code: str, expected: type[NecliError], hint: str
) -> None:
    refusal = exceptions.ClientError({"Error": {"Code": code, "Message": "because"}}, "CreateStack")
    told = f"can't create it: AWS says {code}: because"
    with pytest.raises(expected, match=told) as caught, aws_errors("create it"):
        raise refusal
    assert caught.value.code == code
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("error", "expected", "hint"),
    [
        (exceptions.NoCredentialsError(), UsageError, "aws sso login"),
        (exceptions.ProfileNotFound(profile="x"), UsageError, "aws sso login"),
        (exceptions.UnauthorizedSSOTokenError(), UsageError, "aws sso login"),
        (exceptions.EndpointConnectionError(endpoint_url="https://x"), ServiceFailed, "network"),
        (exceptions.ReadTimeoutError(endpoint_url="https://x"), ServiceFailed, "network"),
        (exceptions.ParamValidationError(report="bad"), UsageError, "correct"),
        (ResponseParserError("<html>"), ServiceFailed, "proxy"),
    ],
)
def test_what_never_reached_aws_says_what_is_missing(
    error: Exception, expected: type[NecliError], hint: str
) -> None:
    with pytest.raises(expected) as caught, aws_errors("create it"):
        raise error
    assert hint in (caught.value.hint or "")


def test_a_bug_of_ours_is_not_made_an_error_of_awss() -> None:
    with pytest.raises(KeyError), aws_errors("create it"):
        raise KeyError("x")


def account(arn: str, role: Mapping[str, Any] | None = None) -> Account:
    """An account whose STS and IAM answer so."""
    clients = {
        name: boto3.client(name, region_name="eu-central-1", aws_access_key_id="x", aws_secret_access_key="x")
        for name in ("sts", "iam", "ec2", "ssm")
    }
    sts, iam = Stubber(clients["sts"]), Stubber(clients["iam"])
    sts.add_response("get_caller_identity", {"Arn": arn}, {})
    if role:
        iam.add_response("get_role", {"Role": role}, {"RoleName": role["RoleName"]})
    sts.activate()
    iam.activate()
    return Account("eu-central-1", lambda service, region: clients[service])


def test_a_session_is_known_by_its_role_with_the_path_that_its_own_arn_leaves_out() -> None:
    arn = "arn:aws:iam::111122223333:role/aws-reserved/sso.amazonaws.com/AWSReservedSSO_Admin_1"
    role = {
        "Path": "/aws-reserved/sso.amazonaws.com/",
        "RoleName": "AWSReservedSSO_Admin_1",
        "RoleId": "AROA0000000000000",
        "Arn": arn,
        "CreateDate": "2026-01-01T00:00:00Z",
    }
    session = "arn:aws:sts::111122223333:assumed-role/AWSReservedSSO_Admin_1/me@example.com"
    assert account(session, role).caller_arn() == arn


def test_a_user_is_known_by_its_own_arn() -> None:
    arn = "arn:aws:iam::111122223333:user/team/me"
    assert account(arn).caller_arn() == arn


@pytest.mark.parametrize(
    "who", ["arn:aws:iam::111122223333:root", "arn:aws:sts::111122223333:federated-user/me"]
)
def test_who_is_neither_role_nor_user_cannot_administer_a_key(who: str) -> None:
    with pytest.raises(UsageError, match="can't be a key's administrator") as caught:
        account(who).caller_arn()
    assert "--administrator" in (caught.value.hint or "")
