"""Binding policies to measurements: ours, the AWS sample's, and what must stay as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from necli.errors import AccessDenied, MeasurementMismatch, UsageError
from necli.keypolicy import (
    KeyPolicy,
    RequestContext,
    caller_arns,
    check_lock_out,
    evaluate,
    initial_policy,
    plan_measurements,
)
from necli.measurements import ZERO, Measurements

ACCOUNT = "111122223333"
KEY = f"arn:aws:kms:eu-central-1:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
ADMIN = f"arn:aws:iam::{ACCOUNT}:role/admin"
PARENT = f"arn:aws:iam::{ACCOUNT}:role/parent"
OWNER = f"arn:aws:iam::{ACCOUNT}:role/owner"
FIRST = Measurements(b"\x01" * 48, b"\x02" * 48, b"\x03" * 48)
SECOND = Measurements(b"\x11" * 48, b"\x12" * 48, b"\x13" * 48)
SIGNED = Measurements(b"\x21" * 48, b"\x22" * 48, b"\x23" * 48, b"\x28" * 48)
OUR_SIDS = ["EnclaveDecrypt", "DenyDecryptUnlessPCR0", "DenyDecryptUnlessPCR1", "DenyDecryptUnlessPCR2"]

SAMPLE: dict[str, Any] = {
    "Version": "2012-10-17",
    "Id": "key-default-1",
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


def new_policy() -> KeyPolicy:
    return initial_policy(admin_arn=ADMIN, parent_arn=PARENT, owner_arn=OWNER, account=ACCOUNT)


def planned(policy: KeyPolicy, *measurements: Measurements) -> KeyPolicy:
    return plan_measurements(policy, measurements, parent_arn=PARENT).after


def sids(policy: KeyPolicy) -> list[str | None]:
    return [statement.sid for statement in policy.statements]


def may(policy: KeyPolicy, arn: str, action: str, attested: Measurements | None = None) -> bool:
    pcrs = attested.pcrs() if attested else {}
    context = {f"kms:RecipientAttestation:PCR{index}": value.hex() for index, value in pcrs.items()}
    return evaluate(policy, RequestContext(caller_arns(arn), action, KEY, ACCOUNT, context)).allowed


class TestANewKey:
    def test_its_policy_is_one_that_kms_accepts(self) -> None:
        assert list(new_policy().problems()) == []

    def test_nobody_can_decrypt_or_move_its_data_keys(self) -> None:
        for arn in (ADMIN, PARENT, OWNER):
            for action in ("kms:Decrypt", "kms:ReEncryptFrom", "kms:CreateGrant"):
                assert not may(new_policy(), arn, action, FIRST)

    def test_the_administrator_administers_and_does_not_use(self) -> None:
        for action in ("kms:PutKeyPolicy", "kms:DescribeKey", "kms:ScheduleKeyDeletion", "kms:CreateAlias"):
            assert may(new_policy(), ADMIN, action)
        for action in ("kms:Encrypt", "kms:GenerateDataKey"):
            assert not may(new_policy(), ADMIN, action)

    def test_the_owner_encrypts_and_does_not_administer(self) -> None:
        for action in ("kms:GenerateDataKey", "kms:Encrypt", "kms:DescribeKey"):
            assert may(new_policy(), OWNER, action)
        assert not may(new_policy(), OWNER, "kms:PutKeyPolicy")

    def test_binding_it_replaces_in_place_and_adds_nothing(self) -> None:
        bound = planned(new_policy(), FIRST)
        assert sids(bound) == sids(new_policy())
        assert bound.to_json()["Statement"][:3] == new_policy().to_json()["Statement"][:3]

    def test_its_placeholders_are_the_statements_that_a_plan_writes(self) -> None:
        text = planned(new_policy(), FIRST).to_text()
        for value in FIRST.pcrs().values():
            text = text.replace(value.hex(), "necli-no-measurement-yet")
        assert KeyPolicy.from_json(text).to_json() == new_policy().to_json()


class TestABoundKey:
    @pytest.mark.parametrize(
        "attested",
        [
            None,
            SECOND,
            Measurements(ZERO, ZERO, ZERO),
            Measurements(b"\x09" * 48, FIRST.pcr1, FIRST.pcr2),
            Measurements(FIRST.pcr0, b"\x09" * 48, FIRST.pcr2),
            Measurements(FIRST.pcr0, FIRST.pcr1, b"\x09" * 48),
        ],
    )
    def test_only_the_measured_enclave_decrypts(self, attested: Measurements | None) -> None:
        bound = planned(new_policy(), FIRST)
        assert may(bound, PARENT, "kms:Decrypt", FIRST)
        assert not may(bound, PARENT, "kms:Decrypt", attested)

    def test_an_enclave_of_somebody_else_does_not_decrypt(self) -> None:
        assert not may(planned(new_policy(), FIRST), OWNER, "kms:Decrypt", FIRST)

    def test_planning_the_same_again_changes_nothing(self) -> None:
        change = plan_measurements(planned(new_policy(), FIRST), FIRST, parent_arn=PARENT)
        assert change.unchanged
        assert change.diff == ()

    def test_the_same_in_other_words_is_no_change(self) -> None:
        bound = planned(new_policy(), FIRST).to_json()
        reworded = [
            {**s, "Principal": {"AWS": ["*"]}, "Resource": ["*"]} if s["Effect"] == "Deny" else s
            for s in bound["Statement"]
        ]
        policy = KeyPolicy.from_json({**bound, "Statement": reworded})
        assert plan_measurements(policy, FIRST, parent_arn=PARENT).unchanged
        assert not plan_measurements(policy, SECOND, parent_arn=PARENT).unchanged

    def test_the_diff_shows_the_old_and_the_new_value(self) -> None:
        change = plan_measurements(planned(new_policy(), FIRST), SECOND, parent_arn=PARENT)
        assert not change.unchanged
        assert any(line.startswith("-") and FIRST.pcr0.hex() in line for line in change.diff)
        assert any(line.startswith("+") and SECOND.pcr0.hex() in line for line in change.diff)

    def test_two_images_are_accepted_side_by_side_then_one_is_retired(self) -> None:
        both = planned(planned(new_policy(), FIRST), FIRST, SECOND)
        assert may(both, PARENT, "kms:Decrypt", FIRST)
        assert may(both, PARENT, "kms:Decrypt", SECOND)
        retired = planned(both, SECOND)
        assert not may(retired, PARENT, "kms:Decrypt", FIRST)
        assert may(retired, PARENT, "kms:Decrypt", SECOND)

    def test_a_signed_image_is_bound_by_its_certificate_too_and_an_unsigned_one_lets_go_of_it(self) -> None:
        signed = planned(new_policy(), SIGNED)
        assert sids(signed)[-1] == "DenyDecryptUnlessPCR8"
        assert may(signed, PARENT, "kms:Decrypt", SIGNED)
        assert not may(signed, PARENT, "kms:Decrypt", Measurements(SIGNED.pcr0, SIGNED.pcr1, SIGNED.pcr2))
        unsigned = planned(signed, FIRST)
        assert "DenyDecryptUnlessPCR8" not in sids(unsigned)
        assert may(unsigned, PARENT, "kms:Decrypt", FIRST)

    def test_a_mangled_or_repeated_statement_of_ours_is_put_right(self) -> None:
        bound = planned(new_policy(), FIRST).to_json()
        deny = next(s for s in bound["Statement"] if s["Sid"] == "DenyDecryptUnlessPCR0")
        mangled = {**bound, "Statement": [{**deny, "Effect": "Allow"}, *bound["Statement"]]}
        healed = planned(KeyPolicy.from_json(mangled), FIRST)
        assert sids(healed).count("DenyDecryptUnlessPCR0") == 1
        assert not may(healed, PARENT, "kms:Decrypt", SECOND)


class TestTheSamplesPolicy:
    @pytest.mark.parametrize("key", ["PCR0", "ImageSha384"])
    def test_its_placeholder_is_replaced_where_it_stands(self, key: str) -> None:
        document = copy.deepcopy(SAMPLE)
        document["Statement"][1]["Condition"] = {
            "StringNotEqualsIgnoreCase": {f"kms:RecipientAttestation:{key}": "EXAMPLETOBEUPDATED"}
        }
        after = planned(KeyPolicy.from_json(document), FIRST).to_json()
        expected = copy.deepcopy(document["Statement"])
        expected[1]["Condition"]["StringNotEqualsIgnoreCase"] = {
            f"kms:RecipientAttestation:{key}": FIRST.pcr0.hex()
        }
        assert after["Statement"][:2] == expected
        assert [statement["Sid"] for statement in after["Statement"][2:]] == OUR_SIDS
        assert {name: after[name] for name in ("Version", "Id")} == {
            name: document[name] for name in ("Version", "Id")
        }

    def test_the_next_image_is_not_shut_out_by_the_value_put_there_before(self) -> None:
        rolled = planned(planned(KeyPolicy.from_json(SAMPLE), FIRST), SECOND)
        assert may(rolled, PARENT, "kms:Decrypt", SECOND)
        assert not may(rolled, PARENT, "kms:Decrypt", FIRST)
        assert FIRST.pcr0.hex() not in rolled.to_text()

    def test_reencrypt_is_closed(self) -> None:
        after = planned(KeyPolicy.from_json(SAMPLE), FIRST)
        request = RequestContext((PARENT,), "kms:ReEncryptFrom", KEY, ACCOUNT)
        everything = KeyPolicy.from_json(
            {"Statement": {"Effect": "Allow", "Action": "kms:*", "Resource": "*"}}
        )
        assert evaluate(KeyPolicy.from_json(SAMPLE), request, everything).allowed
        assert evaluate(after, request, everything).kind == "explicit_deny"


_FOREIGN = st.fixed_dictionaries(
    {
        "Sid": st.text(alphabet="abc ", min_size=1, max_size=8),
        "Effect": st.sampled_from(["Allow", "Deny"]),
        "Principal": st.sampled_from(["*", {"AWS": ADMIN}, {"AWS": [ADMIN, OWNER]}]),
        "Action": st.sampled_from(["kms:*", ["kms:Decrypt", "kms:Encrypt"], []]),
        "Resource": st.sampled_from(["*", KEY, ["*"]]),
    },
    optional={
        "Condition": st.dictionaries(
            st.sampled_from(["StringEquals", "StringNotEqualsIgnoreCase", "Null"]),
            st.dictionaries(
                st.sampled_from(["kms:RecipientAttestation:PCR0", "kms:ViaService", "kms:CallerAccount"]),
                st.sampled_from(["x", ["y", "z"], "AB" * 48, []]),
            ),
        ),
        "Unknown": st.integers(),
    },
)


@settings(deadline=None)
@given(st.lists(_FOREIGN, max_size=4), st.lists(_FOREIGN, max_size=4), st.sampled_from([FIRST, SIGNED]))
def test_every_other_statement_is_kept_as_it_was_and_where_it_was(
    before: list[dict[str, Any]], after: list[dict[str, Any]], bound: Measurements
) -> None:
    ours = planned(new_policy(), SECOND).to_json()["Statement"][3:]
    policy = KeyPolicy.from_json({"Statement": [*before, *ours, *after], "Id": "kept"})
    result = planned(policy, bound)
    kept = [s for s in result.to_json()["Statement"] if s["Sid"] in OUR_SIDS or "PCR8" not in s["Sid"]]
    assert kept[: len(before)] == before
    assert kept[len(before) + 4 :] == after
    assert result.to_json()["Id"] == "kept"
    assert plan_measurements(result, bound, parent_arn=PARENT).unchanged


def test_zeros_are_refused() -> None:
    with pytest.raises(MeasurementMismatch, match="debug mode"):
        plan_measurements(
            new_policy(), [FIRST, Measurements(ZERO, b"\x02" * 48, b"\x03" * 48)], parent_arn=PARENT
        )


def test_no_measurements_are_refused() -> None:
    with pytest.raises(UsageError, match="no measurements"):
        plan_measurements(new_policy(), [], parent_arn=PARENT)


class TestLockOut:
    SESSION = f"arn:aws:sts::{ACCOUNT}:assumed-role/admin/me"

    def test_who_keeps_put_key_policy_is_not_locked_out(self) -> None:
        check_lock_out(planned(new_policy(), FIRST), self.SESSION, key_arn=KEY)

    def test_who_is_let_in_through_iam_is_not_locked_out(self) -> None:
        check_lock_out(planned(KeyPolicy.from_json(SAMPLE), FIRST), self.SESSION, key_arn=KEY)

    @pytest.mark.parametrize("arn", [PARENT, OWNER, "arn:aws:iam::999999999999:role/admin"])
    def test_who_could_not_change_the_policy_again_is_told(self, arn: str) -> None:
        with pytest.raises(AccessDenied, match="update the key policy in the future"):
            check_lock_out(new_policy(), arn, key_arn=KEY)

    def test_a_deny_of_put_key_policy_locks_out(self) -> None:
        deny = {"Effect": "Deny", "Principal": "*", "Action": "kms:Put*", "Resource": "*"}
        document = {**SAMPLE, "Statement": [*SAMPLE["Statement"], deny]}
        with pytest.raises(AccessDenied, match="update the key policy"):
            check_lock_out(KeyPolicy.from_json(document), self.SESSION, key_arn=KEY)
