"""`necli receipt`: check later, and elsewhere, what an enclave answered."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from necli.cli.common import JsonOption, terminal
from necli.cli.verification import (
    EifOption,
    Pcr0Option,
    Pcr1Option,
    Pcr2Option,
    RootOption,
    expected_pcrs,
    nothing_expected,
    read_file,
    trusted_root,
)
from necli.errors import InputError

app = typer.Typer(help="Verify what an enclave answered.", no_args_is_help=True)


@app.callback()
def receipt() -> None:
    """Verify what an enclave answered."""


@app.command()
def verify(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="What necli detect --json printed.")],
    eif: EifOption = None,
    pcr0: Pcr0Option = None,
    pcr1: Pcr1Option = None,
    pcr2: Pcr2Option = None,
    message: Annotated[Path | None, typer.Option(help="The message that it must be about.")] = None,
    root: RootOption = "simulated",
    json: JsonOption = False,
) -> None:
    """Verify receipts offline: which image, on which input, with which model, answered what, and when."""
    from necli.receipt import find_receipts, input_digest

    screen = terminal(ctx)
    expected = expected_pcrs(eif, {0: pcr0, 1: pcr1, 2: pcr2})
    if expected is None:
        raise nothing_expected("a receipt")
    digest = input_digest(read_file(message)) if message else None
    trusted = trusted_root(ctx, root)
    verified: list[dict[str, Any]] = []
    for name, found in find_receipts(_read_json(file)):
        from necli.attestation import AttestationDocument

        # Certificates live for hours: they must have been valid when the document was made.
        made_at = AttestationDocument.parse(found.document).timestamp
        document = found.verify(roots=[trusted], expected=expected, at=made_at, message_digest=digest)
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
    if trusted.simulated:
        screen.banner()


def _read_json(path: Path) -> Any:
    import json

    try:
        return json.loads(read_file(path))
    except ValueError as exc:
        raise InputError(f"{path} isn't JSON: {exc}", code="not_a_receipt") from exc
