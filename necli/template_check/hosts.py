"""Rules about the parent instance: what keeps an enclave from starting, or its host from being trusted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from necli.template_check.finding import TemplateFinding
from necli.template_check.template import Resource, Template, mapping, mappings

_ENCLAVE_TOOLS = re.compile(r"nitro-enclaves|nitro-cli")
# AWS: no burstable types, no bare metal, and more vCPUs than a small type has (4 on x86, 2 on Graviton).
_NO_ENCLAVES = re.compile(r"t[1-4][a-z]*\..+|.+\.metal.*|[a-z-]+\d+[a-z]*\.(nano|micro|small|medium)")
_NAMES = {
    "AWS::EC2::SecurityGroup": "GroupName",
    "AWS::IAM::InstanceProfile": "InstanceProfileName",
    "AWS::IAM::ManagedPolicy": "ManagedPolicyName",
    "AWS::IAM::Role": "RoleName",
    "AWS::KMS::Alias": "AliasName",
    "AWS::Logs::LogGroup": "LogGroupName",
}


@dataclass(frozen=True)
class Host:
    """An instance that is to run enclaves, with what its launch template adds."""

    resource: Resource
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.resource.name

    @property
    def enclaves_enabled(self) -> bool:
        return _true(mapping(self.settings.get("EnclaveOptions")).get("Enabled"))

    @property
    def user_data(self) -> str:
        return str(self.settings.get("UserData", ""))


def host_findings(template: Template, *, has_enclave_key: bool) -> Iterator[TemplateFinding]:
    for host in _hosts(template, has_enclave_key):
        yield from _enclave_options(host)
        yield from _instance_type(host)
        yield from _metadata_service(host)
        yield from _volumes(host)
        yield from _security_group(host)
        yield from _image(host)
        yield from _signal(host)
        yield from _network_first(template, host)
        yield from _profile(template, host)
    yield from _literal_names(template)


def _hosts(template: Template, has_enclave_key: bool) -> list[Host]:
    """The instances with enclaves or their tools; where there are none but a key for one, all instances."""
    launch_templates = {each.name: each for each in template.of_type("AWS::EC2::LaunchTemplate")}
    hosts = []
    for instance in template.of_type("AWS::EC2::Instance"):
        base: Mapping[str, Any] = {}
        for name in template.needs(instance.name) & launch_templates.keys():
            base = mapping(launch_templates.pop(name).properties.get("LaunchTemplateData"))
        hosts.append(Host(instance, {**base, **instance.properties}))
    hosts += [
        Host(each, mapping(each.properties.get("LaunchTemplateData"))) for each in launch_templates.values()
    ]
    with_enclaves = [h for h in hosts if h.enclaves_enabled or _ENCLAVE_TOOLS.search(h.user_data)]
    return with_enclaves or (hosts if has_enclave_key else [])


def _enclave_options(host: Host) -> Iterator[TemplateFinding]:
    if not host.enclaves_enabled:
        yield TemplateFinding(
            "no-enclave-options",
            host.name,
            "error",
            "the instance starts without enclave support, which can't be added while it runs (E19)",
            "set EnclaveOptions: {Enabled: true}",
        )


def _instance_type(host: Host) -> Iterator[TemplateFinding]:
    instance_type = str(host.settings.get("InstanceType", ""))
    if _NO_ENCLAVES.fullmatch(instance_type):
        yield TemplateFinding(
            "instance-type-without-enclaves",
            host.name,
            "error",
            f"{instance_type} can't run enclaves",
            "take a Nitro type with at least 4 vCPUs (2 on Graviton): m6i.xlarge, c6g.large",
        )


def _metadata_service(host: Host) -> Iterator[TemplateFinding]:
    if mapping(host.settings.get("MetadataOptions")).get("HttpTokens") != "required":
        yield TemplateFinding(
            "imdsv1",
            host.name,
            "warning",
            "version 1 of the metadata service answers: one forged request gets the role's credentials",
            "set MetadataOptions: {HttpTokens: required, HttpPutResponseHopLimit: 1}",
        )


def _volumes(host: Host) -> Iterator[TemplateFinding]:
    devices = mappings(host.settings.get("BlockDeviceMappings")) or [{"Ebs": {}}]
    if not all(_true(mapping(each["Ebs"]).get("Encrypted")) for each in devices if "Ebs" in each):
        yield TemplateFinding(
            "volume-not-encrypted",
            host.name,
            "warning",
            "a volume of the parent isn't encrypted, unless the account encrypts by default",
            "set Ebs: {Encrypted: true} in BlockDeviceMappings",
        )


def _security_group(host: Host) -> Iterator[TemplateFinding]:
    interfaces = mappings(host.settings.get("NetworkInterfaces"))
    own = any(each.get("GroupSet") or each.get("Groups") for each in interfaces)
    if not (own or host.settings.get("SecurityGroupIds") or host.settings.get("SecurityGroups")):
        yield TemplateFinding(
            "no-security-group",
            host.name,
            "warning",
            "the instance is in the VPC's default security group: all its members reach one another",
            "give it a security group of its own, with no ingress and HTTPS out",
        )


def _image(host: Host) -> Iterator[TemplateFinding]:
    image = str(host.settings.get("ImageId", ""))
    if "amzn2-ami" in image:
        yield TemplateFinding(
            "amazon-linux-2",
            host.name,
            "warning",
            "Amazon Linux 2 gets no updates after June 2026, and its kernel and tools are old",
            "take /aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64 (or -arm64)",
        )


def _signal(host: Host) -> Iterator[TemplateFinding]:
    waits = "ResourceSignal" in mapping(host.resource.body.get("CreationPolicy"))
    if host.resource.type == "AWS::EC2::Instance" and host.user_data and not waits:
        yield TemplateFinding(
            "no-signal",
            host.name,
            "warning",
            "the stack is complete before the user data has run, and stays so when that fails",
            "add a CreationPolicy with a ResourceSignal, and call cfn-signal at the end",
        )


def _network_first(template: Template, host: Host) -> Iterator[TemplateFinding]:
    routes = [each.name for each in template.of_type("AWS::EC2::Route") if "NatGatewayId" in each.properties]
    if routes and host.user_data and template.needs(host.name).isdisjoint(routes):
        yield TemplateFinding(
            "starts-before-network",
            host.name,
            "error",
            f"the user data may run before there is a way out: nothing orders it behind {routes[0]}",
            f"add DependsOn: {routes[0]}",
        )


def _profile(template: Template, host: Host) -> Iterator[TemplateFinding]:
    used = host.resource.properties.get("IamInstanceProfile")
    for profile in template.of_type("AWS::IAM::InstanceProfile"):
        by_name = used is not None and used == profile.properties.get("InstanceProfileName")
        if by_name and profile.name not in template.needs(host.name):
            yield TemplateFinding(
                "profile-by-name",
                host.name,
                "error",
                f"the instance names its profile {used} in words: it may be made before the profile is",
                f"set IamInstanceProfile: !Ref {profile.name}",
            )


def _literal_names(template: Template) -> Iterator[TemplateFinding]:
    for resource in template.of_type(*_NAMES):
        name = mapping(resource.body.get("Properties")).get(_NAMES[resource.type])
        if isinstance(name, str):
            yield TemplateFinding(
                "literal-name",
                resource.name,
                "warning",
                f"the name {name} is the same in every stack: a second one in this account fails",
                f"leave {_NAMES[resource.type]} out, or build it from ${{AWS::StackName}}",
            )


def _true(value: object) -> bool:
    """CloudFormation takes a boolean or its text."""
    return str(value).lower() == "true"
