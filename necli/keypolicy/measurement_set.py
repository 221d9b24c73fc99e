"""What one enclave image has to attest: the values of several condition keys, all at once.

PCR0 (and ImageSha384, which KMS gives the same value) covers the whole image, PCR1 and PCR2 its parts, PCR3
the IAM role of the parent instance, PCR8 the certificate that signed the image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from necli.errors import InputError, UsageError
from necli.keypolicy.conditions import Condition
from necli.keypolicy.document import Statement
from necli.measurements import ZERO, Measurements, extend_from_zero

ATTESTED = "kms:RecipientAttestation:"
IMAGE = "ImageSha384"
WHOLE_IMAGE = ("PCR0", IMAGE)
_REGISTER = re.compile(rf"{ATTESTED}(PCR\d+|{IMAGE})", re.IGNORECASE)
_HASH = re.compile(r"[0-9a-f]{96}", re.IGNORECASE)
_CHOICES = {name.lower(): f"PCR{name}" for name in "01238"} | {IMAGE.lower(): IMAGE}


def register_of(condition_key: str) -> str | None:
    """`PCR0` … `PCR31` or `ImageSha384` for a condition key about an attestation; None for any other."""
    match = _REGISTER.fullmatch(condition_key)
    if match is None:
        return None
    return IMAGE if match[1].lower() == IMAGE.lower() else match[1].upper()


def is_hash(value: str) -> bool:
    return _HASH.fullmatch(value) is not None


def is_zero(value: str) -> bool:
    """What an enclave in debug mode attests: it identifies no image at all."""
    return value == ZERO.hex()


def parse_registers(text: str) -> tuple[str, ...]:
    """The registers of `--pcr 0,1,2,8` or `--pcr ImageSha384,8`.

    :raises UsageError: an unknown one, or none that covers the whole image.
    """
    names = [name.strip().lower().removeprefix("pcr") for name in text.split(",")]
    unknown = [name for name in names if name not in _CHOICES]
    if unknown:
        raise UsageError(
            f"{unknown[0]!r} is no register that a key can be bound to", hint="use 0,1,2,3,8 or ImageSha384"
        )
    registers = tuple(dict.fromkeys(_CHOICES[name] for name in names))
    if not set(registers) & set(WHOLE_IMAGE):
        raise UsageError(
            "neither PCR0 nor ImageSha384 is among the registers, and the others don't cover the whole image",
            hint=f"use --pcr 0,{text}",
        )
    return registers


def attested_registers(measurements: Measurements, parent_role_arn: str | None = None) -> dict[str, str]:
    """All that an enclave with these measurements attests and a policy may ask for, in lower-case hex."""
    registers = {f"PCR{index}": value.hex() for index, value in measurements.pcrs().items()}
    if parent_role_arn:
        registers["PCR3"] = extend_from_zero(parent_role_arn.encode()).hex()
    return {**registers, IMAGE: registers["PCR0"]}


@dataclass(frozen=True)
class MeasurementSet:
    """The registers that are asked for together, and the value of each."""

    values: Mapping[str, str]

    @classmethod
    def of(
        cls,
        measurements: Measurements,
        registers: Sequence[str] | None = None,
        *,
        parent_role_arn: str | None = None,
    ) -> MeasurementSet:
        """The set for one image; without `registers` PCR0 to PCR2, and PCR8 where it is signed.

        :raises InputError: a register is asked for that the image hasn't.
        """
        if registers is None:
            return cls({f"PCR{index}": value.hex() for index, value in measurements.pcrs().items()})
        attested = attested_registers(measurements, parent_role_arn)
        missing = [name for name in registers if name not in attested]
        if missing:
            why = "the image isn't signed" if missing == ["PCR8"] else "it isn't known here"
            raise InputError(f"can't bind the key to {missing[0]}: {why}", hint="leave it out of --pcr")
        return cls({name: attested[name] for name in registers})

    def __post_init__(self) -> None:
        if not set(self.values) & set(WHOLE_IMAGE):
            raise InputError("a measurement set has neither PCR0 nor ImageSha384")

    @property
    def image(self) -> str:
        """The hash of the whole image, under either of its names."""
        return self.values.get("PCR0") or self.values[IMAGE]

    def accepts(self, attested: Mapping[str, str]) -> bool:
        return all(attested.get(name) == value for name, value in self.values.items())

    def to_json(self) -> dict[str, str]:
        return dict(self.values)


def asked_for(conditions: Sequence[Condition]) -> dict[str, tuple[str, ...]]:
    """Which values of which registers these conditions name, in lower case."""
    return {
        register: tuple(value.lower() for value in condition.values)
        for condition in conditions
        if (register := register_of(condition.key))
    }


def sets_of(statement: Statement) -> list[MeasurementSet]:
    """The sets that an Allow statement accepts: with several values for several registers, every mixture."""
    asked = asked_for(statement.conditions)
    if not set(asked) & set(WHOLE_IMAGE) or not all(
        is_hash(value) for values in asked.values() for value in values
    ):
        return []
    return [MeasurementSet(dict(zip(asked, values, strict=True))) for values in product(*asked.values())]
