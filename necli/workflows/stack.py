"""The stack from plan to outputs: what it would make and cost, making it, and what it made.

Not exercised on AWS; what moto can't show is said in tests/conformance/test_moto_stack.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from necli.aws import Account, InstanceType, open_client
from necli.costs import Estimate, PriceTable
from necli.errors import InputError, UsageError
from necli.home import Home, host_errors, read_json
from necli.progress import Progress
from necli.resources import resource_folder
from necli.stacks import KEY, StackEvent, StackOutputs, StackRecord, Stacks
from necli.state import Key, State
from necli.template_check import Template

DEFAULT_NAME = "necli"
_TARGET = "nitro"
_CHOSEN_ONCE = ("Architecture", "ImageId", "AvailabilityZone", "VpcCidr", "PrivateSubnetCidr")
"""Another value for one of these would replace the instance, and what is on its disk."""

Change = Literal["added", "changed", "removed"]
Watch = Callable[[StackEvent], None]


@dataclass(frozen=True)
class StackParameters:
    """What the user asked for; None is the deployed value, or else the template's default."""

    administrator_arn: str | None = None
    data_owner_arn: str | None = None
    instance_type: str | None = None
    volume_gib: int | None = None
    enclave_memory_mib: int | None = None
    enclave_cpus: int | None = None
    nat_gateway: bool | None = None
    availability_zone: str | None = None
    vpc_cidr: str | None = None
    private_subnet_cidr: str | None = None
    public_subnet_cidr: str | None = None

    def for_template(self) -> dict[str, str]:
        """Those that were given, by the template's names."""
        values = {
            "AdministratorArn": self.administrator_arn,
            "DataOwnerArn": self.data_owner_arn,
            "InstanceType": self.instance_type,
            "VolumeGiB": self.volume_gib,
            "EnclaveMemoryMiB": self.enclave_memory_mib,
            "EnclaveCpus": self.enclave_cpus,
            "NatGateway": None if self.nat_gateway is None else str(self.nat_gateway).lower(),
            "AvailabilityZone": self.availability_zone,
            "VpcCidr": self.vpc_cidr,
            "PrivateSubnetCidr": self.private_subnet_cidr,
            "PublicSubnetCidr": self.public_subnet_cidr,
        }
        return {name: str(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class StackPlan:
    """What `provision` would do."""

    name: str
    region: str
    action: Literal["create", "update"]
    parameters: Mapping[str, str]
    """All of them, as they will be."""
    given: Mapping[str, str]
    """Those that are passed to CloudFormation; an update leaves out what stays."""
    before: Mapping[str, str]
    estimate: Estimate
    resources: Mapping[str, Change]
    """On an update, the resources that are written differently in the template."""
    warnings: tuple[str, ...]
    template: Template

    @property
    def changes(self) -> dict[str, tuple[str | None, str]]:
        """The parameters whose value changes, each with the one before."""
        return {
            name: (self.before.get(name), value)
            for name, value in self.parameters.items()
            if self.before.get(name) != value
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "region": self.region,
            "action": self.action,
            "parameters": dict(self.parameters),
            "changes": {name: {"before": a, "after": b} for name, (a, b) in self.changes.items()},
            "resources": dict(self.resources),
            "estimate": self.estimate.to_json(),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class Provisioning:
    """The account to provision in, and where the outcome is remembered."""

    home: Home
    account: Account
    stacks: Stacks
    prices: PriceTable

    @classmethod
    def open(cls, home: Home, region: str) -> Provisioning:
        stacks = Stacks(open_client("cloudformation", region))
        return cls(home, Account(region), stacks, PriceTable.load())

    def plan(self, name: str, wanted: StackParameters) -> StackPlan:
        """What would be made or changed, for whom, at what price. Nothing is changed.

        :raises UsageError: a parameter that can't be, or is missing.
        """
        template = Template.parse(_resource("necli.yaml"))
        deployed = self.stacks.find(name)
        deployed = deployed if deployed and deployed.worked else None
        before = deployed.parameters if deployed else {}
        given = wanted.for_template()
        parameters = {**_defaults(template), **before, **given}
        parameters |= self._chosen(parameters, before)
        return StackPlan(
            name=name,
            region=self.account.region,
            action="update" if deployed else "create",
            parameters=parameters,
            given=given if deployed else parameters,
            before=before,
            estimate=self._estimate(template, parameters),
            resources=_resource_changes(template, self.stacks.template(deployed)) if deployed else {},
            warnings=tuple(_warnings(parameters, before)),
            template=template,
        )

    def provision(
        self, plan: StackPlan, progress: Progress, watch: Watch = lambda event: None
    ) -> StackOutputs:
        """Do what was planned, or go on with it, and remember the outputs.

        :raises ServiceFailed: it failed; the message is its root cause.
        """
        policy = _resource("stack-policy.json")
        done: set[str] = set()
        with progress.step(f"Stack {plan.name}", total=len(plan.template.resources)) as step:
            for event in self.stacks.deploy(plan.name, plan.template, plan.given, stack_policy=policy):
                watch(event)
                if event.status.endswith("_COMPLETE") and not event.of_stack:
                    done.add(event.resource)
                    step.update(len(done))
            stack = self.stacks.get(plan.name)
            step.note(stack.status)
        outputs = StackOutputs.of(stack)
        _remember(self.home, StackRecord(plan.name, plan.region, outputs))
        return outputs

    def delete(self, name: str, progress: Progress, watch: Watch = lambda event: None) -> str | None:
        """Delete the stack; the answer is the ARN of its key, which stays.

        :raises NotReady: there is none.
        """
        key_arn = self.stacks.get(name).outputs.get("KeyArn")
        with progress.step(f"Stack {name}") as step:
            for event in self.stacks.delete(name):
                watch(event)
            step.note("deleted")
        record = StackRecord.load(self.home)
        if record and (record.name, record.region) == (name, self.account.region):
            (self.home.state / "stack.json").unlink(missing_ok=True)
        return key_arn

    def _chosen(self, parameters: Mapping[str, str], before: Mapping[str, str]) -> dict[str, str]:
        """What necli fills in at creation. Refuses what AWS would, but half an hour later."""
        instance_type = self.account.instance_type(parameters["InstanceType"])
        _check_instance_type(instance_type, parameters)
        if before:
            _refuse_replacement({**parameters, "Architecture": instance_type.architecture}, before)
            return {}
        if "DataOwnerArn" not in parameters:
            raise UsageError(
                "nobody is named who encrypts data for the enclave",
                hint="add --owner with the ARN of a role or user; aws iam list-roles lists them",
            )
        return {
            "AdministratorArn": parameters.get("AdministratorArn") or self.account.caller_arn(),
            "Architecture": instance_type.architecture,
            "ImageId": self.account.latest_image(instance_type.architecture),
        }

    def _estimate(self, template: Template, parameters: Mapping[str, str]) -> Estimate:
        nat = parameters["NatGateway"] == "true"
        made = [
            resource
            for resource in template.resources.values()
            if {"HasNat": nat, "HasNoNat": not nat}.get(resource.body.get("Condition", ""), True)
        ]
        return self.prices.estimate(
            self.account.region,
            instance_type=parameters["InstanceType"],
            volume_gib=int(parameters["VolumeGiB"]),
            endpoints=sum(resource.properties.get("VpcEndpointType") == "Interface" for resource in made),
            nat=nat,
            keys=sum(resource.type == "AWS::KMS::Key" for resource in made),
        )


def remember_outputs(home: Home, name: str, region: str, file: Path) -> None:
    """What `necli stack outputs --json` printed elsewhere, so that the instance knows its roles and key.

    :raises InputError: it is something else.
    """
    with host_errors(f"can't read {file}"):
        content = read_json(file)
    try:
        outputs = StackOutputs.from_aws(content)
    except (KeyError, TypeError) as exc:
        raise InputError(
            f"{file} isn't what necli stack outputs --json prints: {exc}",
            hint="print it again where the stack was made",
        ) from exc
    _remember(home, StackRecord(name, region, outputs))


def _remember(home: Home, record: StackRecord) -> None:
    record.save(home)
    key = Key(record.outputs.key_arn, record.outputs.key_alias)
    State.load(home, _TARGET).with_key(key).save(home, _TARGET)


def _refuse_replacement(parameters: Mapping[str, str], before: Mapping[str, str]) -> None:
    for name in _CHOSEN_ONCE:
        if parameters[name] != before.get(name, parameters[name]):
            raise UsageError(
                f"{name} can't be changed from {before[name]} to {parameters[name]}: the instance would be "
                "replaced, and its disk with it",
                hint="make a second stack with --name",
            )


def _check_instance_type(instance_type: InstanceType, parameters: Mapping[str, str]) -> None:
    name = instance_type.name
    if not instance_type.enclaves:
        raise UsageError(
            f"{name} can't run enclaves",
            hint="take a Nitro type with at least 4 vCPUs (2 on Graviton): --instance-type m6i.xlarge",
        )
    cpus = int(parameters["EnclaveCpus"])
    # The parent keeps one core; a core's threads aren't split between parent and enclave.
    if cpus > instance_type.vcpus - instance_type.threads_per_core or cpus % instance_type.threads_per_core:
        raise UsageError(
            f"{name} has {instance_type.vcpus} vCPUs with {instance_type.threads_per_core} threads a core: "
            f"{cpus} of them can't be an enclave's",
            hint=f"choose --enclave-cpus in steps of {instance_type.threads_per_core}, leaving one core",
        )
    memory = int(parameters["EnclaveMemoryMiB"])
    if memory >= instance_type.memory_mib:
        raise UsageError(
            f"{name} has {instance_type.memory_mib} MiB: {memory} can't be set aside for enclaves",
            hint="choose less with --enclave-memory, or a larger --instance-type",
        )


def _warnings(parameters: Mapping[str, str], before: Mapping[str, str]) -> list[str]:
    warnings = []
    if parameters.get("AdministratorArn") == parameters.get("DataOwnerArn"):
        warnings.append("one role administers the key and encrypts with it: better two")
    if parameters["NatGateway"] != "true":
        warnings.append("without NAT the instance reaches Amazon Linux's packages and AWS, nothing else")
    changed = {name for name in before if before[name] != parameters.get(name)}
    if changed & {"InstanceType", "EnclaveMemoryMiB", "EnclaveCpus"}:
        warnings.append("the instance is stopped and started for this: enclaves on it end")
    if changed & {"EnclaveMemoryMiB", "EnclaveCpus"}:
        warnings.append("user data has run already: necli setup on the instance sets the new sizes")
    return warnings


def _resource_changes(template: Template, deployed: Template) -> dict[str, Change]:
    """What another version of the template brings. Not for the key, which every update leaves as it is."""
    new, old = template.document["Resources"], deployed.document["Resources"]
    changes: dict[str, Change] = {}
    for name in sorted((new.keys() | old.keys()) - {KEY}):
        if name not in old:
            changes[name] = "added"
        elif name not in new:
            changes[name] = "removed"
        elif new[name] != old[name]:
            changes[name] = "changed"
    return changes


def _defaults(template: Template) -> dict[str, str]:
    return {name: str(each["Default"]) for name, each in template.parameters.items() if "Default" in each}


def _resource(name: str) -> str:
    return (resource_folder("cloudformation") / name).read_text(encoding="utf-8")
