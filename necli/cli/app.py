"""The program: the options that every command has, from flags, the environment and a file."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import necli
from necli.cli.common import JSON_KEY, JsonOption
from necli.cli.group import WORDS, NecliGroup
from necli.errors import UsageError
from necli.settings import (
    CONFIG_FILE,
    DEFAULT_REGION,
    DEFAULT_TARGET,
    TARGETS,
    Settings,
    find_home,
    read_config,
)

_NEVER_IN_A_FILE = {"config", "json", "version", "yes", "install_completion", "show_completion"}
app = typer.Typer(
    cls=NecliGroup,
    help="Run machine learning on data that nobody on the host may see, in AWS Nitro Enclaves.",
    # Typer's Rich help costs as much time as everything else together.
    rich_markup_mode=None,
    # A bug keeps its plain traceback: Typer's own would print local variables, credentials included.
    pretty_exceptions_enable=False,
    invoke_without_command=True,
)


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a file's name, or a terminal, may know less than Unicode
    app()


def _take_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make the file's values the defaults, before any other option is read."""
    if not ctx.resilient_parsing:
        file = path or Path(CONFIG_FILE)
        config = read_config(file, required=path is not None)
        _refuse_unknown(config, ctx.command, str(file))
        ctx.default_map = config
    return path


def _refuse_unknown(table: Mapping[str, Any], command: Any, where: str) -> None:
    """A misspelt option in the file must not pass for an absent one."""
    options = {param.name for param in command.params} - _NEVER_IN_A_FILE
    for name, value in table.items():
        if isinstance(value, dict) and name in getattr(command, "commands", {}):
            _refuse_unknown(value, command.commands[name], f"{where}: [{name}]")
        elif isinstance(value, dict) or name not in options:
            raise UsageError(
                f"{where}: {name} is unknown", hint="see necli --help, and --help of the command"
            )


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"necli {necli.__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    target: Annotated[
        str, typer.Option(envvar="NECLI_TARGET", metavar="|".join(TARGETS), help="Where enclaves run.")
    ] = DEFAULT_TARGET,
    region: Annotated[
        str, typer.Option(envvar="NECLI_REGION", metavar="NAME", help="The AWS region of the key.")
    ] = DEFAULT_REGION,
    home: Annotated[
        Path | None,
        typer.Option(
            envvar="NECLI_HOME",
            metavar="FOLDER",
            show_default="$XDG_STATE_HOME/necli",
            help="Where necli keeps its state.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            callback=_take_config,
            is_eager=True,
            metavar="FILE",
            show_default=CONFIG_FILE,
            help="A file with options.",
        ),
    ] = None,
    instance: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Run the command on this parent instance, through SSM."),
    ] = None,
    json: JsonOption = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if target not in TARGETS:
        raise UsageError(f"there is no target {target!r}", hint="use --target local")
    ctx.obj = Settings(
        home=find_home(os.environ, home),
        target=target,
        region=region,
        json=bool(json or ctx.meta.get(JSON_KEY)),
    )
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
    elif instance:
        from necli.cli.instance import run_there

        run_there(ctx, instance, ctx.meta[WORDS])
