"""Each rule on a template that has its fault, and on one that hasn't."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from necli.errors import InputError
from necli.keypolicy import plan_measurements
from necli.keypolicy.document import KeyPolicy
from necli.measurements import Measurements
from necli.template_check import InvalidTemplate, TemplateFinding, check_template

PCR0, PCR1 = "a0" * 48, "a1" * 48
ATTESTED = "kms:RecipientAttestation"
ADMINISTRATOR = "arn:aws:iam::111122223333:role/administrator"
KEPT = {"DeletionPolicy": "Retain", "UpdateReplacePolicy": "Retain"}
FROZEN = {"Statement": [{"Effect": "Deny", "Principal": "*", "Action": "Update:*",
                         "Resource": "LogicalResourceId/Key"}]}  # fmt: skip

Json = dict[str, Any]


def deny_unless(
    *tests: tuple[str, str], actions: tuple[str, ...] = ("kms:Decrypt", "kms:ReEncrypt*")
) -> Json:
    return {
        "Effect": "Deny",
        "Principal": "*",
        "Action": list(actions),
        "Resource": "*",
        "Condition": {"StringNotEqualsIgnoreCase": {f"{ATTESTED}:{name}": value for name, value in tests}},
    }


def allow(principal: Any, *actions: str, **more: Any) -> Json:
    return {"Effect": "Allow", "Principal": principal, "Action": list(actions), "Resource": "*", **more}


def policy(*statements: Json) -> Json:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def sound_template() -> Json:
    """A small template without a fault."""
    return {
        "Resources": {
            "Route": {"Type": "AWS::EC2::Route", "Properties": {"NatGatewayId": "nat-1"}},
            "Endpoint": {
                "Type": "AWS::EC2::VPCEndpoint",
                "Properties": {
                    "PolicyDocument": policy(
                        allow(
                            "*",
                            "kms:*",
                            Condition={"StringEquals": {"aws:PrincipalAccount": {"Ref": "AWS::AccountId"}}},
                        )
                    )
                },
            },
            "FlowLogRole": {
                "Type": "AWS::IAM::Role",
                "Properties": {
                    "AssumeRolePolicyDocument": policy(
                        allow(
                            {"Service": "vpc-flow-logs.amazonaws.com"},
                            "sts:AssumeRole",
                            Condition={"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}},
                        )
                    ),
                    "Policies": [
                        {
                            "PolicyName": "write",
                            "PolicyDocument": policy(
                                {
                                    "Effect": "Allow",
                                    "Action": "logs:PutLogEvents",
                                    "Resource": "arn:of-a-group",
                                }
                            ),
                        }
                    ],
                },
            },
            "LogKey": {
                "Type": "AWS::KMS::Key",
                "Properties": {
                    "KeyPolicy": policy(
                        allow(
                            {"Service": {"Fn::Sub": "logs.${AWS::Region}.amazonaws.com"}},
                            "kms:Decrypt",
                            Condition={"ArnLike": {"kms:EncryptionContext:aws:logs:arn": "arn:*"}},
                        )
                    )
                },
            },
            "Role": {"Type": "AWS::IAM::Role", "Properties": {"AssumeRolePolicyDocument": policy()}},
            "Profile": {"Type": "AWS::IAM::InstanceProfile", "Properties": {"Roles": [{"Ref": "Role"}]}},
            "Key": {
                "Type": "AWS::KMS::Key",
                **KEPT,
                "Properties": {
                    "KeyPolicy": policy(
                        allow({"AWS": ADMINISTRATOR}, "kms:PutKeyPolicy", "kms:GetKeyPolicy"),
                        allow(
                            {"AWS": {"Fn::GetAtt": "Role.Arn"}},
                            "kms:Decrypt",
                            Condition={"StringEqualsIgnoreCase": {f"{ATTESTED}:PCR0": PCR0}},
                        ),
                        deny_unless(("PCR0", PCR0)),
                        deny_unless(("PCR1", PCR1)),
                    )
                },
            },
            "Alias": {
                "Type": "AWS::KMS::Alias",
                "Properties": {"AliasName": {"Fn::Sub": "alias/${AWS::StackName}"}},
            },
            "Host": {
                "Type": "AWS::EC2::Instance",
                "DependsOn": "Route",
                "CreationPolicy": {"ResourceSignal": {"Timeout": "PT15M"}},
                "Properties": {
                    "ImageId": "ami-12345678",
                    "InstanceType": "m6i.xlarge",
                    "IamInstanceProfile": {"Ref": "Profile"},
                    "SecurityGroupIds": ["sg-1"],
                    "EnclaveOptions": {"Enabled": True},
                    "MetadataOptions": {"HttpTokens": "required"},
                    "BlockDeviceMappings": [{"Ebs": {"Encrypted": True}}],
                    "UserData": {
                        "Fn::Base64": {"Fn::Sub": "#!/bin/sh\ndnf install -y aws-nitro-enclaves-cli"}
                    },
                },
            },
        },
        "Outputs": {"Key": {"Value": {"Fn::GetAtt": ["Key", "Arn"]}}},
    }


def check(template: Json, stack_policy: Json | None = FROZEN) -> list[TemplateFinding]:
    text = json.dumps(template)
    return check_template(text, stack_policy=json.dumps(stack_policy) if stack_policy else None)


def rules(template: Json, stack_policy: Json | None = FROZEN) -> list[tuple[str, str | None]]:
    return [(finding.rule, finding.resource) for finding in check(template, stack_policy)]


def test_nothing_is_found_in_a_sound_template() -> None:
    assert check(sound_template()) == []


Fault = Callable[[Json], None]
"""Puts one fault into the resources of the sound template."""


def set_property(resource: str, name: str, value: Any) -> Fault:
    def fault(resources: Json) -> None:
        resources[resource].setdefault("Properties", {})[name] = value

    return fault


def drop_property(resource: str, name: str) -> Fault:
    def fault(resources: Json) -> None:
        del resources[resource]["Properties"][name]

    return fault


def drop_attribute(resource: str, name: str) -> Fault:
    def fault(resources: Json) -> None:
        del resources[resource][name]

    return fault


def set_key_statements(*statements: Json) -> Fault:
    return set_property("Key", "KeyPolicy", policy(*statements))


ROOT = {"AWS": {"Fn::Join": ["", ["arn:aws:iam::", {"Ref": "AWS::AccountId"}, ":root"]]}}
ADMINISTERS = allow({"AWS": ADMINISTRATOR}, "kms:PutKeyPolicy")
DECRYPTS = allow({"AWS": {"Fn::GetAtt": ["Role", "Arn"]}}, "kms:Decrypt")


def name_profile(resources: Json) -> None:
    resources["Profile"]["Properties"]["InstanceProfileName"] = {"Fn::Sub": "${AWS::StackName}-profile"}
    resources["Host"]["Properties"]["IamInstanceProfile"] = "stack-profile"


def move_settings_to_a_launch_template(resources: Json) -> None:
    settings = resources["Host"]["Properties"]
    del settings["MetadataOptions"]
    resources["Launch"] = {"Type": "AWS::EC2::LaunchTemplate", "Properties": {"LaunchTemplateData": settings}}
    resources["Host"]["Properties"] = {"LaunchTemplate": {"LaunchTemplateId": {"Ref": "Launch"}}}


def let_one_role_do_all(resources: Json) -> None:
    resources["Access"] = {
        "Type": "AWS::IAM::Policy",
        "Properties": {
            "Roles": [{"Ref": "Role"}],
            "PolicyDocument": policy(
                {"Effect": "Allow", "Action": ["kms:Decrypt", "kms:Generate*"],
                 "Resource": {"Fn::GetAtt": ["Key", "Arn"]}},
            ),
        },
    }  # fmt: skip


FAULTS: list[tuple[str, str, Fault]] = [
    ("no-enclave-options", "Host", drop_property("Host", "EnclaveOptions")),
    ("no-enclave-options", "Host", set_property("Host", "EnclaveOptions", {"Enabled": "false"})),
    ("instance-type-without-enclaves", "Host", set_property("Host", "InstanceType", "t3.xlarge")),
    ("instance-type-without-enclaves", "Host", set_property("Host", "InstanceType", "m5.metal")),
    ("imdsv1", "Host", drop_property("Host", "MetadataOptions")),
    ("imdsv1", "Host", move_settings_to_a_launch_template),
    ("volume-not-encrypted", "Host", drop_property("Host", "BlockDeviceMappings")),
    (
        "volume-not-encrypted",
        "Host",
        set_property("Host", "BlockDeviceMappings", [{"Ebs": {"VolumeSize": 64}}]),
    ),
    ("no-security-group", "Host", drop_property("Host", "SecurityGroupIds")),
    ("amazon-linux-2", "Host", set_property("Host", "ImageId", {"Ref": "Image"})),
    ("no-signal", "Host", drop_attribute("Host", "CreationPolicy")),
    ("starts-before-network", "Host", drop_attribute("Host", "DependsOn")),
    ("profile-by-name", "Host", name_profile),
    ("literal-name", "Alias", set_property("Alias", "AliasName", "alias/EnclaveKMSkey")),
    ("literal-name", "Role", set_property("Role", "RoleName", "parent")),
    ("endpoint-without-policy", "Endpoint", drop_property("Endpoint", "PolicyDocument")),
    (
        "endpoint-without-policy",
        "Endpoint",
        set_property("Endpoint", "PolicyDocument", policy(allow("*", "*"))),
    ),
    (
        "confused-deputy",
        "FlowLogRole",
        set_property(
            "FlowLogRole",
            "AssumeRolePolicyDocument",
            policy(allow({"Service": ["vpc-flow-logs.amazonaws.com"]}, "sts:AssumeRole")),
        ),
    ),
    (
        "flow-log-role-too-wide",
        "FlowLogRole",
        set_property(
            "FlowLogRole",
            "Policies",
            [{"PolicyDocument": policy({"Effect": "Allow", "Action": "logs:*", "Resource": "*"})}],
        ),
    ),
    (
        "log-key-open",
        "LogKey",
        set_property(
            "LogKey",
            "KeyPolicy",
            policy(allow({"Service": "logs.eu-central-1.amazonaws.com"}, "kms:Decrypt*")),
        ),
    ),
    # The root is asked through IAM, and ForAnyValue denies nobody who shows no document.
    (
        "decrypt-without-attestation",
        "Key",
        set_key_statements(
            ADMINISTERS,
            DECRYPTS,
            {
                **deny_unless(),
                "Condition": {"ForAnyValue:StringNotEquals": {f"{ATTESTED}:PCR0": PCR0}},
            },
            {**deny_unless(("PCR0", PCR0)), "Action": "kms:ReEncrypt*"},
        ),
    ),
    (
        "decrypt-without-attestation",
        "Key",
        set_key_statements(
            ADMINISTERS,
            DECRYPTS,
            {**deny_unless(("PCR0", PCR0)), "Principal": {"AWS": ADMINISTRATOR}},
            deny_unless(("PCR0", PCR0), actions=("kms:ReEncrypt*",)),
        ),
    ),
    (
        "reencrypt-without-attestation",
        "Key",
        set_key_statements(
            ADMINISTERS,
            {**DECRYPTS, "Action": ["kms:Decrypt", "kms:ReEncryptFrom"]},
            deny_unless(("PCR0", PCR0), actions=("kms:Decrypt",)),
        ),
    ),
    (
        "debug-mode-accepted",
        "Key",
        set_key_statements(ADMINISTERS, DECRYPTS, deny_unless(("PCR0", "0" * 96))),
    ),
    (
        "account-may-change-policy",
        "Key",
        set_key_statements(allow(ROOT, "kms:*"), deny_unless(("PCR0", PCR0))),
    ),
    (
        "administration-and-use",
        "Key",
        set_key_statements(
            allow({"AWS": ADMINISTRATOR}, "kms:PutKeyPolicy", "kms:GenerateDataKey"),
            DECRYPTS,
            deny_unless(("ImageSha384", PCR0)),
        ),
    ),
    ("key-not-kept", "Key", drop_attribute("Key", "DeletionPolicy")),
    ("key-not-kept", "Key", drop_attribute("Key", "UpdateReplacePolicy")),
    ("one-role-does-all", "Role", let_one_role_do_all),
]


@pytest.mark.parametrize(("rule", "resource", "fault"), FAULTS, ids=[rule for rule, *_ in FAULTS])
def test_one_fault_gives_one_finding(rule: str, resource: str, fault: Fault) -> None:
    template = sound_template()
    template["Parameters"] = {
        "Image": {
            "Type": "AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>",
            "Default": "/aws/service/ami-amazon-linux-latest/amzn2-ami-hvm-x86_64-gp2",
        }
    }
    fault(template["Resources"])
    assert rules(template) == [(rule, resource)]


def test_several_pcrs_in_one_deny_are_found_since_each_of_them_may_differ_alone() -> None:
    template = sound_template()
    set_key_statements(ADMINISTERS, DECRYPTS, deny_unless(("PCR0", PCR0), ("PCR1", PCR1)))(
        template["Resources"]
    )
    messages = [finding.message for finding in check(template)]
    assert [finding.rule for finding in check(template)] == ["pcr-not-enforced", "pcr-not-enforced"]
    assert "PCR0" in messages[0]
    assert "PCR1" in messages[1]


def test_a_template_without_outputs_gets_a_note() -> None:
    template = sound_template()
    del template["Outputs"]
    assert [(finding.rule, finding.severity) for finding in check(template)] == [("no-outputs", "note")]


def test_a_written_measurement_comes_back_unless_the_stack_policy_refuses_it() -> None:
    template = sound_template()
    assert rules(template, stack_policy=None) == [("measurement-comes-back", "Key")]
    allows_all = {"Statement": [{"Effect": "Allow", "Action": "Update:*", "Principal": "*", "Resource": "*"}]}
    assert rules(template, stack_policy=allows_all) == [("measurement-comes-back", "Key")]
    replacing = copy.deepcopy(FROZEN)
    replacing["Statement"][0]["Action"] = "Update:Replace"
    assert rules(template, stack_policy=replacing) == [("measurement-comes-back", "Key")]
    assert rules(template, stack_policy=FROZEN) == []


def test_a_measurement_that_is_a_parameter_does_not_come_back() -> None:
    template = sound_template()
    template["Parameters"] = {"Measured": {"Type": "String", "Default": PCR0}}
    parameter: Any = {"Ref": "Measured"}
    set_key_statements(ADMINISTERS, DECRYPTS, deny_unless(("PCR0", parameter)))(template["Resources"])
    assert rules(template, stack_policy=None) == []


def test_what_necli_policy_update_writes_has_no_fault() -> None:
    template = sound_template()
    key = template["Resources"]["Key"]["Properties"]
    role = "arn:aws:iam::111122223333:role/Role"
    measurements = Measurements(bytes.fromhex(PCR0), bytes.fromhex(PCR1), b"\2" * 48)
    before = KeyPolicy.from_json(policy(ADMINISTERS))
    key["KeyPolicy"] = plan_measurements(before, measurements, parent_arn=role).after.to_json()
    assert rules(template) == []


def test_an_instance_that_has_nothing_to_do_with_enclaves_is_left_alone() -> None:
    template = {"Resources": {"Web": {"Type": "AWS::EC2::Instance"}}, "Outputs": {"a": {"Value": "b"}}}
    assert rules(template) == []


# The faults of the public sample's template, in a template of its shape.
SAMPLE_LIKE = """
Parameters:
  Image:
    Type: AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>
    Default: /aws/service/ami-amazon-linux-latest/amzn2-ami-hvm-x86_64-gp2
Resources:
  Endpoint:
    Type: AWS::EC2::VPCEndpoint
    Properties: {ServiceName: !Join ["", [com.amazonaws., !Ref "AWS::Region", .kms]]}
  Route:
    Type: AWS::EC2::Route
    Properties: {NatGatewayId: nat-1}
  Role:
    Type: AWS::IAM::Role
    Properties:
      AssumeRolePolicyDocument:
        Version: 2012-10-17
        Statement: {Effect: Allow, Principal: {Service: [ec2.amazonaws.com]}, Action: "sts:AssumeRole"}
      Policies:
        - PolicyName: key
          PolicyDocument:
            Version: 2012-10-17
            Statement:
              - {Effect: Allow, Action: "kms:Encrypt", Resource: [!GetAtt Key.Arn]}
              - {Effect: Allow, Action: "kms:Decrypt", Resource: [!GetAtt Key.Arn]}
              - {Effect: Allow, Action: "kms:GenerateDataKey", Resource: [!GetAtt Key.Arn]}
  Profile:
    Type: AWS::IAM::InstanceProfile
    Properties: {InstanceProfileName: SSM_access, Roles: [!Ref Role]}
  FlowLogRole:
    Type: AWS::IAM::Role
    Properties:
      AssumeRolePolicyDocument:
        Statement:
          - Effect: Allow
            Principal: {Service: vpc-flow-logs.amazonaws.com}
            Action: sts:AssumeRole
      Policies:
        - PolicyDocument:
            Statement: {Effect: Allow, Action: ["logs:PutLogEvents"], Resource: "*"}
  LogKey:
    Type: AWS::KMS::Key
    Properties:
      KeyPolicy:
        Statement:
          Effect: Allow
          Principal: {Service: !Join ["", [logs., !Ref "AWS::Region", .amazonaws.com]]}
          Action: ["kms:Decrypt*"]
          Resource: "*"
  Key:
    Type: AWS::KMS::Key
    Properties:
      KeyPolicy:
        Version: 2012-10-17
        Statement:
          - Effect: Allow
            Principal: {AWS: !Join ["", ["arn:aws:iam::", !Ref "AWS::AccountId", ":root"]]}
            Action: ["kms:*"]
            Resource: "*"
          - Effect: Deny
            Principal: {AWS: "*"}
            Action: kms:Decrypt
            Resource: "*"
            Condition: {StringNotEqualsIgnoreCase: {"kms:RecipientAttestation:PCR0": EXAMPLETOBEUPDATED}}
  Alias:
    Type: AWS::KMS::Alias
    Properties: {AliasName: alias/EnclaveKMSkey, TargetKeyId: !Ref Key}
  Instance:
    Type: AWS::EC2::Instance
    Properties:
      ImageId: !Ref Image
      InstanceType: m5.2xlarge
      IamInstanceProfile: SSM_access
      EnclaveOptions: {Enabled: true}
      BlockDeviceMappings: [{DeviceName: /dev/xvda, Ebs: {VolumeSize: 64}}]
      UserData: !Base64 |
        #!/bin/bash
        amazon-linux-extras install aws-nitro-enclaves-cli -y
"""


def test_all_faults_of_a_template_like_the_sample_are_found() -> None:
    assert [(finding.rule, finding.resource) for finding in check_template(SAMPLE_LIKE)] == [
        ("reencrypt-without-attestation", "Key"),
        ("key-not-kept", "Key"),
        ("starts-before-network", "Instance"),
        ("profile-by-name", "Instance"),
        ("measurement-comes-back", "Key"),
        ("account-may-change-policy", "Key"),
        ("one-role-does-all", "Role"),
        ("imdsv1", "Instance"),
        ("volume-not-encrypted", "Instance"),
        ("no-security-group", "Instance"),
        ("amazon-linux-2", "Instance"),
        ("no-signal", "Instance"),
        ("literal-name", "Profile"),
        ("literal-name", "Alias"),
        ("endpoint-without-policy", "Endpoint"),
        ("confused-deputy", "FlowLogRole"),
        ("flow-log-role-too-wide", "FlowLogRole"),
        ("log-key-open", "LogKey"),
        ("no-outputs", None),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "just text",
        "[1, 2]",
        "Resources: {}",
        "Resources: {A: 1}",
        "Resources: {A: {Type: [x]}}",
        "Resources: {A: {Type: x",
        "\tResources: {A: {Type: x}}",
        "Resources: &a {A: {Type: x, Properties: *a}}",
        "Resources: " + "[" * 1000,
        "a: !!python/object/apply:os.system [id]\nResources: {A: {Type: x}}",
        "x" * (1 << 20) + "y",
    ],
    ids=range(12),
)
def test_what_is_no_template_is_refused(text: str) -> None:
    with pytest.raises(InvalidTemplate):
        check_template(text)


@pytest.mark.parametrize("value", [None, [], "", 5, {"Statement": []}, {"Statement": {}}, {"Fn::If": []}])
@pytest.mark.parametrize(
    ("resource", "name"),
    [
        ("Key", "KeyPolicy"),
        ("Role", "AssumeRolePolicyDocument"),
        ("FlowLogRole", "Policies"),
        ("Endpoint", "PolicyDocument"),
        ("Host", "BlockDeviceMappings"),
        ("Host", "UserData"),
        ("Host", "MetadataOptions"),
        ("Host", "NetworkInterfaces"),
    ],
)
def test_a_property_of_any_shape_raises_nothing_unforeseen(resource: str, name: str, value: Any) -> None:
    template = sound_template()
    template["Resources"][resource]["Properties"][name] = value
    check(template)


def test_a_stack_policy_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(InputError):
        check_template(json.dumps(sound_template()), stack_policy="{")
