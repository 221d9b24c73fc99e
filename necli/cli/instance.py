"""`--instance`: the same command line, on the parent instance."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from necli.cli.common import settings_of
from necli.errors import UsageError

_BY_HAND = {"encrypt", "detect", "demo", "receipt", "eif", "stack"}
"""They read or write files of this machine, or have no use for the instance."""


def run_there(ctx: typer.Context, instance: str, words: Sequence[str]) -> None:
    """Run it, show what it prints, and end.

    :raises UsageError: it needs files of this machine.
    """
    from necli.aws import open_client
    from necli.nitro.remote import RemoteHost

    settings = settings_of(ctx)
    if words[0] in _BY_HAND:
        raise UsageError(
            f"necli {words[0]} works on files of this machine, which SSM can't carry",
            hint=f"run it without --instance, or there: aws ssm start-session --target {instance}",
        )
    json = ["--json"] if settings.json and "--json" not in words else []
    argv = ["necli", "--target", "nitro", "--region", settings.region, *json, *words]
    RemoteHost(open_client("ssm", settings.region), instance).run(
        argv, lambda text: typer.echo(text, nl=False), lambda text: typer.echo(text, nl=False, err=True)
    )
    raise typer.Exit
