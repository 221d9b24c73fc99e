"""What every command shares: its settings, its terminal and the options that mean the same everywhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, cast

import typer

from necli.errors import UsageError
from necli.settings import Settings

if TYPE_CHECKING:
    from necli.cli.render import Terminal
    from necli.workflows.workload import Workload

JSON_KEY = "necli.json"
"""Where the command line keeps the fact that `--json` was given, before any option is parsed."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
"""For the help and the parser only: read it as `settings_of(ctx).json`."""

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]


def settings_of(ctx: typer.Context) -> Settings:
    return cast(Settings, ctx.find_root().obj)


def terminal(ctx: typer.Context) -> Terminal:
    """The screen of this run; one for all commands of a process."""
    from necli.cli.render import Terminal

    root = ctx.find_root()
    return cast(Terminal, root.meta.setdefault("necli.terminal", Terminal(json=settings_of(ctx).json)))


def workload_of(ctx: typer.Context, *, local_only: bool = False) -> Workload:
    """The workload that the settings name.

    :raises UsageError: the command isn't there on that target.
    """
    from necli.backends import open_backend
    from necli.workflows.workload import Workload

    settings = settings_of(ctx)
    if local_only and settings.target != "local":
        raise UsageError(
            f"{ctx.info_name} isn't available on the {settings.target} target in this version",
            hint="use --target local, which runs the same code on this machine",
            code="target_unavailable",
        )
    backend = open_backend(settings.target, settings.home, settings.region)
    return Workload(settings.home, settings.target, backend, terminal(ctx).progress)


def confirm(question: str, yes: bool) -> None:
    """Ask on the terminal before something is destroyed, unless `yes` says that it was asked.

    :raises UsageError: there is nobody to ask.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("this needs a yes, and there is no terminal to ask on", hint="add --yes")
    typer.echo(question, err=True)
    typer.confirm("Go on?", abort=True, err=True)
