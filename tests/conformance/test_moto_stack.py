"""The real template created, described, updated and deleted by the code that does it on AWS, against moto.

moto 5.2 is no AWS. These tests can't show, and nothing here has shown:

- events of single resources, a failure in the middle, a rollback (tests/stack has them as AWS tells them);
- EnclaveOptions, MetadataOptions, encrypted volumes, user data and its signal: moto drops or ignores them;
- that any policy works: moto evaluates neither the key's, nor the endpoints', nor the roles';
- the stack policy: moto keeps it and never asks it. What is shown of a bound key is only that an update asks
  nothing of it; had it asked something, moto would have lost the key, where AWS would write its policy anew;
- an update of the instance, which moto loses;
- DescribeKey of a key made by a template: moto answers 500;
- the deletion of a VPC with route tables, which moto doesn't delete before it: the test does.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
import typer
from botocore.exceptions import ClientError
from typer.testing import CliRunner, Result

from necli.aws import Account
from necli.cli.stack import set_up_stack
from necli.costs import PriceTable
from necli.errors import Conflict, NecliError, ServiceFailed, UsageError
from necli.home import Home
from necli.keypolicy import KeyPolicy, plan_measurements
from necli.measurements import Measurements
from necli.progress import Progress
from necli.settings import Settings
from necli.stacks import KEY, StackOutputs, StackRecord, Stacks
from necli.state import State
from necli.workflows.stack import Provisioning, StackParameters

moto_server = pytest.importorskip("moto.server", reason="moto is not installed: make conformance installs it")
pytestmark = pytest.mark.conformance

REGION = "eu-central-1"
OWNER = "arn:aws:iam::123456789012:role/owner"
MEASUREMENTS = Measurements(b"\1" * 48, b"\2" * 48, b"\3" * 48)
Client = Callable[[str], Any]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").disabled = True
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def environment(endpoint: str) -> dict[str, str]:
    """As one has it who is signed in as a role with a path."""
    options = {"endpoint_url": endpoint, "region_name": REGION}
    plain = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    iam = boto3.client("iam", **options, **plain)
    iam.create_role(RoleName="administrator", Path="/team/", AssumeRolePolicyDocument="{}")
    role = iam.get_role(RoleName="administrator")["Role"]["Arn"]
    sts = boto3.client("sts", **options, **plain)
    session = sts.assume_role(RoleArn=role, RoleSessionName="someone")["Credentials"]
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": session["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": session["SecretAccessKey"],
        "AWS_SESSION_TOKEN": session["SessionToken"],
    }


@pytest.fixture(scope="module")
def client(environment: dict[str, str]) -> Client:
    def make(service: str) -> Any:
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            aws_session_token=environment["AWS_SESSION_TOKEN"],
        )

    return make


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state", tmp_path / "cache")


@pytest.fixture
def provisioning(client: Client, home: Home) -> Provisioning:
    account = Account(REGION, lambda service, region: client(service))
    return Provisioning(home, account, Stacks(client("cloudformation"), poll_s=0), PriceTable.load())


def make(provisioning: Provisioning, name: str, **parameters: Any) -> StackOutputs:
    wanted = StackParameters(**{"data_owner_arn": OWNER, **parameters})
    return provisioning.provision(provisioning.plan(name, wanted), Progress())


def read_policy(client: Client, key_arn: str) -> KeyPolicy:
    """moto parses the policy of a key that a template made before it answers; AWS gives text."""
    policy = client("kms").get_key_policy(KeyId=key_arn, PolicyName="default")["Policy"]
    return KeyPolicy.from_json(policy)


def bind(client: Client, outputs: StackOutputs) -> KeyPolicy:
    change = plan_measurements(
        read_policy(client, outputs.key_arn), MEASUREMENTS, parent_arn=outputs.enclave_role_arn
    )
    client("kms").put_key_policy(KeyId=outputs.key_arn, PolicyName="default", Policy=change.after.to_text())
    return change.after


@pytest.fixture(scope="module")
def made(client: Client, tmp_path_factory: pytest.TempPathFactory) -> StackOutputs:
    """One stack for the tests that only look."""
    folder = tmp_path_factory.mktemp("made")
    account = Account(REGION, lambda service, region: client(service))
    home = Home(folder / "state", folder / "cache")
    return make(Provisioning(home, account, Stacks(client("cloudformation")), PriceTable.load()), "looked-at")


def test_a_plan_names_who_what_and_how_much_and_makes_nothing(provisioning: Provisioning) -> None:
    plan = provisioning.plan("planned", StackParameters(data_owner_arn=OWNER, instance_type="c7g.xlarge"))
    assert plan.action == "create"
    assert plan.parameters["AdministratorArn"] == "arn:aws:iam::123456789012:role/team/administrator"
    assert plan.parameters["Architecture"] == "arm64"
    assert plan.parameters["ImageId"].startswith("ami-")
    assert [cost.what for cost in plan.estimate.costs][1:3] == [
        "NAT gateway and its address",
        "volume, 64 GiB gp3",
    ]
    assert plan.estimate.costs[3].what == "5 interface endpoints"
    assert provisioning.stacks.find("planned") is None


def test_without_nat_there_is_no_gateway_to_pay_but_one_more_endpoint(provisioning: Provisioning) -> None:
    plan = provisioning.plan("planned", StackParameters(data_owner_arn=OWNER, nat_gateway=False))
    assert "6 interface endpoints" in [cost.what for cost in plan.estimate.costs]
    assert not any("NAT" in cost.what for cost in plan.estimate.costs)
    assert any("without NAT" in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"data_owner_arn": None}, "nobody is named who encrypts"),
        ({"instance_type": "t3.xlarge"}, "t3.xlarge can't run enclaves"),
        ({"instance_type": "x9.large"}, "InvalidInstanceType"),
        ({"enclave_cpus": 3}, "3 of them can't be an enclave's"),
        ({"enclave_cpus": 4}, "4 of them can't be an enclave's"),
        ({"enclave_memory_mib": 16384}, "can't be set aside"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(
    provisioning: Provisioning, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        provisioning.plan("refused", StackParameters(**{"data_owner_arn": OWNER, **parameters}))


def test_setup_makes_what_the_template_says(client: Client, made: StackOutputs) -> None:
    found = client("ec2").describe_instances(InstanceIds=[made.instance_id])["Reservations"]
    (instance,) = found[0]["Instances"]
    assert instance["InstanceType"] == "m6i.xlarge"
    assert instance["IamInstanceProfile"]["Arn"].split("/")[-1].startswith("looked-at-InstanceProfile")
    endpoints = client("ec2").describe_vpc_endpoints(
        Filters=[{"Name": "vpc-id", "Values": [instance["VpcId"]]}]
    )["VpcEndpoints"]
    services = {each["ServiceName"].rpartition(".")[2] for each in endpoints}
    assert services == {"ssm", "ssmmessages", "ec2messages", "kms", "sts"}


def test_the_new_key_lets_nobody_decrypt_and_names_the_roles(client: Client, made: StackOutputs) -> None:
    statements = {each.sid: each for each in read_policy(client, made.key_arn).statements}
    assert list(statements) == [
        "AccountMayRead", "AdministrationWithoutUse", "DataOwnerEncrypts", "EnclaveDecrypt",
        "DenyDecryptUnlessPCR0", "DenyDecryptUnlessPCR1", "DenyDecryptUnlessPCR2",
    ]  # fmt: skip
    assert statements["EnclaveDecrypt"].body["Principal"] == {"AWS": made.enclave_role_arn}
    assert statements["DataOwnerEncrypts"].body["Principal"] == {"AWS": OWNER}
    administrator = "arn:aws:iam::123456789012:role/team/administrator"
    assert statements["AdministrationWithoutUse"].body["Principal"] == {"AWS": administrator}


def test_the_parents_role_may_take_on_the_enclaves_and_nobody_else(
    client: Client, made: StackOutputs
) -> None:
    name = made.enclave_role_arn.rpartition("/")[2]
    trust = client("iam").get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"]
    assert [each["Principal"] for each in trust["Statement"]] == [{"AWS": made.instance_role_arn}]
    scope = {"Statement": {"Effect": "Allow", "Action": "kms:Decrypt", "Resource": made.key_arn}}
    session = client("sts").assume_role(
        RoleArn=made.enclave_role_arn,
        RoleSessionName="enclave",
        Policy=json.dumps(scope),
        DurationSeconds=900,
    )
    assert session["Credentials"]["SessionToken"]


def test_what_was_made_is_remembered(provisioning: Provisioning, home: Home) -> None:
    outputs = make(provisioning, "remembered")
    record = StackRecord.load(home)
    assert record == StackRecord("remembered", REGION, outputs)
    key = State.load(home, "nitro").key
    assert key is not None
    assert (key.arn, key.alias) == (outputs.key_arn, "alias/remembered")


def test_two_stacks_stand_side_by_side(provisioning: Provisioning, made: StackOutputs) -> None:
    second = vars(make(provisioning, "second"))
    shared = {name for name, value in vars(made).items() if second[name] == value}
    assert shared == {"administrator_arn", "data_owner_arn"}


def test_an_update_leaves_the_bound_measurements_as_they_are(
    provisioning: Provisioning, client: Client
) -> None:
    outputs = make(provisioning, "bound")
    bound = bind(client, outputs)
    plan = provisioning.plan("bound", StackParameters(public_subnet_cidr="10.0.2.0/24"))
    assert plan.action == "update"
    assert plan.changes == {"PublicSubnetCidr": ("10.0.1.0/24", "10.0.2.0/24")}
    # A later version of necli, with another template: also for the key.
    key = plan.template.document["Resources"][KEY]
    newer = plan.template.with_resource(
        KEY, {**key, "Properties": {**key["Properties"], "Description": "newer"}}
    )
    again = provisioning.provision(replace(plan, template=newer), Progress())
    assert again.key_arn == outputs.key_arn
    assert read_policy(client, outputs.key_arn).to_json() == bound.to_json()
    assert "no-measurement" not in bound.to_text()


def test_the_stack_policy_is_given_to_the_stack_and_refuses_updates_of_the_key(
    client: Client, made: StackOutputs
) -> None:
    body = client("cloudformation").get_stack_policy(StackName="looked-at")["StackPolicyBody"]
    denied = [each for each in json.loads(body)["Statement"] if each["Effect"] == "Deny"]
    assert [(each["Action"], each["Resource"]) for each in denied] == [
        ("Update:*", f"LogicalResourceId/{KEY}")
    ]


def test_a_plan_for_another_instance_type_says_that_it_stops_the_instance(
    provisioning: Provisioning, made: StackOutputs
) -> None:
    plan = provisioning.plan("looked-at", StackParameters(instance_type="m6i.2xlarge"))
    assert plan.changes == {"InstanceType": ("m6i.xlarge", "m6i.2xlarge")}
    assert plan.given == {"InstanceType": "m6i.2xlarge"}
    assert plan.resources == {}
    assert any("stopped and started" in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"vpc_cidr": "10.9.0.0/16"}, "VpcCidr can't be changed"),
        ({"instance_type": "m7g.xlarge"}, "Architecture can't be changed"),
    ],
)
def test_an_update_that_would_replace_the_instance_is_refused(
    provisioning: Provisioning, made: StackOutputs, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        provisioning.plan("looked-at", StackParameters(**parameters))


def test_another_owner_is_refused_since_the_key_policy_is_not_the_stacks_to_change(
    provisioning: Provisioning, made: StackOutputs
) -> None:
    with pytest.raises(UsageError, match="DataOwnerArn can't be changed"):
        make(provisioning, "looked-at", data_owner_arn="arn:aws:iam::123456789012:role/other")


def test_a_stack_of_somebody_elses_is_not_touched(provisioning: Provisioning, client: Client) -> None:
    template = {"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}}
    client("cloudformation").create_stack(StackName="theirs", TemplateBody=json.dumps(template))
    with pytest.raises(Conflict, match="isn't one of necli's"):
        make(provisioning, "theirs")


def delete_route_tables(client: Client, stack: StackOutputs) -> None:
    """moto forgets those that a template made."""
    ec2 = client("ec2")
    found = ec2.describe_instances(InstanceIds=[stack.instance_id])["Reservations"][0]["Instances"][0]
    tables = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [found["VpcId"]]}])[
        "RouteTables"
    ]
    for table in tables:
        associations = table["Associations"]
        if not any(each.get("Main") for each in associations):
            for each in associations:
                ec2.disassociate_route_table(AssociationId=each["RouteTableAssociationId"])
            ec2.delete_route_table(RouteTableId=table["RouteTableId"])


def test_a_deleted_stack_leaves_its_key_and_is_forgotten(
    provisioning: Provisioning, client: Client, home: Home
) -> None:
    outputs = make(provisioning, "deleted")
    bound = bind(client, outputs)
    delete_route_tables(client, outputs)
    assert provisioning.delete("deleted", Progress()) == outputs.key_arn
    assert provisioning.stacks.find("deleted") is None
    assert StackRecord.load(home) is None
    assert read_policy(client, outputs.key_arn).to_json() == bound.to_json()


def test_a_deletion_that_aws_refuses_says_what_stands_in_the_way(provisioning: Provisioning) -> None:
    make(provisioning, "stuck")
    with pytest.raises(ServiceFailed, match=r"delete the stack stuck: .* has dependencies"):
        provisioning.delete("stuck", Progress())


CALLS = [
    ("cloudformation", "DescribeStacks", "look up the stack"),
    ("ec2", "DescribeInstanceTypes", "look up the instance type"),
    ("sts", "GetCallerIdentity", "find out who you are"),
    ("iam", "GetRole", "find the role"),
    ("ssm", "GetParameter", "find the latest Amazon Linux"),
    ("cloudformation", "CreateStack", "create the stack"),
    ("cloudformation", "DescribeStackEvents", "read the events"),
    ("cloudformation", "GetTemplate", "read the template"),
    ("cloudformation", "SetStackPolicy", "update the stack"),
    ("cloudformation", "UpdateStack", "update the stack"),
]


def test_whatever_call_fails_is_named_and_a_second_run_goes_on(provisioning: Provisioning) -> None:
    account = provisioning.account
    clients = {service: getattr(account, service) for service in ("sts", "iam", "ec2", "ssm")}
    clients["cloudformation"] = provisioning.stacks.client

    def refuse(**call: Any) -> None:
        raise ClientError({"Error": {"Code": "InternalFailure", "Message": "broken"}}, call["model"].name)

    for service, operation, doing in CALLS:
        events = clients[service].meta.events
        events.register(f"before-call.{service}.{operation}", refuse)
        with pytest.raises(NecliError, match=f"can't {doing}.*broken") as caught:
            make(provisioning, "interrupted", volume_gib=65)
        assert caught.value.hint
        events.unregister(f"before-call.{service}.{operation}", refuse)
    assert make(provisioning, "interrupted", volume_gib=65).key_alias == "alias/interrupted"


def run(environment: dict[str, str], home: Home, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "necli", "stack", *words, "--region", REGION, "--home", str(home.state)]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


def test_the_commands_find_the_stack_that_was_made_last(
    provisioning: Provisioning, client: Client, environment: dict[str, str], home: Home
) -> None:
    outputs = make(provisioning, "commanded")
    status = run(environment, home, "status", "--json")
    assert (status.returncode, json.loads(status.stdout)["name"]) == (0, "commanded"), status.stderr
    assert "CREATE_COMPLETE" in run(environment, home, "status").stdout
    told = json.loads(run(environment, home, "outputs", "--json").stdout)
    assert told["KeyArn"] == outputs.key_arn
    events = run(environment, home, "events").stdout.splitlines()
    assert [line.split()[1] for line in events] == ["CREATE_IN_PROGRESS", "CREATE_COMPLETE"]
    unsure = run(environment, home, "delete")
    assert (unsure.returncode, "--yes" in unsure.stderr) == (2, True)
    delete_route_tables(client, outputs)
    deleted = run(environment, home, "delete", "--yes")
    assert deleted.returncode == 0, deleted.stderr
    assert outputs.key_arn in deleted.stdout
    gone = run(environment, home, "status", "--name", "commanded", "--json")
    assert gone.returncode == 4
    assert json.loads(gone.stdout)["error"]["code"] == "not_ready"


@pytest.fixture
def setup(environment: dict[str, str], home: Home, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`necli setup` on this target: plan, ask, provision."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    app = typer.Typer()

    @app.command()
    def command(ctx: typer.Context, owner: str, yes: bool = False, dry_run: bool = False) -> None:
        set_up_stack(ctx, "set-up", StackParameters(data_owner_arn=owner), yes=yes, dry_run=dry_run)

    def call(*words: str, json: bool = False) -> Result:
        settings = Settings(home, "nitro", REGION, json)
        return CliRunner().invoke(app, words, obj=settings)

    return call


def test_a_dry_run_of_setup_shows_plan_and_price_and_makes_nothing(
    setup: Callable[..., Result], provisioning: Provisioning
) -> None:
    shown = setup(OWNER, "--dry-run").stdout
    assert "create the stack set-up in eu-central-1" in shown
    assert "USD an hour at eu-central-1 list prices of 2025-06" in shown
    plan = json.loads(setup(OWNER, "--dry-run", json=True).stdout)
    assert plan["action"] == "create"
    assert 0.3 < plan["estimate"]["per_hour"] < 0.4
    assert provisioning.stacks.find("set-up") is None


def test_setup_asks_before_it_spends_and_tells_what_happens(
    setup: Callable[..., Result], provisioning: Provisioning
) -> None:
    refused = setup(OWNER)
    assert isinstance(refused.exception, UsageError)
    assert provisioning.stacks.find("set-up") is None
    made = setup(OWNER, "--yes", json=True)
    assert made.exit_code == 0, made.output
    stack = provisioning.stacks.get("set-up")
    assert json.loads(made.stdout)["outputs"]["key_arn"] == stack.outputs["KeyArn"]
    assert "CREATE_COMPLETE" in made.stderr


def test_check_needs_no_account(home: Home, tmp_path: Path) -> None:
    own = run({"AWS_EC2_METADATA_DISABLED": "true"}, home, "check")
    assert (own.returncode, "nothing found" in own.stdout) == (0, True), own.stdout + own.stderr
    template = tmp_path / "template.yaml"
    template.write_text('Resources: {I: {Type: "AWS::EC2::Instance", Properties: {UserData: nitro-cli}}}')
    found = run({}, home, "check", str(template), "--json")
    assert found.returncode == 1
    assert json.loads(found.stdout)[0]["rule"] == "no-enclave-options"
    assert run({}, home, "check", str(tmp_path / "none.yaml")).returncode == 9
