"""`necli attest`: ask an enclave who it is, and check each thing that its document says."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from necli.cli.common import JsonOption, terminal, workload_of
from necli.cli.data import EnclaveOption
from necli.cli.verification import (
    EifOption,
    Pcr0Option,
    Pcr1Option,
    Pcr2Option,
    expected_pcrs,
    moment,
    nothing_expected,
    read_file,
    trusted_root,
)
from necli.errors import AttestationInvalid, UsageError

if TYPE_CHECKING:
    from necli.attestation import AttestationDocument, TrustedRoot
    from necli.cli.render import Terminal

app = typer.Typer()

_NONCE_BYTES = 32
_MAX_BYTES = 512
_STEP_WIDTH = 22


@dataclass(frozen=True)
class _Given:
    """A document, and what it must say."""

    data: bytes
    root: TrustedRoot
    expected: dict[int, bytes]
    nonce: bytes | None
    user_data: bytes | None


@app.command()
def attest(
    ctx: typer.Context,
    nonce: Annotated[
        str | None, typer.Option(metavar="HEX", help="Must be in it.", show_default="a random one")
    ] = None,
    user_data: Annotated[str | None, typer.Option(metavar="TEXT", help="To have attested too.")] = None,
    file: Annotated[Path | None, typer.Option(help="Verify this document; ask no enclave.")] = None,
    eif: EifOption = None,
    pcr0: Pcr0Option = None,
    pcr1: Pcr1Option = None,
    pcr2: Pcr2Option = None,
    root: Annotated[
        str | None,
        typer.Option(
            metavar="nitro|simulated|PEM",
            help="The root to trust; a file is a SIMULATED one.",
            show_default="the target's; with --file, nitro",
        ),
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Verify as of then.", show_default="now")
    ] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep the document.")] = None,
    enclave: EnclaveOption = "necli",
    json: JsonOption = False,
) -> None:
    """Fetch an attestation document and verify it, step by step.

    A running enclave must have been booted from the image that was built, unless --eif or --pcr0 name
    another one. A stored document, for example of a real Nitro Enclave, is verified with --file.
    """
    from necli.home import write_atomically

    screen = terminal(ctx)
    pcrs = expected_pcrs(eif, {0: pcr0, 1: pcr1, 2: pcr2})
    if file:
        if pcrs is None:
            raise nothing_expected("a document")
        given = _stored(file, trusted_root(ctx, root or "nitro"), pcrs, nonce, user_data)
    else:
        given = _fetched(ctx, enclave, root, pcrs, nonce, user_data)
    if save:
        write_atomically(save, given.data, mode=0o644)
    document = _verify(screen, given, at)
    if screen.json:
        screen.print_json(_to_json(document, given))
    else:
        pcrs_shown = {f"  PCR{index}": value.hex() for index, value in given.expected.items()}
        made_at = document.timestamp.isoformat()
        screen.facts({"  module id": document.module_id, "  made at": made_at, **pcrs_shown})
    if given.root.simulated:
        screen.banner()


def _stored(
    file: Path, root: TrustedRoot, expected: dict[int, bytes], nonce: str | None, user_data: str | None
) -> _Given:
    from necli.workflows.attest import attested_user_data

    attested = None if user_data is None else attested_user_data(user_data.encode())
    return _Given(read_file(file), root, expected, None if nonce is None else _bytes(nonce), attested)


def _fetched(
    ctx: typer.Context,
    enclave: str,
    root: str | None,
    expected: dict[int, bytes] | None,
    nonce: str | None,
    user_data: str | None,
) -> _Given:
    from necli.workflows.attest import attested_user_data, fetch_document

    workload = workload_of(ctx)
    expected = expected or workload.measured_build().measurements.pcrs()
    trusted = trusted_root(ctx, root) if root else workload.backend.attestation_roots()[0]
    sent = os.urandom(_NONCE_BYTES) if nonce is None else _bytes(nonce)
    text = (user_data or "").encode()
    data = fetch_document(workload, enclave, nonce=sent, user_data=text)
    return _Given(data, trusted, expected, sent, attested_user_data(text))


def _verify(screen: Terminal, given: _Given, at: str | None) -> AttestationDocument:
    """Verify, and show how far it got.

    :raises AttestationInvalid: a step failed.
    """
    from necli.attestation import STEPS, AttestationDocument, passed_steps, verify_document

    try:
        document = verify_document(
            given.data,
            roots=[given.root],
            expected=given.expected,
            at=moment(at) if at else None,
            nonce=given.nonce,
            user_data=given.user_data,
        )
    except AttestationInvalid as exc:
        _show_steps(screen, given, passed_steps(exc), failed=True)
        if exc.code == "expired" and not at:
            made_at = AttestationDocument.parse(given.data).timestamp
            exc.hint = f"a stored document is verified as of its own time: --at {made_at.isoformat()}"
        raise
    _show_steps(screen, given, len(STEPS), failed=False)
    return document


def _show_steps(screen: Terminal, given: _Given, passed: int, *, failed: bool) -> None:
    from necli.attestation import STEPS

    for number, step in enumerate(STEPS[: passed + failed], 1):
        name, _, what = step.title.partition(": ")
        level = "ok" if number <= passed else "failed"
        if number == len(STEPS) and given.nonce is None:
            level, what = "warning", "no --nonce: this may be an answer to somebody else"
        screen.finding(level, f"{number} {name}", what, None, width=_STEP_WIDTH)


def _to_json(document: AttestationDocument, given: _Given) -> dict[str, Any]:
    from necli.attestation import STEPS

    return {
        "verified": True,
        "steps": [step.title for step in STEPS],
        "simulated": given.root.simulated,
        "root": given.root.name,
        "module_id": document.module_id,
        "attested_at": document.timestamp.isoformat(),
        "pcrs": {f"PCR{index}": value.hex() for index, value in document.pcrs.items()},
        "nonce": None if document.nonce is None else document.nonce.hex(),
        "user_data": None if document.user_data is None else document.user_data.hex(),
        "public_key": None if document.public_key is None else document.public_key.hex(),
        "document": base64.b64encode(given.data).decode(),
    }


def _bytes(text: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = bytes(_MAX_BYTES + 1)
    if len(value) > _MAX_BYTES:
        raise UsageError(f"--nonce must be hexadecimal, of {_MAX_BYTES} bytes at most")
    return value
