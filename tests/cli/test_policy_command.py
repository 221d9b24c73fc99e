"""`necli policy` as it is run: without anything set up on a file, and on the policy in force."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from program import Necli

from necli.backends import open_backend
from necli.home import Home
from necli.progress import Progress
from necli.settings import DEFAULT_REGION, find_home
from necli.workflows.workload import Workload

SAMPLE = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Sid": "Enable IAM User Permissions",
            "Effect": "Allow",
            "Principal": {"AWS": "arn:aws:iam::111122223333:root"},
            "Action": ["kms:*"],
            "Resource": "*",
        },
        {
            "Sid": "Enable Enclave to decrypt",
            "Effect": "Deny",
            "Principal": {"AWS": "*"},
            "Action": "kms:Decrypt",
            "Resource": "*",
            "Condition": {
                "StringNotEqualsIgnoreCase": {"kms:RecipientAttestation:PCR0": "EXAMPLETOBEUPDATED"}
            },
        },
    ],
}


@pytest.fixture
def sample(necli: Necli) -> Path:
    """The AWS sample's policy in a file."""
    path = necli.folder / "policy.json"
    path.write_text(json.dumps(SAMPLE))
    return path


class TestOffline:
    def test_lint_finds_the_samples_faults_and_ends_with_1(self, necli: Necli, sample: Path) -> None:
        done = necli.run("policy", "lint", "--file", sample, "--json")
        findings = json.loads(done.stdout)["findings"]
        assert done.returncode == 1
        assert all(each.keys() == {"rule", "sid", "severity", "message", "fix"} for each in findings)
        assert {(each["rule"], each["sid"], each["severity"]) for each in findings} == {
            ("not-bound", "Enable Enclave to decrypt", "warning"),
            ("pcr0-only", "Enable Enclave to decrypt", "warning"),
            ("root-delegation", "Enable IAM User Permissions", "error"),
            ("reencrypt-not-denied", "Enable IAM User Permissions", "error"),
        }
        screen = necli.run("policy", "lint", "--file", sample).stdout
        assert "error: root-delegation in Enable IAM User Permissions" in screen
        assert "→ run necli policy update" in screen
        assert "2 errors, 2 warnings" in screen

    def test_show_says_who_can_do_what(self, necli: Necli, sample: Path) -> None:
        screen = necli.ok("policy", "show", "--file", sample)
        assert "re-encrypt to another key: anybody whom IAM of account 111122223333 lets" in screen
        assert "Deny everybody: Decrypt, unless PCR0 is EXAMPLETOBEUPDATED" in screen

    def test_explain_without_attestation_ends_with_5(self, necli: Necli, sample: Path) -> None:
        done = necli.run("policy", "explain", "--file", sample, "--without-attestation", "--json")
        found = json.loads(done.stdout)
        assert (done.returncode, found["allowed"], found["sid"]) == (5, False, "Enable Enclave to decrypt")
        assert found["conditions"] == [
            {
                "operator": "StringNotEqualsIgnoreCase",
                "key": "kms:RecipientAttestation:PCR0",
                "expected": ["EXAMPLETOBEUPDATED"],
                "actual": [],
            }
        ]

    def test_what_somebody_else_may_do_is_explained_too(self, necli: Necli, sample: Path) -> None:
        arguments = ("--caller", "arn:aws:iam::111122223333:role/x", "--action", "kms:PutKeyPolicy")
        screen = necli.ok("policy", "explain", "--file", sample, "--without-attestation", *arguments)
        assert "kms:PutKeyPolicy by x is allowed by IAM" in screen

    @pytest.mark.parametrize("command", ["lint", "show"])
    @pytest.mark.parametrize(
        ("content", "code"),
        [
            (None, "no_such_file"),
            (b"", "not_a_policy"),
            (b"\xff", "not_a_policy"),
            (b"[1]", "not_a_policy"),
            (b'{"Statement": [{"Effect": "Perhaps"}]}', "not_a_policy"),
            (b" " * 40_000, "not_a_policy"),
        ],
    )
    def test_a_file_that_is_no_policy(
        self, necli: Necli, command: str, content: bytes | None, code: str
    ) -> None:
        path = necli.folder / "p.json"
        if content is not None:
            path.write_bytes(content)
        status, error = necli.error("policy", command, "--file", path)
        assert (status, error["code"]) == (3, code)


@pytest.fixture
def workload(running: Necli) -> Iterator[Workload]:
    """The running workload through the library; its policy is put back afterwards."""
    home = Home(running.home, find_home(os.environ).cache)
    made = Workload(home, "local", open_backend("local", home, DEFAULT_REGION), Progress())
    client, arn = made.kms("administrator"), made.key().arn
    policy = client.get_key_policy(KeyId=arn)["Policy"]
    yield made
    client.put_key_policy(KeyId=arn, PolicyName="default", Policy=policy)


def put(workload: Workload, body: dict[str, Any]) -> None:
    client = workload.kms("administrator")
    client.put_key_policy(KeyId=workload.key().arn, PolicyName="default", Policy=json.dumps(body))


def test_the_policy_in_force_in_words(running: Necli) -> None:
    pcr0 = running.json("status")["build"]["measurements"]["PCR0"]
    screen = running.ok("policy", "show")
    assert f"decrypt, attesting PCR0 {pcr0[:16]}…" in screen
    assert "decrypt without attestation: nobody" in screen
    assert "change this policy: necli-administrator" in screen
    assert running.json("policy", "show")["Id"] == "necli-key-policy"


def test_the_policy_in_force_has_no_errors(running: Necli) -> None:
    [finding] = running.json("policy", "lint")["findings"]
    assert (finding["rule"], finding["severity"]) == ("may-change-policy", "info")


def test_the_running_enclave_is_explained_by_what_it_attests(running: Necli) -> None:
    assert running.json("policy", "explain")["sid"] == "EnclaveDecrypt"
    refused = running.run("policy", "explain", "--without-attestation")
    assert refused.returncode == 5
    assert "PCR0: expected" in refused.stdout
    assert "actual absent" in refused.stdout


def test_detect_explains_a_denial_down_to_the_value(running: Necli, workload: Workload, photo: Path) -> None:
    body = running.json("policy", "show")
    deny = {"Sid": "By hand", "Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*"}
    condition = {"StringNotEqualsIgnoreCase": {"kms:RecipientAttestation:PCR1": "ab" * 48}}
    put(workload, {**body, "Statement": [{**deny, "Condition": condition}, *body["Statement"]]})
    status, error = running.error("detect", photo)
    pcr1 = running.json("status")["build"]["measurements"]["PCR1"]
    assert (status, error["code"]) == (5, "access_denied")
    assert "the first statement that decides is By hand" in error["message"]
    assert f"PCR1: expected abababababababab…, actual {pcr1[:16]}…" in error["message"]
    assert "aws kms put-key-policy" in error["hint"]


def test_detect_explains_the_context_that_a_policy_asks_for_and_its_hint_mends_it(
    running: Necli, workload: Workload, photo: Path
) -> None:
    body = running.json("policy", "show")
    deny = {"Sid": "Tenant", "Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*"}
    condition = {"StringNotEquals": {"kms:EncryptionContext:tenant": "a"}}
    put(workload, {**body, "Statement": [*body["Statement"], {**deny, "Condition": condition}]})
    status, error = running.error("detect", photo, "--context", "tenant=b")
    assert status == 5
    assert "tenant in the encryption context: expected a, actual b" in error["message"]
    assert error["hint"] == "encrypt it again: necli encrypt IMAGE --context tenant=a"
    assert running.json("detect", photo, "--context", "tenant=a")["results"][0]["objects"]


def test_the_parents_own_decryption_missing_in_the_policy_is_told_and_mended(
    running: Necli, workload: Workload, photo: Path
) -> None:
    body = running.json("policy", "show")
    put(workload, {**body, "Statement": [s for s in body["Statement"] if s["Sid"] != "EnclaveDecrypt"]})
    _, error = running.error("detect", photo)
    assert "no statement of the key policy allows it" in error["message"]
    assert error["hint"] == "run necli policy update"
    running.ok("policy", "update")
    assert running.json("detect", photo)["results"][0]["objects"]


def test_update_with_chosen_registers_then_rollback(running: Necli, workload: Workload, photo: Path) -> None:
    screen = running.ok("policy", "update", "--pcr", "0,3", "--backup", "before-pcr3")
    assert '+          "kms:RecipientAttestation:PCR3"' in screen
    assert running.json("detect", photo)["results"][0]["objects"]
    assert "before-pcr3" in {each["name"] for each in running.json("policy", "rollback", "--list")["backups"]}
    assert running.error("policy", "update", "--pcr", "8")[0] == 2
    assert running.error("policy", "update", "--pcr", "0,8")[0] == 3
    running.ok("policy", "rollback", "before-pcr3")
    assert not running.json("policy", "plan")["changed"]
    assert running.error("policy", "rollback", "nonsense")[1]["code"] == "no_such_backup"


def test_the_only_image_is_not_retired(running: Necli) -> None:
    pcr0 = running.json("status")["build"]["measurements"]["PCR0"]
    assert not running.json("policy", "stage")["changed"]
    assert not running.json("policy", "retire")["changed"]
    status, error = running.error("policy", "retire", pcr0[:8])
    assert status == 3
    assert "only measurement set" in error["message"]


def test_a_plan_on_the_samples_policy_binds_the_built_image(running: Necli) -> None:
    path = running.folder / "sample-policy.json"
    path.write_text(json.dumps(SAMPLE))
    change = running.json("policy", "plan", "--file", path)
    pcr0 = running.json("status")["build"]["measurements"]["PCR0"]
    [deny] = [each for each in change["after"]["Statement"] if each["Sid"] == "Enable Enclave to decrypt"]
    assert deny["Condition"] == {"StringNotEqualsIgnoreCase": {"kms:RecipientAttestation:PCR0": pcr0}}
    assert change["before"] == SAMPLE


def test_a_policy_in_a_file_is_explained_for_an_image(running: Necli) -> None:
    build = running.json("status")["build"]
    path = running.folder / "sample-policy.json"
    path.write_text(json.dumps(SAMPLE))
    found = json.loads(
        running.run("policy", "explain", "--file", path, "--eif", build["path"], "--json").stdout
    )
    assert found["conditions"][0]["actual"] == [build["measurements"]["PCR0"]]
    assert found["fix"] == "run necli policy update"
    path.write_text(running.ok("policy", "show", "--json"))
    assert "is allowed by the key policy: EnclaveDecrypt" in running.ok("policy", "explain", "--file", path)


def test_an_enclave_in_debug_mode_is_told_that_it_attests_zeros(running: Necli, photo: Path) -> None:
    running.ok("enclave", "run", "--name", "looked-into", "--debug-mode")
    try:
        status, error = running.error("detect", photo, "--enclave", "looked-into")
        assert (status, error["code"]) == (5, "debug_mode")
        assert "runs in debug mode and attests zeros" in error["message"]
        assert "PCR0: expected" in error["message"]
        assert "actual 000000… (zeros: debug mode)" in error["message"]
        assert error["hint"] == "necli enclave stop looked-into, then necli up"
        explained = running.run("policy", "explain", "--enclave", "looked-into")
        assert "→ the enclave runs in debug mode" in explained.stdout
    finally:
        running.ok("enclave", "stop", "looked-into")
