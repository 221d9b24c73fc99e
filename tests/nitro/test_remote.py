"""Commands on the parent instance through SSM, on answers as AWS documents them."""

from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from necli.errors import (
    AccessDenied,
    Conflict,
    HostError,
    MeasurementMismatch,
    NecliError,
    NotReady,
    ServiceFailed,
)
from necli.nitro.remote import RemoteHost

INSTANCE = "i-0123456789abcdef0"
COMMAND = "0831e1a8-a1ac-4257-a1fd-c831bEXAMPLE"
ARGV = ["necli", "--target", "nitro", "build", "--model", "a model's name"]


class Ssm:
    """SSM's client with answers laid out in advance; what it is asked must match them."""

    def __init__(self) -> None:
        self.client = boto3.client(
            "ssm", "eu-central-1", aws_access_key_id="AKIAIOSFODNN7EXAMPLE", aws_secret_access_key="example"
        )
        self.stub = Stubber(self.client)
        self.stub.activate()
        self.output: list[str] = []
        self.chatter: list[str] = []

    def sends(self) -> None:
        script = "export HOME=/root\nexec necli --target nitro build --model 'a model'\"'\"'s name'"
        self.stub.add_response(
            "send_command",
            {"Command": {"CommandId": COMMAND}},
            {
                "InstanceIds": [INSTANCE],
                "DocumentName": "AWS-RunShellScript",
                "Comment": "necli",
                "Parameters": {"commands": [script], "executionTimeout": ["3600"]},
            },
        )

    def reports(self, status: str, **more: Any) -> None:
        asked = {"CommandId": COMMAND, "InstanceId": INSTANCE}
        self.stub.add_response("get_command_invocation", {"Status": status, **more}, asked)

    def cancels(self) -> None:
        self.stub.add_response("cancel_command", {}, {"CommandId": COMMAND, "InstanceIds": [INSTANCE]})

    def run(self) -> None:
        host = RemoteHost(self.client, INSTANCE, poll_s=0)
        host.run(ARGV, self.output.append, self.chatter.append)
        self.stub.assert_no_pending_responses()


@pytest.fixture
def ssm() -> Ssm:
    return Ssm()


def test_output_comes_piece_by_piece_and_each_piece_once(ssm: Ssm) -> None:
    ssm.sends()
    ssm.stub.add_client_error("get_command_invocation", "InvocationDoesNotExist")
    ssm.reports("Pending")
    ssm.reports("InProgress", StandardOutputContent="one\n")
    ssm.reports("InProgress", StandardOutputContent="one\n", StandardErrorContent="building\n")
    ssm.reports("Success", StandardOutputContent="one\ntwo\n", StandardErrorContent="building\n")
    ssm.run()
    assert ssm.output == ["one\n", "two\n"]
    assert ssm.chatter == ["building\n"]


def test_output_that_ssm_cut_off_is_said_to_be(ssm: Ssm) -> None:
    ssm.sends()
    ssm.reports("Success", StandardOutputContent="x" * 24_000)
    ssm.run()
    assert "cuts longer output off" in ssm.chatter[-1]


@pytest.mark.parametrize(
    ("code", "error"), [(5, AccessDenied), (6, MeasurementMismatch), (7, Conflict), (9, HostError)]
)
def test_the_error_of_a_necli_there_is_raised_here(ssm: Ssm, code: int, error: type[NecliError]) -> None:
    said = "step\nerror: the disk is full\nhint: free some space\n"
    ssm.sends()
    ssm.reports("Failed", StatusDetails="Failed", ResponseCode=code, StandardErrorContent=said)
    with pytest.raises(error, match=f"{INSTANCE}.*status {code}: the disk is full") as caught:
        ssm.run()
    assert type(caught.value) is error
    assert caught.value.hint == "free some space"


@pytest.mark.parametrize(
    ("answer", "error", "says", "hint"),
    [
        ({"Status": "Failed", "ResponseCode": 127}, NotReady, "necli isn't installed", "pip install"),
        (
            {"Status": "Failed", "ResponseCode": 1, "StandardErrorContent": "Killed\n"},
            ServiceFailed,
            "status 1: Killed",
            "start-session",
        ),
        (
            {"Status": "TimedOut", "StatusDetails": "DeliveryTimedOut"},
            ServiceFailed,
            "DeliveryTimedOut",
            "agent",
        ),
        ({"Status": "Failed", "StatusDetails": "Undeliverable"}, ServiceFailed, "Undeliverable", "agent"),
        ({"Status": "Cancelled", "StatusDetails": "Cancelled"}, ServiceFailed, "Cancelled", "agent"),
    ],
)
def test_each_other_end_is_named_with_a_fix_and_the_next_run_goes_on(
    ssm: Ssm, answer: dict[str, Any], error: type[NecliError], says: str, hint: str
) -> None:
    ssm.sends()
    ssm.reports(**{"status": answer.pop("Status"), **answer})
    with pytest.raises(error, match=says) as caught:
        ssm.run()
    assert hint in (caught.value.hint or "")
    ssm.sends()
    ssm.reports("Success")
    ssm.run()


@pytest.mark.parametrize(
    ("code", "error", "hint"),
    [
        ("InvalidInstanceId", NotReady, "agent"),
        ("AccessDeniedException", AccessDenied, "administrator"),
        ("ExpiredTokenException", AccessDenied, "sign in"),
        ("ThrottlingException", ServiceFailed, "again"),
    ],
)
def test_each_refusal_to_send_names_the_instance_and_a_fix(
    ssm: Ssm, code: str, error: type[NecliError], hint: str
) -> None:
    ssm.stub.add_client_error("send_command", code, "no")
    with pytest.raises(error, match=INSTANCE) as caught:
        ssm.run()
    assert hint in (caught.value.hint or "")
    assert caught.value.code == code


def test_a_command_that_can_no_longer_be_followed_is_cancelled(ssm: Ssm) -> None:
    ssm.sends()
    ssm.stub.add_client_error("get_command_invocation", "InternalServerError", "oops")
    ssm.cancels()
    with pytest.raises(ServiceFailed, match="follow the command"):
        ssm.run()
    ssm.stub.assert_no_pending_responses()
