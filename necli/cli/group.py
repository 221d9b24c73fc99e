"""How a command line is taken apart, and how errors become exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping, Sequence
from typing import Any, cast

import typer
from typer.core import TyperGroup

from necli.cli.common import JSON_KEY
from necli.cli.parts import SECTIONS, Commands
from necli.errors import NecliError, UsageError

_EVERYWHERE = ("--target", "--region", "--home", "--config", "--instance")
WORDS = "necli.words"
"""Where the command line keeps the command with its own arguments, for an instance that is to run it."""
INTERRUPTED = 130


class NecliGroup(TyperGroup):
    """The whole command line. Errors end here, as two lines (or as JSON) and an exit code."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = cast(MutableMapping[str, Any], Commands())

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
        rest = super().parse_args(ctx, args)
        ctx.meta[WORDS] = [*ctx._protected_args, *ctx.args]
        return rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # before Typer sees it and calls it a failure
            raise typer.Exit(_nobody_reads()) from None

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.commands))
        for title, parts in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<{width}}", part.summary) for name, part in parts.items()])


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
    """The reader of our output went away: end quietly, as if by SIGPIPE."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 141
