"""Several images side by side, the registers that a key can be bound to, and the old image retired."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from necli.errors import InputError, MeasurementMismatch, NotReady, UsageError
from necli.keypolicy import KeyPolicy, evaluate, initial_policy, plan_measurements
from necli.keypolicy.measurement_set import MeasurementSet, attested_registers, parse_registers
from necli.keypolicy.plan import live_sets
from necli.keypolicy.simulation import request_of
from necli.keypolicy.stages import retire, retire_others, stage
from necli.measurements import ZERO, Measurements

ACCOUNT = "111122223333"
KEY = f"arn:aws:kms:eu-central-1:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
PARENT = f"arn:aws:iam::{ACCOUNT}:role/parent"
FIRST = Measurements(b"\x01" * 48, b"\x02" * 48, b"\x03" * 48)
SECOND = Measurements(b"\x11" * 48, b"\x12" * 48, b"\x13" * 48)
SIGNED = Measurements(b"\x21" * 48, b"\x22" * 48, b"\x23" * 48, b"\x28" * 48)


def new_policy() -> KeyPolicy:
    who = {"admin_arn": f"{PARENT}-admin", "owner_arn": f"{PARENT}-owner", "parent_arn": PARENT}
    return initial_policy(**who, account=ACCOUNT)


def bound_to(*measurements: Measurements, registers: str | None = None) -> KeyPolicy:
    sets = [chosen(each, registers) for each in measurements]
    return plan_measurements(new_policy(), sets, parent_arn=PARENT).after


def chosen(measurements: Measurements, registers: str | None = None) -> MeasurementSet:
    names = parse_registers(registers) if registers else None
    return MeasurementSet.of(measurements, names, parent_role_arn=PARENT)


def decrypts(policy: KeyPolicy, measurements: Measurements, role: str = PARENT, **changed: str) -> bool:
    attested = {**attested_registers(measurements, role), **changed}
    return evaluate(policy, request_of(PARENT, "kms:Decrypt", KEY, attested)).allowed


def sids(policy: KeyPolicy) -> list[str]:
    return [statement.sid or "" for statement in policy.statements]


class TestSeveralImages:
    def test_each_has_a_statement_of_its_own(self) -> None:
        both = bound_to(FIRST, SECOND)
        assert [sid for sid in sids(both) if sid.startswith("Enclave")] == [
            "EnclaveDecrypt",
            "EnclaveDecrypt2",
        ]
        assert live_sets(both) == [chosen(FIRST), chosen(SECOND)]

    @pytest.mark.parametrize("mixture", list(product((FIRST, SECOND), repeat=3)))
    def test_no_mixture_of_them_decrypts(self, mixture: tuple[Measurements, ...]) -> None:
        mixed = Measurements(mixture[0].pcr0, mixture[1].pcr1, mixture[2].pcr2)
        assert decrypts(bound_to(FIRST, SECOND), mixed) == (mixed in (FIRST, SECOND))

    def test_a_signed_one_beside_an_unsigned_one_is_still_asked_for_its_certificate(self) -> None:
        both = bound_to(FIRST, SIGNED)
        assert "DenyDecryptUnlessPCR8" not in sids(both)
        assert decrypts(both, FIRST)
        assert decrypts(both, SIGNED)
        assert not decrypts(both, SIGNED, PCR8="ab" * 48)

    def test_one_by_pcr0_and_one_by_its_other_name_are_both_denied_to_everybody_else(self) -> None:
        sets = [chosen(FIRST), chosen(SECOND, "ImageSha384")]
        both = plan_measurements(new_policy(), sets, parent_arn=PARENT).after
        assert decrypts(both, FIRST)
        assert decrypts(both, SECOND)
        attested = attested_registers(SIGNED)
        decision = evaluate(both, request_of(PARENT, "kms:Decrypt", KEY, attested))
        assert decision.kind == "explicit_deny"

    def test_the_same_image_twice_is_one(self) -> None:
        assert bound_to(FIRST, FIRST).to_json() == bound_to(FIRST).to_json()


class TestStaging:
    def test_the_next_image_decrypts_beside_the_present_one(self) -> None:
        staged = stage(bound_to(FIRST), chosen(SECOND), parent_arn=PARENT).after
        assert decrypts(staged, FIRST)
        assert decrypts(staged, SECOND)

    def test_an_image_that_is_in_force_already_changes_nothing(self) -> None:
        assert stage(bound_to(FIRST, SECOND), chosen(FIRST), parent_arn=PARENT).unchanged

    def test_on_a_new_key_it_takes_the_placeholders_place(self) -> None:
        staged = stage(new_policy(), chosen(FIRST), parent_arn=PARENT)
        assert staged.after.to_json() == bound_to(FIRST).to_json()

    def test_zeros_are_refused(self) -> None:
        zeros = MeasurementSet.of(Measurements(ZERO, ZERO, ZERO))
        with pytest.raises(MeasurementMismatch, match="debug mode"):
            stage(bound_to(FIRST), zeros, parent_arn=PARENT)


class TestRetiring:
    def test_by_the_beginning_of_its_pcr0(self) -> None:
        retired = retire(bound_to(FIRST, SECOND), "0101", parent_arn=PARENT).after
        assert retired.to_json() == bound_to(SECOND).to_json()
        assert not decrypts(retired, FIRST)

    def test_everything_but_the_built_image(self) -> None:
        three = bound_to(FIRST, SECOND, SIGNED)
        retired = retire_others(three, attested_registers(SECOND), parent_arn=PARENT).after
        assert live_sets(retired) == [chosen(SECOND)]
        assert sids(retired) == sids(new_policy())

    @pytest.mark.parametrize("prefix", ["ff", ""])
    def test_none_or_several_that_begin_so_is_an_error(self, prefix: str) -> None:
        with pytest.raises(InputError, match=r"(no|2) measurement sets in force"):
            retire(bound_to(FIRST, SECOND), prefix, parent_arn=PARENT)

    def test_the_last_one_stays(self) -> None:
        with pytest.raises(InputError, match="only measurement set"):
            retire(bound_to(FIRST), "01", parent_arn=PARENT)

    def test_nothing_is_retired_for_an_image_that_was_not_staged(self) -> None:
        with pytest.raises(NotReady, match="without the others nothing could decrypt") as caught:
            retire_others(bound_to(FIRST), attested_registers(SECOND), parent_arn=PARENT)
        assert caught.value.hint == "run necli policy stage first"


class TestRegisters:
    @pytest.mark.parametrize(
        ("asked", "names"),
        [
            ("0", ["PCR0"]),
            ("0,1,2", ["PCR0", "PCR1", "PCR2"]),
            ("PCR0, pcr8,0", ["PCR0", "PCR8"]),
            ("0,3", ["PCR0", "PCR3"]),
            ("imagesha384,8", ["ImageSha384", "PCR8"]),
        ],
    )
    def test_the_key_is_bound_to_those_that_were_asked_for(self, asked: str, names: list[str]) -> None:
        bound = bound_to(SIGNED, registers=asked)
        assert [sid for sid in sids(bound) if sid.startswith("Deny")] == [
            f"DenyDecryptUnless{n}" for n in names
        ]
        assert list(live_sets(bound)[0].values) == names
        assert decrypts(bound, SIGNED)
        for name in names:
            assert not decrypts(bound, SIGNED, **{name: "ab" * 48})

    def test_a_register_that_was_not_asked_for_may_be_anything(self) -> None:
        assert decrypts(bound_to(SIGNED, registers="0"), SIGNED, PCR1="ab" * 48, PCR8="ab" * 48)

    def test_pcr3_is_the_hash_of_the_parents_role(self) -> None:
        bound = bound_to(FIRST, registers="0,3")
        assert decrypts(bound, FIRST)
        assert not decrypts(bound, FIRST, role=f"{PARENT}-of-somebody-else")

    @pytest.mark.parametrize("text", ["4", "0,9", "x", "", "0,,1"])
    def test_other_registers_are_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="no register that a key can be bound to"):
            parse_registers(text)

    @pytest.mark.parametrize("text", ["8", "1,2", "3"])
    def test_registers_that_do_not_cover_the_whole_image_are_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="don't cover the whole image") as caught:
            parse_registers(text)
        assert caught.value.hint == f"use --pcr 0,{text}"

    def test_an_unsigned_image_has_no_certificate_to_be_bound_to(self) -> None:
        with pytest.raises(InputError, match="PCR8: the image isn't signed"):
            chosen(FIRST, "0,8")

    def test_a_statement_with_several_values_accepts_every_mixture(self) -> None:
        body: Any = bound_to(FIRST).to_json()
        allow = next(s for s in body["Statement"] if s["Sid"] == "EnclaveDecrypt")
        conditions = allow["Condition"]["StringEqualsIgnoreCase"]
        for name, value in chosen(SECOND).values.items():
            conditions[f"kms:RecipientAttestation:{name}"] = [chosen(FIRST).values[name], value.upper()]
        mixed = [Measurements(a.pcr0, b.pcr1, c.pcr2) for a, b, c in product((FIRST, SECOND), repeat=3)]
        assert live_sets(KeyPolicy.from_json(body)) == [chosen(each) for each in mixed]
