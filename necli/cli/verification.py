"""What the commands that verify documents share: whom to trust, what to expect, when."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from necli.cli.common import settings_of
from necli.errors import InputError, UsageError

if TYPE_CHECKING:
    from necli.attestation import TrustedRoot

EifOption = Annotated[Path | None, typer.Option(help="The image that must have been measured.")]
Pcr0Option = Annotated[str | None, typer.Option(metavar="HEX", help="Its PCR0, instead of --eif.")]
Pcr1Option = Annotated[str | None, typer.Option(metavar="HEX", help="Its PCR1, with --pcr0.")]
Pcr2Option = Annotated[str | None, typer.Option(metavar="HEX", help="Its PCR2, with --pcr0.")]
RootOption = Annotated[
    str, typer.Option(metavar="nitro|simulated|PEM", help="The root to trust; a file is a SIMULATED one.")
]

_PCR_HEX_DIGITS = 96


def expected_pcrs(eif: Path | None, given: Mapping[int, str | None]) -> dict[int, bytes] | None:
    """From an image or from options; None where there is neither.

    :raises UsageError: there are both, or PCR0 is missing.
    """
    if eif and any(given.values()):
        raise UsageError("--eif and --pcr0 exclude each other", hint="give one of them")
    if eif:
        from necli.eif import read_eif

        return read_eif(eif).measurements.pcrs()
    if not given[0]:
        if any(given.values()):
            raise UsageError("--pcr1 and --pcr2 need --pcr0")
        return None
    return {index: _register(index, text) for index, text in given.items() if text}


def nothing_expected(what: str) -> UsageError:
    """Without something to expect, any enclave's signature would do."""
    return UsageError(
        f"{what} proves nothing without the image that is expected",
        hint="add --eif FILE, or --pcr0 HEX with --pcr1 and --pcr2",
    )


def trusted_root(ctx: typer.Context, root: str) -> TrustedRoot:
    """`nitro`, `simulated` for this state folder's own, or the path of a simulated one."""
    from necli.attestation import NITRO_ROOT, SimulatedRoot

    if root == "nitro":
        return NITRO_ROOT
    own = settings_of(ctx).home.pki / "simulated-root.pem"
    return SimulatedRoot.from_pem(read_file(own if root == "simulated" else Path(root)))


def moment(text: str) -> datetime:
    """A time as ISO 8601 writes it; UTC, where it doesn't say."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError as exc:
        raise UsageError(f"--at {text} is no time", hint="for example --at 2026-11-24T12:00:00Z") from exc
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def read_file(path: Path) -> bytes:
    from necli.home import host_errors

    if not path.is_file():
        raise InputError(f"there is no file {path}", hint="check the path", code="no_such_file")
    with host_errors(f"can't read {path}"):
        return path.read_bytes()


def _register(index: int, text: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(text) != _PCR_HEX_DIGITS or not value:
        raise UsageError(f"--pcr{index} must be {_PCR_HEX_DIGITS} hexadecimal digits")
    return value
