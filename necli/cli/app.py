"""The command line: its options for every command, its commands, and how errors become exit codes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

import necli
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


@dataclass(frozen=True)
class Part:
    """Where a command, or the group of commands of a noun, is written."""

    module: str
    summary: str
    """Its line in `necli --help`, which imports none of the modules; a test holds both together."""
    is_noun: bool = False


SECTIONS = {
    "Everything at once": {
        "demo": Part("demo", "The whole life of an encrypted photo, from setup to proof."),
        "up": Part("lifecycle", "Setup, build, run and policy update, as far as needed."),
        "down": Part("lifecycle", "Stop the enclaves and the services; nothing is removed."),
        "status": Part("lifecycle", "What there is, and what to do next."),
        "doctor": Part("lifecycle", "Look for what stands in the way, and say what helps."),
        "cleanup": Part("lifecycle", "Remove everything; asks before it destroys a key."),
    },
    "Step by step": {
        "setup": Part("lifecycle", "Start the services and make the key."),
        "build": Part("lifecycle", "Build the enclave image, and measure it."),
        "policy": Part("policy", "The key policy, and binding it to the built image.", is_noun=True),
        "encrypt": Part("data", "Encrypt an image for the enclave, as the data owner."),
        "detect": Part("data", "Find objects in photos, inside the enclave."),
        "prove": Part("prove", "Show that the parent instance can't decrypt."),
    },
    "Parts": {
        "model": Part("model", "List, fetch and check object-detection models.", is_noun=True),
        "enclave": Part("enclave", "Start, stop and look at enclaves.", is_noun=True),
        "proxy": Part("proxy", "The parent's proxy, which lets an enclave reach KMS.", is_noun=True),
        "eif": Part("eif", "Look into enclave image files.", is_noun=True),
        "receipt": Part("receipt", "Verify what an enclave answered.", is_noun=True),
        "stack": Part("stack", "The nitro target's CloudFormation stack; check a template.", is_noun=True),
    },
}
_EVERYWHERE = ("--target", "--region", "--home", "--config")
_NEVER_IN_A_FILE = {"config", "json", "version", "yes", "install_completion", "show_completion"}
INTERRUPTED = 130


class NecliGroup(TyperGroup):
    """The whole command line. Errors end here, as two lines (or as JSON) and an exit code."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Commands()

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


class _Commands(MutableMapping[str, Any]):
    """The commands by name; each is imported when it is asked for."""

    def __init__(self) -> None:
        self._parts = {name: part for parts in SECTIONS.values() for name, part in parts.items()}
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = _load(name, self._parts[name])
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _load(name: str, part: Part) -> Any:
    frame = typer.Typer(rich_markup_mode=None, add_completion=False)
    frame.add_typer(import_module(f"necli.cli.{part.module}").app, name=name if part.is_noun else None)
    return get_group(frame).commands[name]


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
    """The reader of our output went away: end quietly, as if by SIGPIPE."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 141
