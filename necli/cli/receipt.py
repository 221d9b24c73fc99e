"""`necli receipt`: check later, and elsewhere, what an enclave answered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from necli.errors import AttestationInvalid, InputError, UsageError

if TYPE_CHECKING:
    from necli.attestation import AttestationDocument, TrustedRoot
    from necli.cli.render import Terminal
    from necli.receipt import Receipt, SealedReceipt

_OPEN = "the data owner checks it with necli receipt open --message"

app = typer.Typer(help="Verify what an enclave answered, and open what it sealed.", no_args_is_help=True)


@app.callback()
def receipt() -> None:
    """Verify what an enclave answered, and open what it sealed."""


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
    from necli.receipt import SealedReceipt, find_receipts, input_digest

    screen = terminal(ctx)
    expected = expected_pcrs(eif, {0: pcr0, 1: pcr1, 2: pcr2})
    if expected is None:
        raise nothing_expected("a receipt")
    digest = input_digest(read_file(message)) if message else None
    trusted = trusted_root(ctx, root)
    verified: list[dict[str, Any]] = []
    for name, found in find_receipts(_read_json(file)):
        if digest and isinstance(found, SealedReceipt):
            raise UsageError(f"{name}: a sealed answer names its message only inside", hint=_OPEN)
        document = _verify(found, trusted, expected, digest)
        verified.append({**_proven(name, document, expected), **_answered(found)})
    _show(screen, verified, trusted)


@app.command("open")
def open_(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="What necli detect --json printed.")],
    key: Annotated[Path, typer.Option(metavar="PRIVATE_KEY", help="The data owner's X25519 key, in PEM.")],
    eif: EifOption = None,
    pcr0: Pcr0Option = None,
    pcr1: Pcr1Option = None,
    pcr2: Pcr2Option = None,
    message: Annotated[Path | None, typer.Option(help="The message that it must be about.")] = None,
    root: RootOption = "simulated",
    json: JsonOption = False,
) -> None:
    """Open answers that were sealed to the data owner, after verifying their receipts."""
    from necli.receipt import SealedReceipt, find_receipts, input_digest
    from necli.sealing import load_private_key, open_answer

    screen = terminal(ctx)
    expected = expected_pcrs(eif, {0: pcr0, 1: pcr1, 2: pcr2})
    if expected is None:
        raise nothing_expected("a receipt")
    private_key, trusted = load_private_key(read_file(key)), trusted_root(ctx, root)
    digest = input_digest(read_file(message)) if message else None
    opened: list[dict[str, Any]] = []
    for name, found in find_receipts(_read_json(file)):
        if not isinstance(found, SealedReceipt):
            raise InputError(f"{name}: this answer isn't sealed", code="not_sealed")
        document = _verify(found, trusted, expected, None)
        answer = open_answer(found.sealed, private_key)
        if digest and answer.get("input_digest") != digest:
            raise AttestationInvalid("the answer is about another message", code="receipt_other_input")
        opened.append({**_proven(name, document, expected), "answer": answer})
    _show_opened(screen, opened, trusted)


def _verify(
    found: Receipt | SealedReceipt, trusted: TrustedRoot, expected: dict[int, bytes], digest: str | None
) -> AttestationDocument:
    from necli.attestation import AttestationDocument
    from necli.receipt import SealedReceipt

    # Certificates live for hours: they must have been valid when the document was made.
    made_at = AttestationDocument.parse(found.document).timestamp
    if isinstance(found, SealedReceipt):
        return found.verify(roots=[trusted], expected=expected, at=made_at)
    return found.verify(roots=[trusted], expected=expected, at=made_at, message_digest=digest)


def _proven(name: str, document: AttestationDocument, expected: dict[int, bytes]) -> dict[str, Any]:
    return {
        "file": name,
        "verified": True,
        "attested_at": document.timestamp.isoformat(),
        "module_id": document.module_id,
        "pcrs": {f"PCR{index}": value.hex() for index, value in expected.items()},
    }


def _answered(found: Receipt | SealedReceipt) -> dict[str, Any]:
    from necli.receipt import SealedReceipt

    if isinstance(found, SealedReceipt):
        return {"sealed": True}
    answer = found.answer
    digests = {name: answer.get(name) for name in ("input_digest", "model_digest")}
    return {**digests, "objects": len(answer.get("objects", []))}


def _show(screen: Terminal, verified: list[dict[str, Any]], trusted: TrustedRoot) -> None:
    if screen.json:
        screen.print_json({"receipts": verified})
        return
    for each in verified:
        what = f"{each['objects']} objects" if "objects" in each else "a sealed answer"
        screen.verified(f"{each['file']}: {what}, as the expected image found them")
        names = ("attested_at", "module_id", "input_digest", "model_digest")
        screen.facts({f"  {name.replace('_', ' ')}": each[name] for name in names if name in each})
    if trusted.simulated:
        screen.banner()


def _show_opened(screen: Terminal, opened: list[dict[str, Any]], trusted: TrustedRoot) -> None:
    if screen.json:
        screen.print_json({"receipts": opened})
        return
    boxes = ("top", "left", "bottom", "right")
    for each in opened:
        rows = [(found["name"], found["score"], *found["box"]) for found in each["answer"]["objects"]]
        title = f"{each['file']}: {len(rows)} object{'' if len(rows) == 1 else 's'}"
        screen.table(title, ("object", "score", *boxes), rows, right=("score", *boxes))
        screen.verified("receipt verified: the expected image gave this answer, sealed to this key")
    if trusted.simulated:
        screen.banner()


def _read_json(path: Path) -> Any:
    import json

    try:
        return json.loads(read_file(path))
    except ValueError as exc:
        raise InputError(f"{path} isn't JSON: {exc}", code="not_a_receipt") from exc
