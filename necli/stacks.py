"""CloudFormation stacks, through boto3: deploy, watch, delete.

What happens arrives as a stream of events; when it fails, the error names the first thing that failed. What
CloudFormation reports last is only that it gave up.

Not exercised on AWS: the tests run against moto, and against recorded answers where moto has none.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from necli.aws import aws_errors
from necli.errors import Conflict, InputError, NotReady, ServiceFailed, UsageError
from necli.home import Home, read_json, write_json_atomically
from necli.template_check import Template

KEY = "EnclaveKey"
"""The logical id of the key that no stack update may touch."""

_NEVER_WORKED = ("CREATE_FAILED", "ROLLBACK_COMPLETE", "ROLLBACK_FAILED")


@dataclass(frozen=True)
class StackEvent:
    id: str
    at: datetime
    resource: str
    """The logical id; for the stack's own events its name."""
    type: str
    status: str
    reason: str | None
    physical_id: str | None
    of_stack: bool
    """About the stack as a whole."""

    @classmethod
    def from_aws(cls, event: Mapping[str, Any]) -> StackEvent:
        return cls(
            id=event["EventId"],
            at=event["Timestamp"],
            resource=event.get("LogicalResourceId", ""),
            type=event.get("ResourceType", ""),
            status=event.get("ResourceStatus", ""),
            reason=event.get("ResourceStatusReason"),
            physical_id=event.get("PhysicalResourceId") or None,
            of_stack=event.get("PhysicalResourceId") == event["StackId"],
        )

    @property
    def failed(self) -> bool:
        return self.status.endswith("_FAILED")

    @property
    def starts_operation(self) -> bool:
        return self.of_stack and self.reason == "User Initiated"

    def to_json(self) -> dict[str, Any]:
        return {
            "at": self.at.isoformat(),
            "resource": self.resource,
            "type": self.type,
            "status": self.status,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Stack:
    name: str
    id: str
    status: str
    reason: str | None
    parameters: Mapping[str, str]
    outputs: Mapping[str, str]
    created: datetime
    updated: datetime | None

    @classmethod
    def from_aws(cls, stack: Mapping[str, Any]) -> Stack:
        return cls(
            name=stack["StackName"],
            id=stack["StackId"],
            status=stack["StackStatus"],
            reason=stack.get("StackStatusReason"),
            parameters={
                each["ParameterKey"]: each.get("ParameterValue", "") for each in stack.get("Parameters", [])
            },
            outputs={each["OutputKey"]: each["OutputValue"] for each in stack.get("Outputs", [])},
            created=stack["CreationTime"],
            updated=stack.get("LastUpdatedTime"),
        )

    @property
    def busy(self) -> bool:
        return self.status.endswith("_IN_PROGRESS") and self.status != "REVIEW_IN_PROGRESS"

    @property
    def worked(self) -> bool:
        """It was created once, and isn't being deleted."""
        return self.status != "CREATE_FAILED" and not self.status.startswith(("DELETE", "REVIEW", "ROLLBACK"))

    @property
    def healthy(self) -> bool:
        """Its last operation did what was asked for."""
        return self.status.endswith("_COMPLETE") and "ROLLBACK" not in self.status

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "id": self.id,
            "status": self.status,
            "reason": self.reason,
            "parameters": dict(self.parameters),
            "outputs": dict(self.outputs),
            "created": self.created.isoformat(),
            "updated": self.updated.isoformat() if self.updated else None,
        }


@dataclass(frozen=True)
class StackOutputs:
    """What the rest of necli needs to know of a stack."""

    instance_id: str
    key_arn: str
    key_alias: str
    instance_role_arn: str
    enclave_role_arn: str
    """The role whose sessions the parent passes to the enclave: the parent that the key's policy names."""
    administrator_arn: str
    data_owner_arn: str
    flow_log_group: str

    @classmethod
    def of(cls, stack: Stack) -> StackOutputs:
        """:raises NotReady: the stack has not made them yet, or isn't one of necli's."""
        try:
            return cls.from_aws(stack.outputs)
        except KeyError as exc:
            raise NotReady(
                f"the stack {stack.name} ({stack.status}) has no output {exc}",
                hint=f"run necli stack status --name {stack.name}",
            ) from None

    @classmethod
    def from_aws(cls, outputs: Mapping[str, str]) -> Self:
        """:raises KeyError: the name of one that is missing."""
        return cls(**{field: str(outputs[name]) for field, name in _OUTPUTS.items()})


_OUTPUTS = {
    "instance_id": "InstanceId",
    "key_arn": "KeyArn",
    "key_alias": "KeyAlias",
    "instance_role_arn": "InstanceRoleArn",
    "enclave_role_arn": "EnclaveRoleArn",
    "administrator_arn": "AdministratorArn",
    "data_owner_arn": "DataOwnerArn",
    "flow_log_group": "FlowLogGroup",
}


@dataclass(frozen=True)
class StackRecord:
    """The stack that was provisioned last, as this machine remembers it."""

    name: str
    region: str
    outputs: StackOutputs

    @classmethod
    def load(cls, home: Home) -> StackRecord | None:
        """:raises InputError: the file is damaged."""
        content = read_json(home.state / "stack.json")
        try:
            return content and cls(content["name"], content["region"], StackOutputs(**content["outputs"]))
        except (KeyError, TypeError) as exc:
            path = home.state / "stack.json"
            raise InputError(
                f"{path} is damaged: {exc}", hint=f"remove {path}: necli setup finds it"
            ) from exc

    def save(self, home: Home) -> None:
        content = {"name": self.name, "region": self.region, "outputs": vars(self.outputs)}
        write_json_atomically(home.state / "stack.json", content)


def last_operation(events: Sequence[StackEvent]) -> Sequence[StackEvent]:
    """The events since somebody last asked for something; `events` are oldest first."""
    starts = [index for index, event in enumerate(events) if event.starts_operation]
    return events[starts[-1] :] if starts else events


def root_cause(events: Iterable[StackEvent]) -> StackEvent | None:
    """The event that made an operation fail: the first, but for resources that were only cancelled."""
    failures = [event for event in events if event.failed]
    causes = [event for event in failures if "cancelled" not in (event.reason or "")]
    of_resources = [event for event in causes if not event.of_stack]
    return next(iter(of_resources or causes or failures), None)


@dataclass(frozen=True)
class Stacks:
    """The stacks of one account and region."""

    client: Any
    poll_s: float = 3.0

    def find(self, name: str) -> Stack | None:
        """By name, or by id, which also finds a deleted one."""
        try:
            with aws_errors(f"look up the stack {name}"):
                return Stack.from_aws(self.client.describe_stacks(StackName=name)["Stacks"][0])
        except UsageError as exc:
            if "does not exist" in exc.message:
                return None
            raise

    def get(self, name: str) -> Stack:
        """:raises NotReady: there is none."""
        if stack := self.find(name):
            return stack
        raise NotReady(f"there is no stack {name}", hint="run necli setup --target nitro")

    def template(self, stack: Stack) -> Template:
        """The template that the stack was last deployed with."""
        with aws_errors(f"read the template of {stack.name}"):
            body = self.client.get_template(StackName=stack.id, TemplateStage="Original")["TemplateBody"]
        # boto3 parses a template that is JSON.
        return Template.parse(body) if isinstance(body, str) else Template.from_document(body)

    def events(self, stack: Stack, *, after: str | None = None) -> list[StackEvent]:
        """What happened, oldest first; only what came after the event with the id `after`, if given."""
        found: list[StackEvent] = []
        with aws_errors(f"read the events of {stack.name}"):
            for page in self.client.get_paginator("describe_stack_events").paginate(StackName=stack.id):
                for event in map(StackEvent.from_aws, page["StackEvents"]):
                    if event.id == after:
                        return found[::-1]
                    found.append(event)
        return found[::-1]

    def deploy(
        self, name: str, template: Template, parameters: Mapping[str, str], *, stack_policy: str
    ) -> Iterator[StackEvent]:
        """Create the stack or update it, and yield what happens until it is done.

        An operation that is under way is waited for; a stack whose creation failed is deleted first.
        On an update a parameter that isn't given keeps its value, and the key stays as it is deployed.

        :raises ServiceFailed: it failed; the message is its root cause.
        :raises Conflict: there is a stack of that name, and it isn't one of necli's.
        """
        stack = self.find(name)
        if stack and stack.busy:
            yield from self.follow(stack)
            stack = self.find(name)
        if stack and stack.status in _NEVER_WORKED:
            yield from self.delete(name)
            stack = None
        if stack is None:
            yield from self._create(name, template, parameters, stack_policy)
        else:
            yield from self._update(stack, template, parameters, stack_policy)

    def delete(self, name: str) -> Iterator[StackEvent]:
        """Delete the stack and yield what happens. Resources with a policy to retain them stay.

        :raises NotReady: there is none.
        """
        stack = self.get(name)
        newest = self._newest_event(stack)
        with aws_errors(f"delete the stack {name}"):
            self.client.delete_stack(StackName=stack.id)
        yield from self.follow(stack, after=newest)

    def follow(self, stack: Stack, *, after: str | None = None) -> Iterator[StackEvent]:
        """Yield the events of the operation under way, until it is done.

        :raises ServiceFailed: it failed; the message is its root cause.
        """
        seen: list[StackEvent] = []
        while True:
            now = self.find(stack.id)
            if now is None:  # deleted so long ago that even its id is forgotten
                return
            # Asked for after the status: the last events of a finished operation are among them.
            new = self.events(now, after=seen[-1].id if seen else after)
            if after is None and not seen:
                new = list(last_operation(new))
            seen += new
            yield from new
            # No event yet: AWS still tells the status from before our request.
            if seen and not now.busy:
                break
            time.sleep(self.poll_s)
        if not now.healthy:
            raise failure(now, seen)

    def _create(
        self, name: str, template: Template, parameters: Mapping[str, str], stack_policy: str
    ) -> Iterator[StackEvent]:
        with aws_errors(f"create the stack {name}"):
            answer = self.client.create_stack(
                StackName=name,
                TemplateBody=template.text,
                Parameters=[_parameter(key, value) for key, value in parameters.items()],
                StackPolicyBody=stack_policy,
                Capabilities=["CAPABILITY_IAM"],
                RetainExceptOnCreate=True,
            )
        yield from self.follow(self.get(answer["StackId"]))

    def _update(
        self, stack: Stack, template: Template, parameters: Mapping[str, str], stack_policy: str
    ) -> Iterator[StackEvent]:
        _check_updatable(stack)
        template = keep_key(template, deployed=self.template(stack), name=stack.name)
        _check_key_parameters(template, stack, parameters)
        newest = self._newest_event(stack)
        try:
            with aws_errors(f"update the stack {stack.name}"):
                # Also for a stack that was made without necli, or whose policy somebody took away.
                self.client.set_stack_policy(StackName=stack.id, StackPolicyBody=stack_policy)
                self.client.update_stack(
                    StackName=stack.id,
                    TemplateBody=template.text,
                    Parameters=_updated_parameters(template, stack, parameters),
                    Capabilities=["CAPABILITY_IAM"],
                )
        except UsageError as exc:
            if "No updates are to be performed" in exc.message:
                return
            raise
        yield from self.follow(stack, after=newest)

    def _newest_event(self, stack: Stack) -> str | None:
        events = self.events(stack)
        return events[-1].id if events else None


def keep_key(template: Template, *, deployed: Template, name: str) -> Template:
    """`template` with the deployed template's key: then an update has nothing to do on the key.

    The key's policy is bound to measurements by necli policy update, which the template knows nothing of. If
    CloudFormation touched the key, it would write the template's policy over it; and if that update failed
    later on, the rollback would write the older template's.

    :raises Conflict: the deployed template has no such key.
    """
    key = deployed.document["Resources"].get(KEY)
    if key is None:
        raise Conflict(
            f"the stack {name} isn't one of necli's: its template has no {KEY}",
            hint="choose another name with --name",
        )
    return template.with_resource(KEY, key)


def failure(stack: Stack, events: Iterable[StackEvent]) -> ServiceFailed:
    """The error for an operation that failed: its root cause, and what helps against that."""
    cause = root_cause(events)
    if cause is None:
        return ServiceFailed(
            f"the stack {stack.name} is {stack.status}: {stack.reason or 'no reason given'}",
            hint=f"run necli stack events --name {stack.name}",
            code=stack.status,
        )
    return ServiceFailed(
        f"the stack {stack.name} is {stack.status}, because {cause.resource} ({cause.type}) failed: "
        f"{cause.reason or cause.status}",
        hint=_cure(stack, cause),
        code=stack.status,
    )


def _cure(stack: Stack, cause: StackEvent) -> str:
    reason = (cause.reason or "").lower()
    if "signal" in reason and cause.physical_id:
        return f"what failed on it: aws ec2 get-console-output --latest --instance-id {cause.physical_id}"
    if "stack policy" in reason:
        return "no update may change the key: its policy is changed by necli policy update"
    if "update the key policy in the future" in reason:
        return "sign in as the key's administrator, or name yourself with --administrator"
    if stack.status == "UPDATE_ROLLBACK_FAILED":
        return f"run aws cloudformation continue-update-rollback --stack-name {stack.name}"
    if stack.status == "DELETE_FAILED":
        return f"remove what stands in the way, then run necli stack delete --name {stack.name}"
    return "correct that, then run the same command again"


def _check_updatable(stack: Stack) -> None:
    if stack.status in ("DELETE_FAILED", "REVIEW_IN_PROGRESS"):
        raise NotReady(
            f"the stack {stack.name} is {stack.status} and can't be updated",
            hint=f"run necli stack delete --name {stack.name}",
            code=stack.status,
        )
    if stack.status == "UPDATE_ROLLBACK_FAILED":
        raise NotReady(
            f"the stack {stack.name} is stuck: an update failed, and so did going back",
            hint=f"run aws cloudformation continue-update-rollback --stack-name {stack.name}",
            code=stack.status,
        )


def _check_key_parameters(template: Template, stack: Stack, parameters: Mapping[str, str]) -> None:
    """What the key's policy was made from can't be changed by an update, which must not touch the key."""
    for name in sorted(template.references(KEY) & parameters.keys() & stack.parameters.keys()):
        if parameters[name] != stack.parameters[name]:
            raise UsageError(
                f"{name} can't be changed from {stack.parameters[name]} to {parameters[name]}: "
                "it stands in the key's policy, which no stack update may touch",
                hint="change the key's own policy, with aws kms put-key-policy; necli policy show prints it",
            )


def _updated_parameters(
    template: Template, stack: Stack, parameters: Mapping[str, str]
) -> list[dict[str, Any]]:
    given = [_parameter(key, value) for key, value in parameters.items()]
    kept = template.parameters.keys() & stack.parameters.keys() - parameters.keys()
    return given + [{"ParameterKey": key, "UsePreviousValue": True} for key in sorted(kept)]


def _parameter(key: str, value: str) -> dict[str, Any]:
    return {"ParameterKey": key, "ParameterValue": value}
