"""Measurements as values."""

from __future__ import annotations

import pytest

from necli.errors import InputError
from necli.measurements import ZERO, Measurements

ONE, TWO, THREE, EIGHT = (bytes([value]) * 48 for value in (1, 2, 3, 8))


def test_they_read_and_print_as_nitro_cli_does():
    unsigned = {
        "HashAlgorithm": "Sha384 { ... }",
        "PCR0": "01" * 48,
        "PCR1": "02" * 48,
        "PCR2": "03" * 48,
    }
    assert Measurements.from_json(unsigned) == Measurements(ONE, TWO, THREE)
    assert Measurements(ONE, TWO, THREE).to_json() == unsigned
    signed = {**unsigned, "PCR8": "08" * 48}
    assert Measurements.from_json(signed).to_json() == signed
    assert Measurements.from_json(signed).pcrs() == {0: ONE, 1: TWO, 2: THREE, 8: EIGHT}


def test_upper_case_digits_are_the_same_value():
    value = dict.fromkeys(("PCR0", "PCR1", "PCR2"), "AB" * 48)
    assert Measurements.from_json(value).to_json()["PCR0"] == "ab" * 48


def test_zero_in_any_register_means_debug_mode():
    assert Measurements(ZERO, TWO, THREE).is_zero
    assert Measurements(ONE, TWO, ZERO).is_zero
    assert not Measurements(ONE, TWO, THREE).is_zero


@pytest.mark.parametrize(
    "digits", ["", "01" * 47, "01" * 49, "0g" * 48, " " + "01" * 47 + "0", 7, ["01" * 48]]
)
def test_what_is_no_digest_is_refused(digits):
    with pytest.raises(InputError, match="PCR1 must be 96 hexadecimal digits"):
        Measurements.from_json({"PCR0": "01" * 48, "PCR1": digits, "PCR2": "01" * 48})


def test_a_missing_register_is_named():
    with pytest.raises(InputError, match="lack PCR2"):
        Measurements.from_json({"PCR0": "01" * 48, "PCR1": "01" * 48})
    with pytest.raises(InputError, match="must be a JSON object, not list"):
        Measurements.from_json([])


def test_a_value_of_the_wrong_length_cannot_exist():
    with pytest.raises(InputError, match="PCR8 must have 48 bytes, not 0"):
        Measurements(ONE, TWO, THREE, b"")
