"""AWS through boto3: its clients are made here, and its errors become necli's here.

Everything but KMS, whose refusals mean something of their own (necli.kms).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from necli.errors import AccessDenied, Conflict, NecliError, ServiceFailed, UsageError

_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "NotAuthorized"}
_SIGNED_OUT = {
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_BUSY = {"RequestLimitExceeded", "ServiceUnavailable", "Throttling", "ThrottlingException"}
_SIGN_IN = "sign in with aws sso login or aws configure, then check with aws sts get-caller-identity"


@contextmanager
def aws_errors(doing: str) -> Iterator[None]:
    """Around calls of boto3: what AWS, the network or the credentials' lack says, as a NecliError."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as exc:
        error = exc.response.get("Error", {})
        raise _refused(doing, str(error.get("Code", "")), str(error.get("Message", ""))) from exc
    except BotoCoreError as exc:
        raise _unsent(doing, exc) from exc
    except ResponseParserError as exc:  # a proxy's or a portal's page
        raise ServiceFailed(
            f"can't {doing}: what answered isn't AWS",
            hint="check the network's proxy",
            code="aws_unreachable",
        ) from exc


def _refused(doing: str, code: str, message: str) -> NecliError:
    text = f"can't {doing}: AWS says {code}: {message}"
    if code in _DENIED:
        return AccessDenied(text, hint="ask your administrator for the action that is named here", code=code)
    if code in _SIGNED_OUT:
        return AccessDenied(text, hint=_SIGN_IN, code=code)
    if code.startswith(("Validation", "InvalidParameter", "InvalidInstanceType")):
        return UsageError(text, hint="correct the option that is named here", code=code)
    if code in ("AlreadyExistsException", "OperationInProgressException"):
        return Conflict(text, hint="wait for the other command, then run this one again", code=code)
    if code in _BUSY:
        return ServiceFailed(text, hint="AWS is busy: run the same command again", code=code)
    return ServiceFailed(text, hint="run the same command again: it goes on where it stopped", code=code)


def _unsent(doing: str, error: Exception) -> NecliError:
    from botocore import exceptions

    text = f"can't {doing}: {error}"
    no_credentials = (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.ProfileNotFound,
        exceptions.CredentialRetrievalError,
        exceptions.SSOError,
        exceptions.TokenRetrievalError,
    )
    if isinstance(error, no_credentials):
        return UsageError(text, hint=_SIGN_IN, code="no_credentials")
    if isinstance(error, exceptions.ParamValidationError):
        return UsageError(text, hint="correct the option that is named here")
    return ServiceFailed(text, hint="check the network and --region", code="aws_unreachable")


def open_client(service: str, region: str) -> Any:
    """A boto3 client with the caller's own credentials, as the AWS CLI finds them."""
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=10, read_timeout=60, retries={"mode": "standard", "max_attempts": 5})
    with aws_errors(f"reach {service} in {region}"):
        return boto3.client(service, region_name=region, config=config)


@dataclass(frozen=True)
class InstanceType:
    name: str
    architecture: str
    """As Amazon's images are named: `x86_64` or `arm64`."""
    vcpus: int
    memory_mib: int
    threads_per_core: int
    enclaves: bool


@dataclass(frozen=True)
class Account:
    """Whose account this is, and what its region offers."""

    region: str
    connect: Callable[[str, str], Any] = open_client

    # Each client costs time to make, EC2's most: only what is asked for.
    @cached_property
    def sts(self) -> Any:
        return self.connect("sts", self.region)

    @cached_property
    def iam(self) -> Any:
        return self.connect("iam", self.region)

    @cached_property
    def ec2(self) -> Any:
        return self.connect("ec2", self.region)

    @cached_property
    def ssm(self) -> Any:
        return self.connect("ssm", self.region)

    def caller_arn(self) -> str:
        """The role or user that signs our requests, as policies name it: with its path, without its session.

        :raises UsageError: it is the account's root user, or a federated one.
        """
        with aws_errors("find out who you are"):
            arn = str(self.sts.get_caller_identity()["Arn"])
        if re.search(":iam:.*:user/", arn):
            return arn
        session = re.search(":assumed-role/([^/]+)/", arn)
        if session is None:
            raise UsageError(
                f"you are signed in as {arn}, which can't be a key's administrator",
                hint="sign in as a role or a user, or name one with --administrator",
            )
        # A session's ARN leaves out the path, and a role from AWS SSO has one.
        with aws_errors("find the role that you are signed in as"):
            return str(self.iam.get_role(RoleName=session[1])["Role"]["Arn"])

    def latest_image(self, architecture: str) -> str:
        """The id of the latest Amazon Linux 2023 image."""
        name = f"/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-{architecture}"
        with aws_errors("find the latest Amazon Linux 2023"):
            return str(self.ssm.get_parameter(Name=name)["Parameter"]["Value"])

    def instance_type(self, name: str) -> InstanceType:
        """:raises UsageError: the region doesn't offer it."""
        with aws_errors(f"look up the instance type {name} in {self.region}"):
            found = self.ec2.describe_instance_types(InstanceTypes=[name])["InstanceTypes"][0]
        architectures = found["ProcessorInfo"]["SupportedArchitectures"]
        return InstanceType(
            name=name,
            architecture="arm64" if "arm64" in architectures else "x86_64",
            vcpus=int(found["VCpuInfo"]["DefaultVCpus"]),
            memory_mib=int(found["MemoryInfo"]["SizeInMiB"]),
            threads_per_core=int(found["VCpuInfo"].get("DefaultThreadsPerCore", 1)),
            enclaves=found.get("NitroEnclavesSupport") == "supported",
        )
