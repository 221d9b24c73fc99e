"""Who may do what: the key policies that matter, put to the running service through boto3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError
from running_kms import RunningKms

from necli.keypolicy import KeyPolicy, plan_measurements
from necli.local.identities import ACCOUNT
from necli.measurements import Measurements

MEASUREMENTS = Measurements(b"\x01" * 48, b"\x02" * 48, b"\x03" * 48)


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningKms]:
    running = RunningKms(tmp_path_factory.mktemp("kms"))
    running.start()
    yield running
    running.stop()


def denied(match: str) -> Any:
    return pytest.raises(ClientError, match=rf"\(AccessDeniedException\).*{match}")


def sample_policy() -> dict[str, Any]:
    """The AWS sample's, as it comes out of its template."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "Enable IAM User Permissions",
                "Effect": "Allow",
                "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"},
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


# What each identity may do with a key under necli's own policy; nothing but an attested enclave decrypts.
ALLOWED = {
    "administrator": {"describe_key", "get_key_policy", "disable_key"},
    "parent": {"describe_key", "get_key_policy"},
    "owner": {"describe_key", "get_key_policy", "encrypt", "generate_data_key"},
}
ACTIONS: dict[str, Callable[[Any, str, bytes], Any]] = {
    "describe_key": lambda client, key, _: client.describe_key(KeyId=key),
    "get_key_policy": lambda client, key, _: client.get_key_policy(KeyId=key),
    "encrypt": lambda client, key, _: client.encrypt(KeyId=key, Plaintext=b"x"),
    "generate_data_key": lambda client, key, _: client.generate_data_key(KeyId=key, KeySpec="AES_256"),
    "decrypt": lambda client, key, blob: client.decrypt(CiphertextBlob=blob),
    "re_encrypt": lambda client, key, blob: client.re_encrypt(CiphertextBlob=blob, DestinationKeyId=key),
    "disable_key": lambda client, key, _: client.disable_key(KeyId=key),
}


@pytest.mark.parametrize("identity", ["administrator", "parent", "owner"])
@pytest.mark.parametrize("action", ACTIONS)
def test_neclis_own_policy_separates_administration_encryption_and_decryption(
    kms: RunningKms, identity: str, action: str
) -> None:
    key = kms.new_key(kms.initial_policy())
    blob = kms.owner.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    client = kms.client(getattr(kms.identities, identity))
    if action in ALLOWED[identity]:
        ACTIONS[action](client, key, blob)
    else:
        with denied("is not authorized to perform: kms:"):
            ACTIONS[action](client, key, blob)


def test_the_parent_is_refused_with_the_words_of_aws(kms: RunningKms) -> None:
    key = kms.new_key(kms.initial_policy())
    blob = kms.owner.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    with pytest.raises(ClientError) as failure:
        kms.parent.decrypt(CiphertextBlob=blob)
    assert failure.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert failure.value.response["Error"] == {
        "Code": "AccessDeniedException",
        "Message": f"User: arn:aws:sts::{ACCOUNT}:assumed-role/necli-parent-instance/necli-local is not "
        f"authorized to perform: kms:Decrypt on resource: {key} "
        "with an explicit deny in a resource-based policy",
    }
    assert "DenyDecryptUnlessPCR0: kms:RecipientAttestation:PCR0 is absent" in kms.log


def test_without_any_statement_for_the_caller_no_resource_based_policy_allows(kms: RunningKms) -> None:
    key = kms.new_key(kms.initial_policy())
    with denied("because no resource-based policy allows the kms:Encrypt action"):
        kms.administrator.encrypt(KeyId=key, Plaintext=b"x")


def test_what_the_account_may_do_is_up_to_iam(kms: RunningKms) -> None:
    key = kms.new_key()
    blob = kms.owner.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    assert kms.parent.decrypt(CiphertextBlob=blob)["Plaintext"] == b"x"
    with denied("because no identity-based policy allows the kms:Decrypt action"):
        kms.owner.decrypt(CiphertextBlob=blob)
    with denied("because no identity-based policy allows the kms:PutKeyPolicy action"):
        kms.parent.put_key_policy(KeyId=key, Policy="{}")


@pytest.mark.parametrize("operation", ["create_key", "list_keys", "list_aliases"])
def test_what_is_about_no_key_is_up_to_iam(kms: RunningKms, operation: str) -> None:
    getattr(kms.administrator, operation)()
    if operation == "create_key":
        with denied(r"kms:CreateKey on resource: \* because no identity-based policy"):
            kms.parent.create_key()


def test_an_alias_needs_iam_and_the_key_policy(kms: RunningKms) -> None:
    key = kms.new_key(kms.initial_policy())
    kms.administrator.create_alias(AliasName="alias/mine", TargetKeyId=key)
    with denied("kms:DeleteAlias"):
        kms.owner.delete_alias(AliasName="alias/mine")


class TestTheReEncryptHole:
    """Under the sample's policy a data key can be moved under another key and read there."""

    def bound(self, kms: RunningKms, policy: KeyPolicy) -> str:
        change = plan_measurements(policy, MEASUREMENTS, parent_arn=kms.identities.parent.role_arn)
        return kms.new_key(change.after)

    def test_it_is_open_under_the_samples_policy(self, kms: RunningKms) -> None:
        key, mine = kms.new_key(sample_policy()), kms.new_key()
        blob = kms.owner.encrypt(KeyId=key, Plaintext=b"secret")["CiphertextBlob"]
        with denied("explicit deny"):
            kms.parent.decrypt(CiphertextBlob=blob)
        moved = kms.parent.re_encrypt(CiphertextBlob=blob, DestinationKeyId=mine)["CiphertextBlob"]
        assert kms.parent.decrypt(CiphertextBlob=moved)["Plaintext"] == b"secret"

    def test_it_is_closed_once_the_policy_is_bound(self, kms: RunningKms) -> None:
        key, mine = self.bound(kms, KeyPolicy.from_json(sample_policy())), kms.new_key()
        blob = kms.owner.encrypt(KeyId=key, Plaintext=b"secret")["CiphertextBlob"]
        for client in (kms.parent, kms.administrator):
            with denied("kms:ReEncryptFrom.*explicit deny"):
                client.re_encrypt(CiphertextBlob=blob, DestinationKeyId=mine)
            with denied("kms:Decrypt.*explicit deny"):
                client.decrypt(CiphertextBlob=blob)


def policy_with(kms: RunningKms, **statement: Any) -> dict[str, Any]:
    """The administrator administers, and one statement more for the parent's use."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"AWS": kms.identities.administrator.role_arn},
                "Action": "kms:*",
                "Resource": "*",
            },
            {
                "Effect": "Allow",
                "Principal": {"AWS": kms.identities.parent.role_arn},
                "Action": ["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*"],
                "Resource": "*",
                **statement,
            },
        ],
    }


# fmt: off
CONDITIONS = [
    # condition on the parent's use, the encryption context that it sends, is it let through
    ({"StringEquals": {"kms:EncryptionContext:app": "x"}}, {"app": "x"}, True),
    ({"StringEquals": {"kms:EncryptionContext:app": "x"}}, {"app": "y"}, False),
    ({"StringEquals": {"kms:EncryptionContext:app": "x"}}, {}, False),
    ({"StringNotEquals": {"kms:EncryptionContext:app": "x"}}, {}, True),
    ({"ForAllValues:StringEquals": {"kms:EncryptionContextKeys": ["a", "b"]}}, {"a": "1"}, True),
    ({"ForAllValues:StringEquals": {"kms:EncryptionContextKeys": ["a", "b"]}}, {"a": "1", "c": "1"}, False),
    ({"ForAnyValue:StringEquals": {"kms:EncryptionContextKeys": "a"}}, {"a": "1", "c": "1"}, True),
    ({"ForAnyValue:StringEquals": {"kms:EncryptionContextKeys": "A"}}, {"a": "1"}, False),
    ({"Null": {"kms:EncryptionContextKeys": "false"}}, {}, False),
    ({"Null": {"kms:EncryptionContextKeys": "false"}}, {"a": "1"}, True),
    ({"StringEquals": {"kms:CallerAccount": ACCOUNT, "aws:PrincipalAccount": ACCOUNT}}, {}, True),
    ({"StringEquals": {"kms:CallerAccount": "999999999999"}}, {}, False),
    ({"StringEquals": {"kms:ViaService": "ec2.eu-central-1.amazonaws.com"}}, {}, False),
    ({"StringEqualsIfExists": {"kms:ViaService": "ec2.eu-central-1.amazonaws.com"}}, {}, True),
    ({"ArnLike": {"aws:PrincipalArn": f"arn:aws:iam::{ACCOUNT}:role/necli-*"}}, {}, True),
    ({"ArnNotLike": {"aws:PrincipalArn": f"arn:aws:iam::{ACCOUNT}:role/necli-*"}}, {}, False),
    ({"Bool": {"aws:SecureTransport": "true"}}, {}, True),
    ({"Bool": {"aws:SecureTransport": "false"}}, {}, False),
    ({"IpAddress": {"aws:SourceIp": "127.0.0.0/8"}}, {}, True),
    ({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, {}, False),
    ({"DateGreaterThan": {"aws:CurrentTime": "2020-01-01T00:00:00Z"}}, {}, True),
    ({"DateLessThan": {"aws:CurrentTime": "2020-01-01T00:00:00Z"}}, {}, False),
    ({"NumericGreaterThan": {"aws:EpochTime": "1577836800"}}, {}, True),
    ({"StringEquals": {"kms:KeySpec": "SYMMETRIC_DEFAULT", "kms:KeyOrigin": "AWS_KMS"}}, {}, True),
    ({"StringEquals": {"kms:EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}}, {}, True),
    ({"StringLike": {"aws:UserAgent": "Boto3*"}}, {}, True),
    ({"StringEquals": {"aws:RequestedRegion": "eu-central-1"}}, {}, True),
]
# fmt: on


@pytest.mark.parametrize(("condition", "context", "allowed"), CONDITIONS)
def test_a_condition_decides_on_what_the_request_really_is(
    kms: RunningKms, condition: dict[str, Any], context: dict[str, str], allowed: bool
) -> None:
    key = kms.new_key(policy_with(kms, Condition=condition))
    blob = kms.administrator.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext=context)["CiphertextBlob"]
    if allowed:
        opened = kms.parent.decrypt(CiphertextBlob=blob, EncryptionContext=context)
        assert opened["Plaintext"] == b"x"
        kms.parent.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext=context)
    else:
        with denied("no resource-based policy allows the kms:Decrypt action"):
            kms.parent.decrypt(CiphertextBlob=blob, EncryptionContext=context)


def test_a_condition_on_the_alias_used_looks_at_the_request(kms: RunningKms) -> None:
    condition = {"StringEquals": {"kms:RequestAlias": "alias/by-this-name"}}
    key = kms.new_key(policy_with(kms, Condition=condition))
    kms.administrator.create_alias(AliasName="alias/by-this-name", TargetKeyId=key)
    kms.parent.encrypt(KeyId="alias/by-this-name", Plaintext=b"x")
    with denied("kms:Encrypt"):
        kms.parent.encrypt(KeyId=key, Plaintext=b"x")


def test_a_condition_on_the_keys_aliases_looks_at_the_key(kms: RunningKms) -> None:
    condition = {"ForAnyValue:StringLike": {"kms:ResourceAliases": "alias/project-*"}}
    key = kms.new_key(policy_with(kms, Condition=condition))
    with denied("kms:Encrypt"):
        kms.parent.encrypt(KeyId=key, Plaintext=b"x")
    kms.administrator.create_alias(AliasName="alias/project-a", TargetKeyId=key)
    kms.parent.encrypt(KeyId=key, Plaintext=b"x")


def test_reencrypt_needs_from_on_the_source_and_to_on_the_destination(kms: RunningKms) -> None:
    def only(*actions: str) -> str:
        return kms.new_key(policy_with(kms, Action=["kms:Encrypt", *actions]))

    out, into, neither = only("kms:ReEncryptFrom"), only("kms:ReEncryptTo"), only("kms:Decrypt")
    blob = kms.parent.encrypt(KeyId=out, Plaintext=b"x")["CiphertextBlob"]
    kms.parent.re_encrypt(CiphertextBlob=blob, DestinationKeyId=into)
    with denied(f"kms:ReEncryptTo on resource: {neither}"):
        kms.parent.re_encrypt(CiphertextBlob=blob, DestinationKeyId=neither)
    blob = kms.parent.encrypt(KeyId=neither, Plaintext=b"x")["CiphertextBlob"]
    with denied(f"kms:ReEncryptFrom on resource: {neither}"):
        kms.parent.re_encrypt(CiphertextBlob=blob, DestinationKeyId=into)


def test_reencrypt_on_the_same_key_is_a_condition(kms: RunningKms) -> None:
    condition = {"BoolIfExists": {"kms:ReEncryptOnSameKey": "true"}}
    key, other = (kms.new_key(policy_with(kms, Condition=condition)) for _ in range(2))
    blob = kms.parent.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    kms.parent.re_encrypt(CiphertextBlob=blob, DestinationKeyId=key)
    with denied("kms:ReEncryptFrom"):
        kms.parent.re_encrypt(CiphertextBlob=blob, DestinationKeyId=other)


def test_who_may_not_use_a_key_is_not_told_its_state(kms: RunningKms) -> None:
    key = kms.new_key(kms.initial_policy())
    kms.administrator.disable_key(KeyId=key)
    with denied("kms:Encrypt"):
        kms.parent.encrypt(KeyId=key, Plaintext=b"x")
