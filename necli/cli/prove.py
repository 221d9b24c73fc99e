"""`necli prove`: the parent tries to read the data, and must be refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from necli.cli.common import JsonOption, terminal, workload_of
from necli.cli.data import EnclaveOption

if TYPE_CHECKING:
    from necli.cli.render import Terminal
    from necli.workflows.prove import Proof

app = typer.Typer()

EXIT_CODES = {"PASS": 0, "FAIL": 10, "INCONCLUSIVE": 11}


@app.command()
def prove(ctx: typer.Context, enclave: EnclaveOption = "necli", json: JsonOption = False) -> None:
    """Show that the parent instance can't decrypt.

    It tries to, with its own credentials, while the enclave decrypts the same data key. Exit code 0: KMS
    refused the parent. 10: it could decrypt. 11: inconclusive, for example because KMS didn't answer.
    """
    from necli.workflows.prove import prove as try_to_decrypt

    screen, workload = terminal(ctx), workload_of(ctx)
    with screen.progress.step("Attempts"):
        proof = try_to_decrypt(workload, enclave)
    if screen.json:
        screen.print_json(proof.to_json())
    else:
        show_proof(screen, proof)
    if workload.backend.simulated:
        screen.banner()
    raise typer.Exit(EXIT_CODES[proof.verdict])


def show_proof(screen: Terminal, proof: Proof) -> None:
    for case in proof.cases:
        passed = case.verdict == "PASS"
        screen.finding(
            {"PASS": "ok", "FAIL": "failed"}.get(case.verdict, "warning"),
            case.name,
            case.observed,
            None if passed else f"expected: {case.expected}",
        )
    meaning = {
        "PASS": "the enclave can decrypt, the parent instance can't",
        "FAIL": "the parent instance can read the data: look at necli policy show",
        "INCONCLUSIVE": "nothing is proven: an attempt failed for another reason than the key policy",
    }
    screen.verdict(proof.verdict, meaning[proof.verdict])
