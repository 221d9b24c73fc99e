"""`necli setup` on the nitro target: the stack from outside, the host on the parent instance."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass
from pathlib import Path

import typer

from necli.cli.common import settings_of, terminal
from necli.errors import UsageError


@dataclass(frozen=True)
class NitroOptions:
    """What `necli setup` takes for this target only."""

    owner: str | None = None
    administrator: str | None = None
    instance_type: str | None = None
    enclave_cpus: int | None = None
    enclave_memory: int | None = None
    name: str | None = None
    outputs: Path | None = None
    from_outside: bool | None = None
    dry_run: bool = False

    def refuse_on_local(self) -> None:
        """:raises UsageError: one was given for a target that has no use for it."""
        if self != NitroOptions():
            raise UsageError(
                "an option was given that only the nitro target has",
                hint="add --target nitro, or leave it out: see necli setup --help",
            )


def set_up_nitro(ctx: typer.Context, options: NitroOptions, *, yes: bool) -> None:
    from necli.nitro.host import Machine, is_ec2_instance

    outside = options.from_outside
    if outside is None:
        outside = not is_ec2_instance(Machine())
    if outside:
        _set_up_stack(ctx, options, yes=yes)
    else:
        _set_up_host(ctx, options)


def _set_up_stack(ctx: typer.Context, options: NitroOptions, *, yes: bool) -> None:
    from necli.cli.stack import set_up_stack
    from necli.workflows.stack import StackParameters

    wanted = StackParameters(
        administrator_arn=options.administrator,
        data_owner_arn=options.owner,
        instance_type=options.instance_type,
        enclave_memory_mib=options.enclave_memory,
        enclave_cpus=options.enclave_cpus,
    )
    set_up_stack(ctx, options.name, wanted, yes=yes, dry_run=options.dry_run)


def _set_up_host(ctx: typer.Context, options: NitroOptions) -> None:
    from necli.nitro.host import Wishes, prepare, this_machine
    from necli.workflows.stack import DEFAULT_NAME, remember_outputs

    screen, settings = terminal(ctx), settings_of(ctx)
    commands: list[str] = []

    def tell(command: str) -> None:
        commands.append(command)
        screen.progress.say(f"{'would run' if options.dry_run else 'runs'}: {command}")

    user = os.environ.get("SUDO_USER") or getpass.getuser()
    wishes = Wishes(user, options.enclave_memory, options.enclave_cpus)
    machine = this_machine(dry_run=options.dry_run, on_command=tell)
    if options.dry_run:
        prepared = prepare(machine, wishes, screen.progress)
    else:
        with settings.home.lock("setup"):
            if options.outputs:
                remember_outputs(
                    settings.home, options.name or DEFAULT_NAME, settings.region, options.outputs
                )
            prepared = prepare(machine, wishes, screen.progress)
    if screen.json:
        screen.print_json(
            {
                "release": prepared.release,
                "memory_mib": prepared.memory.mib,
                "cpus": list(prepared.cpus),
                "log_in_again": prepared.log_in_again,
                "commands": commands,
                "dry_run": options.dry_run,
            }
        )
        return
    screen.facts(
        {
            "system": f"Amazon Linux {prepared.release}",
            "huge pages": str(prepared.memory),
            "CPUs": ", ".join(map(str, prepared.cpus)) or "none",
            "next": "log in again, then necli up" if prepared.log_in_again else "necli up",
        }
    )
