"""Keys, their states, aliases and policies, through an unmodified boto3."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError
from running_kms import RunningKms

from necli.local.identities import ACCOUNT
from necli.local.kms_store import Key, KeyStore

MISSING = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningKms]:
    running = RunningKms(tmp_path_factory.mktemp("kms"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def admin(kms: RunningKms) -> Any:
    return kms.administrator


def refused(code: str, match: str = "") -> Any:
    return pytest.raises(ClientError, match=rf"\({code}\).*{match}")


def new_alias() -> str:
    return f"alias/test-{uuid4()}"


class TestKeys:
    def test_a_new_key_is_described_as_kms_does(self, admin: Any) -> None:
        created = admin.create_key(Description="for tests")["KeyMetadata"]
        assert created["Arn"] == f"arn:aws:kms:eu-central-1:{ACCOUNT}:key/{created['KeyId']}"
        assert admin.describe_key(KeyId=created["Arn"])["KeyMetadata"] == created
        expected = {"Description": "for tests", "Enabled": True, "KeyState": "Enabled", "Origin": "AWS_KMS"}
        expected |= {"KeyManager": "CUSTOMER", "KeySpec": "SYMMETRIC_DEFAULT", "AWSAccountId": ACCOUNT}
        assert {name: created[name] for name in expected} == expected

    def test_a_key_is_found_by_id_arn_alias_and_alias_arn(self, kms: RunningKms, admin: Any) -> None:
        arn, alias = kms.new_key(), new_alias()
        admin.create_alias(AliasName=alias, TargetKeyId=arn)
        for name in (arn, arn.split("/")[1], alias, f"arn:aws:kms:eu-central-1:{ACCOUNT}:{alias}"):
            assert admin.describe_key(KeyId=name)["KeyMetadata"]["Arn"] == arn

    @pytest.mark.parametrize(
        ("key_id", "code", "message"),
        [
            (
                MISSING,
                "NotFoundException",
                f"Key 'arn:aws:kms:eu-central-1:{ACCOUNT}:key/{MISSING}' does not",
            ),
            ("alias/none", "NotFoundException", "alias/none is not found."),
            ("what", "NotFoundException", "Invalid keyId 'what'"),
            (f"arn:aws:kms:us-east-1:{ACCOUNT}:key/{MISSING}", "NotFoundException", "Invalid arn us-east-1"),
            (f"arn:aws:kms:eu-central-1:999999999999:key/{MISSING}", "AccessDeniedException", ""),
        ],
    )
    def test_a_key_that_is_not_there_is_named(self, admin: Any, key_id: str, code: str, message: str) -> None:
        with refused(code, message):
            admin.describe_key(KeyId=key_id)

    def test_keys_are_listed_in_pages(self, kms: RunningKms, admin: Any) -> None:
        made = {kms.new_key() for _ in range(3)}
        pages = list(admin.get_paginator("list_keys").paginate(PaginationConfig={"PageSize": 2}))
        listed = [key["KeyArn"] for page in pages for key in page["Keys"]]
        assert len(pages) > 1
        assert len(listed) == len(set(listed))
        assert made <= set(listed)

    @pytest.mark.parametrize(
        "unsupported",
        [
            {"KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT"},
            {"MultiRegion": True},
            {"Origin": "EXTERNAL"},
        ],
    )
    def test_what_the_service_does_not_do_is_refused(self, admin: Any, unsupported: dict[str, Any]) -> None:
        with refused("UnsupportedOperationException"):
            admin.create_key(**unsupported)

    def test_an_operation_that_is_not_done_is_refused_by_name(self, kms: RunningKms, admin: Any) -> None:
        with refused("UnknownOperationException", "EnableKeyRotation"):
            admin.enable_key_rotation(KeyId=kms.new_key())


class TestStates:
    def test_a_disabled_key_is_not_used_until_it_is_enabled(self, kms: RunningKms, admin: Any) -> None:
        arn = kms.new_key()
        blob = admin.encrypt(KeyId=arn, Plaintext=b"x")["CiphertextBlob"]
        admin.disable_key(KeyId=arn)
        for use in (
            lambda: admin.encrypt(KeyId=arn, Plaintext=b"x"),
            lambda: admin.decrypt(CiphertextBlob=blob),
            lambda: admin.generate_data_key(KeyId=arn, KeySpec="AES_256"),
            lambda: admin.re_encrypt(CiphertextBlob=blob, DestinationKeyId=arn),
        ):
            with refused("DisabledException", f"{arn} is disabled."):
                use()
        assert admin.describe_key(KeyId=arn)["KeyMetadata"]["KeyState"] == "Disabled"
        admin.enable_key(KeyId=arn)
        assert admin.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x"

    def test_a_key_pending_deletion_is_not_used_until_that_is_cancelled(
        self, kms: RunningKms, admin: Any
    ) -> None:
        arn = kms.new_key()
        scheduled = admin.schedule_key_deletion(KeyId=arn, PendingWindowInDays=7)
        assert scheduled["KeyState"] == "PendingDeletion"
        assert admin.describe_key(KeyId=arn)["KeyMetadata"]["DeletionDate"] == scheduled["DeletionDate"]
        for use in (
            lambda: admin.encrypt(KeyId=arn, Plaintext=b"x"),
            lambda: admin.enable_key(KeyId=arn),
            lambda: admin.disable_key(KeyId=arn),
            lambda: admin.schedule_key_deletion(KeyId=arn),
            lambda: admin.create_alias(AliasName=new_alias(), TargetKeyId=arn),
        ):
            with refused("KMSInvalidStateException", f"{arn} is pending deletion."):
                use()
        assert admin.get_key_policy(KeyId=arn)["PolicyName"] == "default"
        admin.cancel_key_deletion(KeyId=arn)
        assert admin.describe_key(KeyId=arn)["KeyMetadata"]["KeyState"] == "Disabled"
        with refused("KMSInvalidStateException", "is not pending deletion"):
            admin.cancel_key_deletion(KeyId=arn)

    @pytest.mark.parametrize("days", [6, 31])
    def test_the_pending_window_is_seven_to_thirty_days(self, kms: RunningKms, admin: Any, days: int) -> None:
        with refused("ValidationException", "pendingWindowInDays"):
            admin.schedule_key_deletion(KeyId=kms.new_key(), PendingWindowInDays=days)


class TestAliases:
    def test_an_alias_is_made_moved_listed_and_deleted(self, kms: RunningKms, admin: Any) -> None:
        first, second, alias = kms.new_key(), kms.new_key(), new_alias()
        admin.create_alias(AliasName=alias, TargetKeyId=first)
        (listed,) = admin.list_aliases(KeyId=first)["Aliases"]
        assert (listed["AliasName"], listed["TargetKeyId"]) == (alias, first.split("/")[1])
        admin.update_alias(AliasName=alias, TargetKeyId=second)
        assert admin.list_aliases(KeyId=first)["Aliases"] == []
        assert admin.describe_key(KeyId=alias)["KeyMetadata"]["Arn"] == second
        admin.delete_alias(AliasName=alias)
        with refused("NotFoundException", "is not found"):
            admin.delete_alias(AliasName=alias)

    def test_a_name_is_taken_once(self, kms: RunningKms, admin: Any) -> None:
        arn, alias = kms.new_key(), new_alias()
        admin.create_alias(AliasName=alias, TargetKeyId=arn)
        with refused("AlreadyExistsException", f"{ACCOUNT}:{alias} already exists"):
            admin.create_alias(AliasName=alias, TargetKeyId=kms.new_key())

    @pytest.mark.parametrize(
        ("name", "code"),
        [
            ("no-prefix", "ValidationException"),
            ("alias/", "ValidationException"),
            ("alias/with space", "ValidationException"),
            ("alias/aws/mine", "NotAuthorizedException"),
        ],
    )
    def test_a_bad_name_is_refused(self, kms: RunningKms, admin: Any, name: str, code: str) -> None:
        with refused(code):
            admin.create_alias(AliasName=name, TargetKeyId=kms.new_key())

    @pytest.mark.parametrize(
        "operation",
        ["get_key_policy", "list_key_policies", "disable_key", "enable_key", "schedule_key_deletion"],
    )
    def test_an_alias_does_not_stand_for_the_key_where_kms_wants_the_key(
        self, kms: RunningKms, admin: Any, operation: str
    ) -> None:
        alias = new_alias()
        admin.create_alias(AliasName=alias, TargetKeyId=kms.new_key())
        with refused("NotFoundException", f"Invalid keyId '{alias}'"):
            getattr(admin, operation)(KeyId=alias)
        with refused("NotFoundException", f"Invalid keyId '{alias}'"):
            admin.put_key_policy(KeyId=alias, Policy="{}")


class TestPolicies:
    def test_a_policy_is_given_back_as_it_was_put(self, kms: RunningKms, admin: Any) -> None:
        arn = kms.new_key()
        text = json.dumps(json.loads(admin.get_key_policy(KeyId=arn)["Policy"]), indent=7)
        admin.put_key_policy(KeyId=arn, PolicyName="default", Policy=text)
        assert admin.get_key_policy(KeyId=arn)["Policy"] == text
        assert admin.list_key_policies(KeyId=arn)["PolicyNames"] == ["default"]

    @pytest.mark.parametrize(
        "change",
        [
            {"Condition": {"StringMatches": {"kms:CallerAccount": "1"}}},
            {"Condition": {"StringEquals": {"kms:RecipientAttestation:PCRO": "1"}}},
            {"Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:role/nobody"}},
            {"Principal": {"AWS": f"arn:aws:sts::{ACCOUNT}:assumed-role/nobody/session"}},
            {"Principal": {"AWS": "necli-parent-instance"}},
            {"Effect": "Permit"},
            {"Resource": []},
        ],
    )
    def test_a_malformed_policy_is_refused_and_the_old_one_stays(
        self, kms: RunningKms, admin: Any, change: dict[str, Any]
    ) -> None:
        arn = kms.new_key()
        before = admin.get_key_policy(KeyId=arn)["Policy"]
        policy = json.loads(before)
        policy["Statement"].append({**policy["Statement"][0], **change})
        with refused("MalformedPolicyDocumentException"):
            admin.put_key_policy(KeyId=arn, Policy=json.dumps(policy))
        with refused("MalformedPolicyDocumentException"):
            admin.create_key(Policy=json.dumps(policy))
        assert admin.get_key_policy(KeyId=arn)["Policy"] == before

    def test_principals_that_exist_are_accepted(self, kms: RunningKms, admin: Any) -> None:
        policy = json.loads(admin.get_key_policy(KeyId=kms.new_key())["Policy"])
        parent = kms.identities.parent
        principals = [parent.role_arn, parent.session_arn, "arn:aws:iam::999999999999:role/x", "*", ACCOUNT]
        policy["Statement"].append({**policy["Statement"][0], "Principal": {"AWS": principals}})
        admin.create_key(Policy=json.dumps(policy))

    @pytest.mark.parametrize("text", ["{", "[]", '{"Statement": []}', "x"])
    def test_text_that_is_no_policy_is_refused(self, kms: RunningKms, admin: Any, text: str) -> None:
        with refused("MalformedPolicyDocumentException"):
            admin.put_key_policy(KeyId=kms.new_key(), Policy=text)

    def test_a_policy_above_32_kib_is_refused(self, kms: RunningKms, admin: Any) -> None:
        arn = kms.new_key()
        policy = json.loads(admin.get_key_policy(KeyId=arn)["Policy"])
        policy["Id"] = "x" * (32 << 10)
        with refused("LimitExceededException"):
            admin.put_key_policy(KeyId=arn, Policy=json.dumps(policy))

    def test_who_would_lock_himself_out_is_stopped_unless_he_insists(
        self, kms: RunningKms, admin: Any
    ) -> None:
        arn = kms.new_key()
        policy = json.loads(admin.get_key_policy(KeyId=arn)["Policy"])
        policy["Statement"][0]["Principal"] = {"AWS": kms.identities.owner.role_arn}
        with refused(
            "MalformedPolicyDocumentException", "will not allow you to update the key policy in the future."
        ):
            admin.put_key_policy(KeyId=arn, Policy=json.dumps(policy))
        admin.put_key_policy(KeyId=arn, Policy=json.dumps(policy), BypassPolicyLockoutSafetyCheck=True)
        with refused("AccessDeniedException", "no resource-based policy allows the kms:GetKeyPolicy action"):
            admin.get_key_policy(KeyId=arn)

    def test_there_is_one_policy_name(self, kms: RunningKms, admin: Any) -> None:
        with refused("NotFoundException", "No such policy exists"):
            admin.get_key_policy(KeyId=kms.new_key(), PolicyName="other")


def test_overdue_keys_are_destroyed_with_their_aliases(tmp_path: Path) -> None:
    """The store's clock is given to it, so this one needs no service."""
    store, now = KeyStore(tmp_path, "eu-central-1"), datetime.now(UTC)
    store.add_key(Key(MISSING, "eu-central-1", b"m" * 32, "", "{}", now))
    store.add_alias("alias/x", MISSING, now)
    store.set_state(MISSING, "PendingDeletion", now + timedelta(days=7))
    store.delete_overdue_keys(now + timedelta(days=6))
    assert store.key(MISSING) is not None
    store.delete_overdue_keys(now + timedelta(days=7))
    assert store.key(MISSING) is None
    assert store.alias("alias/x") is None
    store.close()
    assert b"m" * 32 not in (tmp_path / "kms.sqlite").read_bytes()
