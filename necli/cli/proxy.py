"""`necli proxy`: the parent's way from an enclave to KMS."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from necli.cli.common import JsonOption, terminal, workload_of

if TYPE_CHECKING:
    from necli.backends import ServiceStatus
    from necli.cli.render import Terminal

app = typer.Typer(help="The parent's proxy, which lets an enclave reach KMS.", no_args_is_help=True)


@app.command()
def start(ctx: typer.Context, json: JsonOption = False) -> None:
    """Start the proxy, and what it leads to, unless they run already."""
    workload = workload_of(ctx)
    workload.backend.ensure_services(workload.progress)
    _show(terminal(ctx), workload.backend.service("proxy"))


@app.command()
def stop(ctx: typer.Context, json: JsonOption = False) -> None:
    """Stop the proxy; KMS goes on."""
    backend = workload_of(ctx).backend
    backend.stop_proxy()
    _show(terminal(ctx), backend.service("proxy"))


@app.command()
def status(ctx: typer.Context, json: JsonOption = False) -> None:
    """Say whether the proxy runs, where it leads and what failed last."""
    _show(terminal(ctx), workload_of(ctx).backend.service("proxy"))


def _show(screen: Terminal, status: ServiceStatus) -> None:
    if screen.json:
        screen.print_json({**asdict(status), "log": status.log and str(status.log)})
        return
    screen.facts(
        {
            "State": f"running, pid {status.pid}" if status.running else "not running",
            "Leads to": f"{status.address}, and nothing else" if status.address else None,
            "Last error": status.last_error,
            "Log": status.log,
        }
    )
