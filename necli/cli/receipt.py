"""`necli receipt`: check later, and elsewhere, what an enclave answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from necli.cli.common import JsonOption, settings_of, terminal
from necli.errors import InputError, UsageError

if TYPE_CHECKING:
    from necli.attestation import TrustedRoot

app = typer.Typer(help="Verify what an enclave answered.", no_args_is_help=True)

_PCR_HEX_DIGITS = 96


@app.callback()
def receipt() -> None:
    """Verify what an enclave answered."""


@app.command()
def verify(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="What necli detect --json printed.")],
    eif: Annotated[Path | None, typer.Option(help="The image that must have given the answer.")] = None,
    pcr0: Annotated[str | None, typer.Option(metavar="HEX", help="Its PCR0, instead of --eif.")] = None,
    pcr1: Annotated[str | None, typer.Option(metavar="HEX", help="Its PCR1, with --pcr0.")] = None,
    pcr2: Annotated[str | None, typer.Option(metavar="HEX", help="Its PCR2, with --pcr0.")] = None,
    message: Annotated[Path | None, typer.Option(help="The message that it must be about.")] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="PEM", help="The SIMULATED root to trust.", show_default="this state folder's own"
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Verify receipts offline: which image, on which input, with which model, answered what, and when."""
    from necli.receipt import find_receipts, input_digest

    screen = terminal(ctx)
    expected = _expected(eif, {0: pcr0, 1: pcr1, 2: pcr2})
    digest = input_digest(_read(message)) if message else None
    roots = _roots(ctx, root)
    verified: list[dict[str, Any]] = []
    for name, found in find_receipts(_read_json(file)):
        from necli.attestation import AttestationDocument

        # Certificates live for hours: they must have been valid when the document was made.
        made_at = AttestationDocument.parse(found.document).timestamp
        document = found.verify(roots=roots, expected=expected, at=made_at, message_digest=digest)
        verified.append(
            {
                "file": name,
                "verified": True,
                "attested_at": document.timestamp.isoformat(),
                "module_id": document.module_id,
                "pcrs": {f"PCR{index}": value.hex() for index, value in expected.items()},
                "input_digest": found.answer.get("input_digest"),
                "model_digest": found.answer.get("model_digest"),
                "objects": len(found.answer.get("objects", [])),
            }
        )
    if screen.json:
        screen.print_json({"receipts": verified})
        return
    for each in verified:
        screen.verified(f"{each['file']}: {each['objects']} objects, as the expected image found them")
        names = ("attested_at", "module_id", "input_digest", "model_digest")
        screen.facts({f"  {name.replace('_', ' ')}": each[name] for name in names})
    screen.banner()


def _expected(eif: Path | None, given: dict[int, str | None]) -> dict[int, bytes]:
    """Without something to expect, any enclave's signature would do: refuse."""
    if eif and any(given.values()):
        raise UsageError("--eif and --pcr0 exclude each other", hint="give one of them")
    if eif:
        from necli.eif import read_eif

        return read_eif(eif).measurements.pcrs()
    if not given[0]:
        raise UsageError(
            "a receipt proves nothing without the image that is expected",
            hint="add --eif FILE, or --pcr0 HEX with --pcr1 and --pcr2",
        )
    return {index: _register(index, text) for index, text in given.items() if text}


def _register(index: int, text: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(text) != _PCR_HEX_DIGITS or not value:
        raise UsageError(f"--pcr{index} must be {_PCR_HEX_DIGITS} hexadecimal digits")
    return value


def _roots(ctx: typer.Context, root: Path | None) -> Sequence[TrustedRoot]:
    from necli.attestation import SimulatedRoot

    path = root or settings_of(ctx).home.pki / "simulated-root.pem"
    return [SimulatedRoot.from_pem(_read(path))]


def _read(path: Path) -> bytes:
    from necli.home import host_errors

    if not path.is_file():
        raise InputError(f"there is no file {path}", hint="check the path", code="no_such_file")
    with host_errors(f"can't read {path}"):
        return path.read_bytes()


def _read_json(path: Path) -> Any:
    import json

    try:
        return json.loads(_read(path))
    except ValueError as exc:
        raise InputError(f"{path} isn't JSON: {exc}", code="not_a_receipt") from exc
