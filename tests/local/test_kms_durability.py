"""Nothing that was acknowledged is lost: not by a restart, and not by a kill in the middle of writing."""

from __future__ import annotations

import json
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError
from running_kms import RunningKms

from necli.errors import HostError, InputError, ServiceFailed
from necli.local.kms_store import Key, KeyStore


@pytest.fixture
def kms(tmp_path: Path) -> RunningKms:
    return RunningKms(tmp_path / "state")


def test_keys_aliases_policies_and_ciphertexts_survive_a_restart(kms: RunningKms) -> None:
    kms.start()
    arn = kms.new_key(kms.initial_policy())
    kms.administrator.create_alias(AliasName="alias/mine", TargetKeyId=arn)
    other = kms.new_key()
    blob = kms.administrator.encrypt(KeyId=other, Plaintext=b"secret")["CiphertextBlob"]
    kms.stop()
    kms.start()
    try:
        assert kms.administrator.describe_key(KeyId="alias/mine")["KeyMetadata"]["Arn"] == arn
        policy = json.loads(kms.administrator.get_key_policy(KeyId=arn)["Policy"])
        assert policy == kms.initial_policy().to_json()
        assert kms.administrator.decrypt(CiphertextBlob=blob)["Plaintext"] == b"secret"
    finally:
        kms.stop()


def test_a_kill_in_the_middle_of_writing_loses_nothing_that_was_acknowledged(kms: RunningKms) -> None:
    acknowledged: dict[str, str] = {}

    def write() -> None:
        client = kms.administrator
        try:
            for count in range(10_000):
                arn = client.create_key()["KeyMetadata"]["Arn"]
                policy = json.loads(client.get_key_policy(KeyId=arn)["Policy"])
                text = json.dumps({**policy, "Id": f"{count} " + "x" * 8000})
                client.put_key_policy(KeyId=arn, Policy=text)
                acknowledged[arn] = text
        except BotoCoreError:
            return

    for _ in range(3):
        kms.start()
        before = len(acknowledged)
        writers = [threading.Thread(target=write) for _ in range(3)]
        for writer in writers:
            writer.start()
        deadline = time.monotonic() + 20
        while len(acknowledged) < before + 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        kms.kill()
        for writer in writers:
            writer.join()
    kms.start()
    try:
        assert len(acknowledged) >= 60
        for arn, text in acknowledged.items():
            assert kms.administrator.get_key_policy(KeyId=arn)["Policy"] == text
    finally:
        kms.stop()


def test_the_key_material_is_readable_by_the_user_alone(kms: RunningKms) -> None:
    kms.start()
    try:
        kms.new_key()
        files = [path for path in kms.home.kms.iterdir() if path.name.startswith("kms.sqlite")]
        assert len(files) == 3
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        assert kms.home.kms.stat().st_mode & 0o777 == 0o700
    finally:
        kms.stop()


def test_a_port_in_use_is_an_error_that_names_it(kms: RunningKms) -> None:
    failure = pytest.raises(ServiceFailed, match=f"can't listen on port {kms.port}")
    with socket.create_server(("127.0.0.1", kms.port)), failure:
        kms.start()


def test_keys_belong_to_their_region(tmp_path: Path) -> None:
    store = KeyStore(tmp_path, "eu-central-1")
    store.add_key(Key("k", "eu-central-1", b"m", "", "{}", datetime.now(UTC)))
    assert KeyStore(tmp_path, "us-east-1").key("k") is None


def test_a_damaged_store_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "kms.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(InputError, match="is damaged"):
        KeyStore(tmp_path, "eu-central-1")


def test_a_folder_that_is_none_is_an_error_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HostError):
        KeyStore(tmp_path / "file", "eu-central-1")
