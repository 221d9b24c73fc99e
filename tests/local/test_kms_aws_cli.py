"""The AWS CLI, from its own package and unmodified, with the profiles that necli writes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_kms import RunningKms

AWS = shutil.which("aws", path=os.pathsep.join([str(Path(sys.executable).parent), os.defpath]))
pytestmark = pytest.mark.skipif(AWS is None, reason="the AWS CLI is not installed")


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningKms]:
    running = RunningKms(tmp_path_factory.mktemp("kms"))
    running.start()
    yield running
    running.stop()


def run(kms: RunningKms, profile: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.defpath,
        "HOME": str(kms.home.state),
        "AWS_CONFIG_FILE": str(kms.home.aws / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(kms.home.aws / "credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_PAGER": "",
    }
    command = [str(AWS), "--profile", f"necli-{profile}", "--output", "json", "kms", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def answer(kms: RunningKms, profile: str, *arguments: str) -> Any:
    done = run(kms, profile, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout else None


def test_the_life_of_a_key_from_the_command_line(kms: RunningKms, tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text(kms.initial_policy().to_text())
    key = answer(kms, "administrator", "create-key", "--policy", f"file://{policy}")["KeyMetadata"]["Arn"]
    answer(kms, "administrator", "create-alias", "--alias-name", "alias/cli", "--target-key-id", key)
    aliases = answer(kms, "administrator", "list-aliases")["Aliases"]
    assert [alias["AliasName"] for alias in aliases] == ["alias/cli"]

    made = answer(
        kms, "data-owner", "generate-data-key", "--key-id", "alias/cli", "--key-spec", "AES_256",
        "--encryption-context", "necli:workload=object-detection",
    )  # fmt: skip
    assert len(base64.b64decode(made["Plaintext"])) == 32
    blob = tmp_path / "data-key"
    blob.write_bytes(base64.b64decode(made["CiphertextBlob"]))

    refused = run(
        kms, "parent-instance", "decrypt", "--ciphertext-blob", f"fileb://{blob}",
        "--encryption-context", "necli:workload=object-detection",
    )  # fmt: skip
    assert refused.returncode != 0
    assert "An error occurred (AccessDeniedException) when calling the Decrypt operation: User: " in (
        refused.stderr
    )
    assert "with an explicit deny in a resource-based policy" in refused.stderr

    given = answer(kms, "administrator", "get-key-policy", "--key-id", key, "--policy-name", "default")
    assert json.loads(given["Policy"]) == kms.initial_policy().to_json()
    answer(kms, "administrator", "schedule-key-deletion", "--key-id", key, "--pending-window-in-days", "7")
    state = answer(kms, "data-owner", "describe-key", "--key-id", key)["KeyMetadata"]["KeyState"]
    assert state == "PendingDeletion"


def test_a_policy_mistake_is_told_in_the_words_of_aws(kms: RunningKms, tmp_path: Path) -> None:
    key = kms.new_key()
    policy = tmp_path / "policy.json"
    policy.write_text(kms.initial_policy().to_text().replace("necli-administrator", "necli-data-owner"))
    refused = run(kms, "administrator", "put-key-policy", "--key-id", key, "--policy", f"file://{policy}")
    assert "(MalformedPolicyDocumentException)" in refused.stderr
    assert "will not allow you to update the key policy in the future" in refused.stderr
