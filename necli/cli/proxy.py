"""`necli proxy`: the parent's way from an enclave to KMS."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from necli.cli.common import JsonOption, settings_of, terminal, workload_of
from necli.errors import UsageError

if TYPE_CHECKING:
    from necli.backends import ServiceStatus
    from necli.cli.render import Terminal
    from necli.nitro.proxy import NitroProxy

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


@app.command()
def run(ctx: typer.Context) -> None:
    """On nitro: keep the proxy running in the foreground, until a signal; for systemd."""
    _nitro_proxy(ctx).run()


@app.command()
def unit(
    ctx: typer.Context,
    user: Annotated[str, typer.Option(help="Who it runs as.")] = "ec2-user",
) -> None:
    """On nitro: print a systemd unit that keeps the proxy running from boot on."""
    program = Path(sys.argv[0]).absolute()
    state = settings_of(ctx).home.state
    typer.echo(_nitro_proxy(ctx).unit(necli=program, user=user, state=state), nl=False)


def _nitro_proxy(ctx: typer.Context) -> NitroProxy:
    from necli.nitro.proxy import NitroProxy

    settings = settings_of(ctx)
    if settings.target != "nitro":
        raise UsageError("only vsock-proxy needs that", hint="use --target nitro, or necli proxy start")
    return NitroProxy(settings.home.proxy, settings.region)


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
