"""`necli prove`: the parent tries to read the data, and must be refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from necli.cli.common import JsonOption, terminal, workload_of
from necli.cli.data import EnclaveOption

if TYPE_CHECKING:
    from necli.cli.render import Terminal
    from necli.workflows.prove import Proof
    from necli.workflows.workload import Workload

app = typer.Typer()

EXIT_CODES = {"PASS": 0, "FAIL": 10, "INCONCLUSIVE": 11}
_MEANING = {
    "PASS": "the enclave can decrypt, the parent instance can't",
    "FAIL": "what must be refused was not: look at necli policy lint",
    "INCONCLUSIVE": "nothing is proven: something else than the key policy was in the way",
}


@app.command()
def prove(
    ctx: typer.Context,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a report for a security reviewer.")
    ] = None,
    enclave: EnclaveOption = "necli",
    json: JsonOption = False,
) -> None:
    """Show that the parent instance can't decrypt.

    The enclave decrypts a message; then everything is tried that the parent could do to read it or to pass
    off something else. Exit code 0: each attempt met the refusal that belongs to it. 10: one succeeded.
    11: inconclusive, for example because KMS didn't answer.
    """
    screen, workload = terminal(ctx), workload_of(ctx, local_only=True)
    proof = show_attempts(screen, workload, enclave)
    if html:
        from necli.home import write_atomically
        from necli.workflows.report import proof_report

        report = proof_report(workload, enclave, proof, _MEANING[proof.verdict])
        write_atomically(html, report.encode(), mode=0o644)
        screen.say(f"report: {html}")
    if screen.json:
        screen.print_json(proof.to_json())
    if workload.backend.simulated:
        screen.banner()
    raise typer.Exit(EXIT_CODES[proof.verdict])


def show_attempts(screen: Terminal, workload: Workload, enclave: str) -> Proof:
    """Make the attempts, and show each as soon as it was made."""
    from necli.workflows.attacks import ATTACKS
    from necli.workflows.prove import Proof, attempts

    cases, width = [], max(len(attack.name) for attack in ATTACKS)
    for case in attempts(workload, enclave):
        cases.append(case)
        level = {"PASS": "ok", "FAIL": "failed"}.get(case.verdict, "warning")
        unexpected = None if case.verdict == "PASS" else f"expected: {case.expected}"
        screen.finding(level, case.name, case.observed, unexpected, width=width)
    proof = Proof(cases)
    screen.verdict(proof.verdict, _MEANING[proof.verdict])
    return proof
