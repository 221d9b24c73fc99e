"""What every command shares: its settings, its terminal and the options that mean the same everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from necli.settings import Settings

if TYPE_CHECKING:
    from necli.cli.render import Terminal

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
