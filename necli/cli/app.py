"""The command line: its options for every command, its commands, and how errors become exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import necli
from necli.cli import data, demo, eif, lifecycle, policy, prove, receipt
from necli.cli.common import JSON_KEY, JsonOption
from necli.errors import NecliError, UsageError
from necli.settings import (
    CONFIG_FILE,
    DEFAULT_REGION,
    DEFAULT_TARGET,
    TARGETS,
    Settings,
    find_home,
    read_config,
)

# The order and the grouping of `necli --help`.
_SECTIONS = {
    "Everything at once": ("demo", "up", "down", "status", "doctor", "cleanup"),
    "Step by step": ("setup", "build", "policy", "encrypt", "detect", "prove"),
    "Parts": ("model", "enclave", "proxy", "eif", "receipt"),
}
_EVERYWHERE = ("--target", "--region", "--home", "--config")
INTERRUPTED = 130


class NecliGroup(TyperGroup):
    """The whole command line. Errors end here, as two lines (or as JSON) and an exit code."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        as_json = "--json" in _before_dashes(given)
        try:
            code = super().main(options_first(given), *rest, **{**extra, "standalone_mode": False})
            sys.stdout.flush()
        except NecliError as exc:
            code = _show(exc, as_json)
        except typer.TyperException as exc:
            code = _show_usage(exc, as_json)
        except typer.Abort:
            code = INTERRUPTED
        except BrokenPipeError:
            code = _nobody_reads()
        if code == INTERRUPTED:
            print("\ninterrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(code or 0)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[JSON_KEY] = "--json" in _before_dashes(args)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.commands))
        for title, names in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (f"{name:<{width}}", self.commands[name].get_short_help_str(80))
                        for name in names
                        if name in self.commands
                    ]
                )


app = typer.Typer(
    cls=NecliGroup,
    help="Run machine learning on data that nobody on the host may see, in AWS Nitro Enclaves.",
    # Typer's Rich help costs as much time as everything else together.
    rich_markup_mode=None,
    # A bug keeps its plain traceback: Typer's own would print local variables, credentials included.
    pretty_exceptions_enable=False,
    invoke_without_command=True,
)


for _part in (demo, lifecycle, data, prove):
    app.add_typer(_part.app)
app.add_typer(policy.app, name="policy")
app.add_typer(eif.app, name="eif")
app.add_typer(receipt.app, name="receipt")


def main() -> None:
    app()


def _take_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make the file's values the defaults, before any other option is read."""
    if not ctx.resilient_parsing:
        ctx.default_map = read_config(path or Path(CONFIG_FILE), required=path is not None)
    return path


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


def options_first(args: Sequence[str]) -> list[str]:
    """Let the options that every command has stand anywhere on the line, not only before the command."""
    hoisted: list[str] = []
    kept: list[str] = []
    words = iter(args)
    for word in words:
        if word == "--":
            kept += [word, *words]
        elif word in _EVERYWHERE:
            hoisted += [word, *(value for value in [next(words, None)] if value is not None)]
        elif word.startswith(tuple(f"{option}=" for option in _EVERYWHERE)):
            hoisted.append(word)
        else:
            kept.append(word)
    return hoisted + kept


def _before_dashes(args: Sequence[str]) -> Sequence[str]:
    return args[: args.index("--")] if "--" in args else args


def _show(error: NecliError, as_json: bool) -> int:
    from necli.cli.render import Terminal

    Terminal(json=as_json).error(error)
    return error.exit_code


def _show_usage(exc: typer.TyperException, as_json: bool) -> int:
    """A wrong command line, in the same two lines as any other error."""
    context = getattr(exc, "ctx", None)
    if type(exc).__name__ == "NoArgsIsHelpError":
        typer.echo(exc.message, err=True)
        return exc.exit_code
    path = context.command_path if context else "necli"
    _show(UsageError(exc.format_message(), hint=f"see {path} --help"), as_json)
    return exc.exit_code


def _nobody_reads() -> int:
    """The reader of our output went away: end quietly, as other tools do."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 141
