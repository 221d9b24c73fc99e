"""The shipped template and its stack policy, as files: what they say before anybody deploys them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from necli.keypolicy import KeyPolicy, initial_policy, plan_measurements
from necli.measurements import Measurements
from necli.resources import resource_folder
from necli.stacks import KEY
from necli.template_check import Template, check_template
from necli.template_check.template import ACCOUNT

FOLDER = resource_folder("cloudformation")
TEXT = (FOLDER / "necli.yaml").read_text(encoding="utf-8")
STACK_POLICY = (FOLDER / "stack-policy.json").read_text(encoding="utf-8")
MEASUREMENTS = Measurements(b"\1" * 48, b"\2" * 48, b"\3" * 48)


@pytest.fixture(scope="module")
def template() -> Template:
    return Template.parse(TEXT)


def properties(template: Template, name: str) -> Any:
    return template.resources[name].properties


def test_cfn_lint_has_nothing_to_say() -> None:
    cfn_lint = Path(sys.executable).with_name("cfn-lint")
    command = [cfn_lint, "--include-checks", "I", "--template", FOLDER / "necli.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_our_own_check_finds_nothing() -> None:
    assert check_template(TEXT, stack_policy=STACK_POLICY) == []


def test_without_its_stack_policy_only_the_placeholder_is_found() -> None:
    assert [finding.rule for finding in check_template(TEXT)] == ["measurement-comes-back"]


def test_it_fits_in_a_create_stack_request() -> None:
    assert len(TEXT.encode()) < 51_200
    assert len(STACK_POLICY.encode()) < 16_384


def test_the_key_policy_is_the_one_that_necli_gives_a_new_key(template: Template) -> None:
    expected = initial_policy(
        admin_arn=f"arn:aws:iam::{ACCOUNT}:role/AdministratorArn",
        owner_arn=f"arn:aws:iam::{ACCOUNT}:role/DataOwnerArn",
        parent_arn=f"arn:aws:iam::{ACCOUNT}:role/EnclaveRole",
        account=ACCOUNT,
    )
    assert properties(template, KEY)["KeyPolicy"] == expected.to_json()


def test_binding_replaces_every_placeholder_of_the_key_policy(template: Template) -> None:
    policy = KeyPolicy.from_json(properties(template, KEY)["KeyPolicy"])
    role = f"arn:aws:iam::{ACCOUNT}:role/EnclaveRole"
    bound = plan_measurements(policy, MEASUREMENTS, parent_arn=role).after
    assert "no-measurement" not in bound.to_text()
    assert [s.sid for s in bound.statements] == [s.sid for s in policy.statements]


def test_the_key_outlives_its_stack(template: Template) -> None:
    assert template.resources[KEY].body["DeletionPolicy"] == "Retain"
    assert template.resources[KEY].body["UpdateReplacePolicy"] == "Retain"


def test_the_stack_policy_refuses_updates_of_the_key_and_of_nothing_else(template: Template) -> None:
    statements = json.loads(STACK_POLICY)["Statement"]
    denied = [each["Resource"] for each in statements if each["Effect"] == "Deny"]
    assert denied == [f"LogicalResourceId/{KEY}"]
    assert KEY in template.resources


def test_nothing_has_a_name_that_a_second_stack_would_want_too(template: Template) -> None:
    for resource in template.resources.values():
        given = resource.body.get("Properties", {})
        names = [
            value for name, value in given.items() if re.fullmatch(r"\w*Name", name) and "Log" not in name
        ]
        literal = [value for value in names if isinstance(value, str)]
        # An inline policy's name is its role's own affair.
        assert not literal or resource.type == "AWS::IAM::Policy", resource.name


def test_the_instance_waits_for_a_way_out_with_and_without_nat(template: Template) -> None:
    needed = template.needs("Instance")
    assert {"PrivateDefaultRoute", "PrivateRoutes", "SsmEndpoint", "SsmMessagesEndpoint"} <= needed
    assert {"CloudFormationEndpoint", "S3Endpoint"} <= needed


def test_the_parent_instance_may_use_no_key_itself(template: Template) -> None:
    statements = [
        statement
        for policy in properties(template, "InstanceRole")["Policies"]
        for statement in policy["PolicyDocument"]["Statement"]
    ] + properties(template, "InstanceAccess")["PolicyDocument"]["Statement"]
    actions = {
        action
        for statement in statements
        for action in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    }
    assert {action for action in actions if action.startswith("kms:")} == {
        "kms:DescribeKey",
        "kms:GetKeyPolicy",
    }
    assert not any("*" in action for action in actions)
    assert "ManagedPolicyArns" not in properties(template, "InstanceRole")
    assert "Policies" not in properties(template, "EnclaveRole")


@pytest.mark.parametrize("service", ["ssm", "ssmmessages", "ec2messages", "kms", "sts"])
def test_each_service_has_an_endpoint_that_only_this_account_gets_through(
    template: Template, service: str
) -> None:
    name = f"com.amazonaws.eu-central-1.{service}"
    (endpoint,) = [
        each for each in template.of_type("AWS::EC2::VPCEndpoint") if each.properties["ServiceName"] == name
    ]
    for statement in endpoint.properties["PolicyDocument"]["Statement"]:
        assert statement["Condition"] == {"StringEquals": {"aws:PrincipalAccount": ACCOUNT}}


def test_user_data_is_a_script_that_signals_either_way(template: Template) -> None:
    script = properties(template, "Instance")["UserData"]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "memory_mib: 6144" in script
    assert "cpu_count: 2" in script
    assert "signal 1" in script
    assert script.rstrip().endswith("signal 0")


@pytest.mark.parametrize(("name", "good", "bad"), [
    ("AdministratorArn", "arn:aws:iam::111122223333:role/aws-reserved/sso.amazonaws.com/Admin_1",
     "arn:aws:sts::111122223333:assumed-role/Admin/me"),
    ("DataOwnerArn", "arn:aws-us-gov:iam::111122223333:user/a@b.example", "arn:aws:iam::111122223333:root"),
    ("ImageId", "ami-09903cd4fe0670a06", "ubuntu"),
    ("ImageId", "", "ami-xyz"),
    ("VpcCidr", "10.0.0.0/16", "10.0.0.0/8"),
    ("InstanceType", "m7i-flex.2xlarge", "large"),
])  # fmt: skip
def test_a_parameter_takes_what_it_should_alone(template: Template, name: str, good: str, bad: str) -> None:
    pattern = template.parameters[name]["AllowedPattern"]
    assert re.fullmatch(pattern, good)
    assert not re.fullmatch(pattern, bad)


def test_two_architectures_have_an_image_by_ssm_parameter() -> None:
    assert "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-${Architecture}" in TEXT
    assert Template.parse(TEXT).parameters["Architecture"]["AllowedValues"] == ["x86_64", "arm64"]
