"""Stacks against CloudFormation's answers as AWS documents them: what moto has none of.

The client is boto3's own, and checks requests and answers against AWS's model of the service.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber

from necli.errors import Conflict, NotReady, ServiceFailed, UsageError
from necli.stacks import StackEvent, Stacks, last_operation, root_cause
from necli.template_check import Template

ID = "arn:aws:cloudformation:eu-central-1:111122223333:stack/demo/1"
AT = datetime(2026, 11, 1, 10, tzinfo=UTC)
POLICY = '{"Statement": []}'
CANCELLED = "Resource creation cancelled"
NEW = """
Parameters: {Size: {Type: Number}, AdministratorArn: {Type: String}, Added: {Type: String, Default: x}}
Resources:
  EnclaveKey: {Type: "AWS::KMS::Key", Properties: {Description: new, KeyPolicy: {A: !Ref AdministratorArn}}}
  Vpc: {Type: "AWS::EC2::VPC", Properties: {CidrBlock: 10.1.0.0/16}}
"""
OLD = NEW.replace("Description: new", "Description: old").replace(", Added: {Type: String, Default: x}", "")


class CloudFormation:
    """The answers to come, in order; `stacks` is what is tested."""

    def __init__(self) -> None:
        client = boto3.client(
            "cloudformation",
            region_name="eu-central-1",
            aws_access_key_id="x",
            aws_secret_access_key="x",
        )
        self.stub = Stubber(client)
        self.stacks = Stacks(client, poll_s=0)

    def stack(self, status: str, name: str = "demo", **more: Any) -> CloudFormation:
        stack = {"StackName": "demo", "StackId": ID, "StackStatus": status, "CreationTime": AT, **more}
        self.stub.add_response("describe_stacks", {"Stacks": [stack]}, {"StackName": name})
        return self

    def no_stack(self, name: str = "demo") -> CloudFormation:
        message = f"Stack with id {name} does not exist"
        self.stub.add_client_error(
            "describe_stacks", "ValidationError", message, 400, None, {"StackName": name}
        )
        return self

    def events(self, *events: dict[str, Any]) -> CloudFormation:
        """AWS answers with the newest first."""
        self.stub.add_response(
            "describe_stack_events", {"StackEvents": list(events[::-1])}, {"StackName": ID}
        )
        return self

    def template(self, text: str) -> CloudFormation:
        expected = {"StackName": ID, "TemplateStage": "Original"}
        self.stub.add_response("get_template", {"TemplateBody": text}, expected)
        return self

    def answer(self, operation: str, answer: Mapping[str, Any], **expected: Any) -> CloudFormation:
        self.stub.add_response(operation, answer, expected)
        return self

    def refuse(self, operation: str, message: str) -> CloudFormation:
        self.stub.add_client_error(operation, "ValidationError", message)
        return self

    def deploy(self, **parameters: str) -> list[str]:
        """What happened, as `resource status`."""
        template = Template.parse(NEW)
        events = self.stacks.deploy("demo", template, parameters, stack_policy=POLICY)
        return [f"{event.resource} {event.status}" for event in events]


@pytest.fixture
def cloudformation() -> Iterator[CloudFormation]:
    fake = CloudFormation()
    with fake.stub:
        yield fake
    fake.stub.assert_no_pending_responses()


def event(
    number: int, resource: str, status: str, reason: str | None = None, physical: str = ""
) -> dict[str, Any]:
    return {
        "EventId": str(number),
        "StackId": ID,
        "StackName": "demo",
        "Timestamp": AT,
        "LogicalResourceId": resource,
        "PhysicalResourceId": ID if resource == "demo" else physical,
        "ResourceType": "AWS::CloudFormation::Stack" if resource == "demo" else "AWS::EC2::VPC",
        "ResourceStatus": status,
        **({"ResourceStatusReason": reason} if reason else {}),
    }


STARTED = event(1, "demo", "CREATE_IN_PROGRESS", "User Initiated")


def test_a_new_stack_is_created_and_its_events_arrive_once_each(cloudformation: CloudFormation) -> None:
    working = event(2, "Vpc", "CREATE_IN_PROGRESS")
    done = event(3, "Vpc", "CREATE_COMPLETE")
    cloudformation.no_stack().answer(
        "create_stack",
        {"StackId": ID},
        StackName="demo",
        TemplateBody=NEW,
        Parameters=[{"ParameterKey": "Size", "ParameterValue": "32"}],
        StackPolicyBody=POLICY,
        Capabilities=["CAPABILITY_IAM"],
        RetainExceptOnCreate=True,
    )
    cloudformation.stack("CREATE_IN_PROGRESS", ID)
    cloudformation.stack("CREATE_IN_PROGRESS", ID).events(STARTED, working)
    cloudformation.stack("CREATE_IN_PROGRESS", ID).events(STARTED, working)
    cloudformation.stack("CREATE_COMPLETE", ID)
    cloudformation.events(STARTED, working, done, event(4, "demo", "CREATE_COMPLETE"))
    assert cloudformation.deploy(Size="32") == [
        "demo CREATE_IN_PROGRESS",
        "Vpc CREATE_IN_PROGRESS",
        "Vpc CREATE_COMPLETE",
        "demo CREATE_COMPLETE",
    ]


def test_a_failure_is_told_by_its_first_cause_and_not_by_the_last_event(
    cloudformation: CloudFormation,
) -> None:
    cloudformation.stack("CREATE_IN_PROGRESS").stack("CREATE_IN_PROGRESS", ID).events(STARTED)
    cloudformation.stack("ROLLBACK_COMPLETE", ID).events(
        STARTED,
        event(2, "Subnet", "CREATE_FAILED", CANCELLED),
        event(3, "Nat", "CREATE_FAILED", "The maximum number of addresses has been reached."),
        event(4, "Role", "CREATE_FAILED", "another that failed later"),
        event(
            5, "demo", "ROLLBACK_IN_PROGRESS", "The following resource(s) failed to create: [Nat, Subnet]."
        ),
        event(6, "demo", "ROLLBACK_COMPLETE"),
    )
    with pytest.raises(
        ServiceFailed, match=r"because Nat .* failed: The maximum number of addresses"
    ) as caught:
        cloudformation.deploy()
    assert caught.value.code == "ROLLBACK_COMPLETE"


def test_failed_user_data_leads_to_the_console_of_its_instance(cloudformation: CloudFormation) -> None:
    reason = "Received 1 FAILURE signal(s) out of 1.  Unable to satisfy 100% MinSuccessfulInstancesPercent"
    cloudformation.stack("CREATE_IN_PROGRESS").stack("ROLLBACK_COMPLETE", ID)
    cloudformation.events(STARTED, event(2, "Instance", "CREATE_FAILED", reason, physical="i-0123"))
    with pytest.raises(ServiceFailed) as caught:
        cloudformation.deploy()
    assert caught.value.hint
    assert caught.value.hint.endswith("aws ec2 get-console-output --latest --instance-id i-0123")


def test_a_stack_that_never_worked_is_deleted_and_made_anew(cloudformation: CloudFormation) -> None:
    failed = event(2, "Vpc", "CREATE_FAILED", "limit")
    cloudformation.stack("ROLLBACK_COMPLETE").stack("ROLLBACK_COMPLETE").events(STARTED, failed)
    cloudformation.answer("delete_stack", {}, StackName=ID)
    cloudformation.stack("DELETE_COMPLETE", ID)
    cloudformation.events(STARTED, failed, event(3, "demo", "DELETE_COMPLETE"))
    cloudformation.answer(
        "create_stack",
        {"StackId": ID},
        StackName="demo",
        TemplateBody=NEW,
        Parameters=[],
        StackPolicyBody=POLICY,
        Capabilities=ANY,
        RetainExceptOnCreate=True,
    )
    cloudformation.stack("CREATE_COMPLETE", ID).stack("CREATE_COMPLETE", ID)
    cloudformation.events(STARTED, event(4, "demo", "CREATE_COMPLETE"))
    assert cloudformation.deploy() == [
        "demo DELETE_COMPLETE",
        "demo CREATE_IN_PROGRESS",
        "demo CREATE_COMPLETE",
    ]


def test_an_update_sends_the_key_as_it_is_deployed_and_keeps_what_is_not_given(
    cloudformation: CloudFormation,
) -> None:
    parameters = [
        {"ParameterKey": "Size", "ParameterValue": "64"},
        {"ParameterKey": "AdministratorArn", "ParameterValue": "a"},
    ]
    cloudformation.stack("CREATE_COMPLETE", Parameters=parameters).template(OLD).events(STARTED)
    cloudformation.answer("set_stack_policy", {}, StackName=ID, StackPolicyBody=POLICY)
    kept = Template.parse(OLD).document["Resources"]["EnclaveKey"]
    expected = Template.parse(NEW).with_resource("EnclaveKey", kept).text
    assert '"Description":"old"' in expected
    assert "10.1.0.0/16" in expected
    cloudformation.answer(
        "update_stack",
        {"StackId": ID},
        StackName=ID,
        TemplateBody=expected,
        Parameters=[
            {"ParameterKey": "Size", "ParameterValue": "128"},
            {"ParameterKey": "AdministratorArn", "UsePreviousValue": True},
        ],
        Capabilities=["CAPABILITY_IAM"],
    )
    began = event(2, "demo", "UPDATE_IN_PROGRESS", "User Initiated")
    # AWS may tell the status from before the request once more.
    cloudformation.stack("CREATE_COMPLETE", ID).events(STARTED)
    cloudformation.stack("UPDATE_COMPLETE_CLEANUP_IN_PROGRESS", ID).events(STARTED, began)
    cloudformation.stack("UPDATE_COMPLETE", ID).events(STARTED, began, event(3, "demo", "UPDATE_COMPLETE"))
    assert cloudformation.deploy(Size="128") == ["demo UPDATE_IN_PROGRESS", "demo UPDATE_COMPLETE"]


def test_an_update_that_changes_nothing_succeeds_at_once(cloudformation: CloudFormation) -> None:
    cloudformation.stack("UPDATE_COMPLETE").template(NEW).events(STARTED)
    cloudformation.answer("set_stack_policy", {}, StackName=ID, StackPolicyBody=POLICY)
    cloudformation.refuse("update_stack", "No updates are to be performed.")
    assert cloudformation.deploy() == []


def test_an_update_under_way_is_waited_for_before_ours(cloudformation: CloudFormation) -> None:
    began = event(2, "demo", "UPDATE_IN_PROGRESS", "User Initiated")
    ended = event(3, "demo", "UPDATE_COMPLETE")
    cloudformation.stack("UPDATE_IN_PROGRESS").stack("UPDATE_COMPLETE", ID).events(STARTED, began, ended)
    cloudformation.stack("UPDATE_COMPLETE").template(NEW).events(STARTED, began, ended)
    cloudformation.answer("set_stack_policy", {}, StackName=ID, StackPolicyBody=POLICY)
    cloudformation.refuse("update_stack", "No updates are to be performed.")
    assert cloudformation.deploy() == ["demo UPDATE_IN_PROGRESS", "demo UPDATE_COMPLETE"]


def test_an_update_that_rolled_back_is_a_failure(cloudformation: CloudFormation) -> None:
    cloudformation.stack("CREATE_COMPLETE").template(NEW).events(STARTED)
    cloudformation.answer("set_stack_policy", {}, StackName=ID, StackPolicyBody=POLICY)
    cloudformation.answer(
        "update_stack", {"StackId": ID}, StackName=ANY, TemplateBody=ANY, Parameters=ANY, Capabilities=ANY
    )
    denied = (
        "Action denied by stack policy: Statement [#1] does not allow [Update:*] for resource [EnclaveKey]"
    )
    cloudformation.stack("UPDATE_ROLLBACK_COMPLETE", ID).events(
        STARTED,
        event(2, "demo", "UPDATE_IN_PROGRESS", "User Initiated"),
        event(3, "EnclaveKey", "UPDATE_FAILED", denied),
        event(4, "demo", "UPDATE_ROLLBACK_COMPLETE"),
    )
    with pytest.raises(ServiceFailed, match="denied by stack policy") as caught:
        cloudformation.deploy()
    assert caught.value.hint
    assert "necli policy update" in caught.value.hint


@pytest.mark.parametrize("status", ["UPDATE_ROLLBACK_FAILED", "DELETE_FAILED", "REVIEW_IN_PROGRESS"])
def test_a_stack_that_is_stuck_is_left_alone_with_the_command_that_helps(
    cloudformation: CloudFormation, status: str
) -> None:
    cloudformation.stack(status)
    with pytest.raises(NotReady, match="demo") as caught:
        cloudformation.deploy()
    assert caught.value.hint
    assert "demo" in caught.value.hint


def test_somebody_elses_stack_of_that_name_is_not_touched(cloudformation: CloudFormation) -> None:
    cloudformation.stack("CREATE_COMPLETE").template("Resources: {Bucket: {Type: 'AWS::S3::Bucket'}}")
    with pytest.raises(Conflict, match="isn't one of necli's"):
        cloudformation.deploy()


def test_what_the_key_policy_was_made_from_cannot_be_changed_by_an_update(
    cloudformation: CloudFormation,
) -> None:
    parameters = [{"ParameterKey": "AdministratorArn", "ParameterValue": "a"}]
    cloudformation.stack("CREATE_COMPLETE", Parameters=parameters).template(OLD)
    with pytest.raises(UsageError, match="AdministratorArn can't be changed from a to b"):
        cloudformation.deploy(AdministratorArn="b")


def test_a_stack_that_does_not_exist_cannot_be_deleted(cloudformation: CloudFormation) -> None:
    cloudformation.no_stack()
    with pytest.raises(NotReady, match="there is no stack demo"):
        list(cloudformation.stacks.delete("demo"))


def test_a_deletion_that_fails_tells_what_stood_in_the_way(cloudformation: CloudFormation) -> None:
    cloudformation.stack("CREATE_COMPLETE").events(STARTED).answer("delete_stack", {}, StackName=ID)
    cloudformation.stack("DELETE_FAILED", ID).events(
        STARTED,
        event(2, "demo", "DELETE_IN_PROGRESS", "User Initiated"),
        event(3, "Vpc", "DELETE_FAILED", "The vpc has dependencies"),
        event(4, "demo", "DELETE_FAILED", "The following resource(s) failed to delete: [Vpc]."),
    )
    with pytest.raises(ServiceFailed, match=r"Vpc .* has dependencies") as caught:
        list(cloudformation.stacks.delete("demo"))
    assert caught.value.hint
    assert "necli stack delete --name demo" in caught.value.hint


def test_many_events_are_read_from_all_pages(cloudformation: CloudFormation) -> None:
    newest = {"StackEvents": [event(3, "c", "X"), event(2, "b", "X")], "NextToken": "more"}
    stack = cloudformation.stack("CREATE_COMPLETE").stacks.get("demo")
    cloudformation.answer("describe_stack_events", newest, StackName=ID)
    older = {"StackEvents": [event(1, "a", "X")]}
    cloudformation.answer("describe_stack_events", older, StackName=ID, NextToken="more")
    assert [each.resource for each in cloudformation.stacks.events(stack)] == ["a", "b", "c"]


def test_a_page_is_enough_for_what_is_new(cloudformation: CloudFormation) -> None:
    newest = {"StackEvents": [event(3, "c", "X"), event(2, "b", "X")], "NextToken": "more"}
    stack = cloudformation.stack("CREATE_COMPLETE").stacks.get("demo")
    cloudformation.answer("describe_stack_events", newest, StackName=ID)
    assert [each.resource for each in cloudformation.stacks.events(stack, after="2")] == ["c"]


def values(*events: dict[str, Any]) -> list[StackEvent]:
    return [StackEvent.from_aws(each) for each in events]


def test_the_cause_is_looked_for_in_the_last_operation_alone() -> None:
    earlier = event(2, "Vpc", "CREATE_FAILED", "long ago")
    again = event(3, "demo", "UPDATE_IN_PROGRESS", "User Initiated")
    events = values(STARTED, earlier, again, event(4, "Nat", "UPDATE_FAILED", "now"))
    cause = root_cause(last_operation(events))
    assert cause is not None
    assert cause.reason == "now"


def test_a_stack_that_failed_as_a_whole_is_its_own_cause() -> None:
    cause = root_cause(values(STARTED, event(2, "demo", "CREATE_FAILED", "Parameter x failed to satisfy")))
    assert cause is not None
    assert cause.reason == "Parameter x failed to satisfy"


def test_only_cancelled_resources_are_still_better_than_no_cause() -> None:
    cause = root_cause(values(STARTED, event(2, "Vpc", "CREATE_FAILED", CANCELLED)))
    assert cause is not None
    assert cause.resource == "Vpc"


def test_what_went_well_has_no_cause() -> None:
    assert root_cause(values(STARTED, event(2, "demo", "CREATE_COMPLETE"))) is None
