"""`necli policy`: who may decrypt, as KMS has it and as necli would write it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from necli.cli.common import JsonOption, terminal, workload_of
from necli.errors import NotReady, UsageError

if TYPE_CHECKING:
    from necli.cli.render import Terminal
    from necli.keypolicy import PolicyChange
    from necli.keypolicy.explain import Explanation
    from necli.measurements import Measurements
    from necli.workflows.workload import Workload

app = typer.Typer(help="The key policy, and binding it to the built image.", no_args_is_help=True)

PcrOption = Annotated[
    str | None,
    typer.Option(
        "--pcr",
        metavar="0,1,2,3,8",
        help="The registers to bind; ImageSha384 is PCR0 by another name.",
        show_default="as now; at first 0,1,2, and 8 for a signed image",
    ),
]
EifOption = Annotated[
    Path | None,
    typer.Option("--eif", metavar="FILE", help="Another enclave image than the one built last."),
]
FileOption = Annotated[
    Path | None,
    typer.Option("--file", metavar="POLICY.json", help="A policy in a file, not the one in force."),
]
BackupOption = Annotated[
    str | None,
    typer.Option("--backup", metavar="NAME", help="What to call the backup.", show_default="the time"),
]


@app.command()
def show(ctx: typer.Context, file: FileOption = None, json: JsonOption = False) -> None:
    """Say who can do what. --json prints the policy itself."""
    from necli.keypolicy.words import statement_in_words, who_can_do_what
    from necli.workflows.policy import read_policy_file, show_policy

    screen = terminal(ctx)
    policy = read_policy_file(file) if file else show_policy(workload_of(ctx))
    if screen.json:
        screen.print_json(policy.to_json())
        return
    screen.heading("Who can do what")
    for doing, who in who_can_do_what(policy, None if file else workload_of(ctx).key().arn):
        screen.say(f"  {doing}: {who}")
    screen.heading("Statements")
    for statement in policy.statements:
        screen.say(f"  {statement.sid or '(no Sid)'}")
        screen.say(f"    {statement_in_words(statement)}")


@app.command()
def plan(
    ctx: typer.Context,
    pcr: PcrOption = None,
    eif: EifOption = None,
    file: FileOption = None,
    json: JsonOption = False,
) -> None:
    """Show what an update would change; change nothing."""
    from necli.workflows.policy import measured, plan_policy

    screen, workload = terminal(ctx), workload_of(ctx)
    change = plan_policy(workload, pcr=pcr, eif=eif, file=file)
    _warn(screen, workload, change, measured(workload, eif))
    if screen.json:
        screen.print_json(_change_json(change))
    else:
        screen.diff(change.diff)
        screen.say(_NOTHING if change.unchanged else "put it in force with: necli policy update")


@app.command()
def update(
    ctx: typer.Context, pcr: PcrOption = None, backup: BackupOption = None, json: JsonOption = False
) -> None:
    """Let the built image decrypt, and no other.

    Statements that necli didn't write stay as they are.
    """
    from necli.workflows.operate import revive_services
    from necli.workflows.policy import plan_policy

    workload = workload_of(ctx)
    with workload.home.lock("policy update"):
        revive_services(workload, "kms")
        change = plan_policy(workload, pcr=pcr)
        _apply(ctx, workload, change, backup, "the key policy is bound to the built image")


@app.command()
def stage(
    ctx: typer.Context,
    pcr: PcrOption = None,
    eif: EifOption = None,
    backup: BackupOption = None,
    json: JsonOption = False,
) -> None:
    """Let the built image decrypt too.

    The start of a rolling upgrade: those that may decrypt now still may.
    """
    from necli.workflows.policy import measured, plan_stage

    workload = workload_of(ctx)
    with workload.home.lock("policy stage"):
        change = plan_stage(workload, pcr=pcr, eif=eif)
        done = "the image may decrypt too; end the upgrade with: necli policy retire"
        _apply(ctx, workload, change, backup, done, measured(workload, eif))


@app.command()
def retire(
    ctx: typer.Context,
    image: Annotated[
        str | None,
        typer.Argument(
            metavar="[PCR0]", help="The beginning of its PCR0.", show_default="all but the built image"
        ),
    ] = None,
    backup: BackupOption = None,
    json: JsonOption = False,
) -> None:
    """Let an image decrypt no longer.

    The end of a rolling upgrade.
    """
    from necli.workflows.policy import plan_retire

    workload = workload_of(ctx)
    with workload.home.lock("policy retire"):
        _apply(ctx, workload, plan_retire(workload, image), backup, "the image may decrypt no longer")


@app.command()
def rollback(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="[BACKUP]", help="Its name.", show_default="the last one")
    ] = None,
    only_list: Annotated[bool, typer.Option("--list", help="List the backups, and change nothing.")] = False,
    backup: BackupOption = None,
    json: JsonOption = False,
) -> None:
    """Put a backup of the key policy back.

    Every change makes a backup, this one too: a second rollback undoes the first.
    """
    from necli.workflows.policy import backups, plan_rollback

    screen, workload = terminal(ctx), workload_of(ctx)
    if only_list:
        found = backups(workload)
        if screen.json:
            rows = [
                {"name": each.name, "made_at": each.made_at.isoformat(), "path": str(each.path)}
                for each in found
            ]
            screen.print_json({"backups": rows})
        else:
            screen.table(
                None, ("backup", "made"), [(each.name, f"{each.made_at:%Y-%m-%d %H:%M:%S}") for each in found]
            )
        return
    with workload.home.lock("policy rollback"):
        _apply(ctx, workload, plan_rollback(workload, name), backup, "the backup is in force again")


@app.command("lint")
def lint_command(ctx: typer.Context, file: FileOption = None, json: JsonOption = False) -> None:
    """Find what is wrong with the key policy.

    It is asked as KMS would be, for callers good and bad. Ends with 1 where something is an error.
    --file needs no key and no service.
    """
    from necli.keypolicy.lint import lint
    from necli.workflows.policy import lint_policy, read_policy_file

    screen = terminal(ctx)
    findings = lint(read_policy_file(file)) if file else lint_policy(workload_of(ctx))
    if screen.json:
        screen.print_json({"findings": [finding.to_json() for finding in findings]})
    else:
        styles = {"error": "bold red", "warning": "yellow", "info": "cyan"}
        for finding in findings:
            where = f" in {finding.sid}" if finding.sid else ""
            screen.say(f"{finding.severity}: {finding.rule}{where}", style=styles[finding.severity])
            screen.say(f"  {finding.message}")
            screen.say(f"  → {finding.fix}")
        counts = Counter[str](finding.severity for finding in findings)
        screen.say(
            f"{counts['error']} errors, {counts['warning']} warnings, {counts['info']} for information"
        )
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


@app.command()
def explain(
    ctx: typer.Context,
    file: FileOption = None,
    eif: Annotated[Path | None, typer.Option("--eif", metavar="FILE", help="As if this image asked.")] = None,
    enclave: Annotated[
        str, typer.Option("--enclave", metavar="NAME", help="As if this enclave asked.")
    ] = "necli",
    without_attestation: Annotated[
        bool, typer.Option("--without-attestation", help="As if somebody asked without any document.")
    ] = False,
    caller: Annotated[
        str | None, typer.Option("--caller", metavar="ARN", help="Who asks.", show_default="the parent")
    ] = None,
    action: Annotated[str, typer.Option("--action", help="What is asked for.")] = "kms:Decrypt",
    context: Annotated[
        list[str] | None,
        typer.Option("--context", metavar="NAME=VALUE", help="A pair of the encryption context."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say why the key policy allows or denies.

    Names the first statement that decides, the condition, expected and actual value, and what mends it.
    The question is what the running enclave attests, or the built image if none runs. Ends with 5 where
    it is denied.
    """
    from necli.workflows.policy import attested_as, explain_file, explain_policy, measured

    screen, workload = terminal(ctx), workload_of(ctx)
    pairs = _pairs(context)
    if file:
        image = None if without_attestation else measured(workload, eif)
        explanation = explain_file(file, image, caller=caller, action=action, context=pairs or {})
    else:
        attested: Mapping[str, str] = {}
        if eif:
            attested = attested_as(workload, measured(workload, eif))
        elif not without_attestation:
            attested = _attested(workload, enclave)
        explanation = explain_policy(workload, attested, caller=caller, action=action, context=pairs)
    if screen.json:
        screen.print_json(explanation.to_json())
    else:
        _say(screen, explanation)
    if not explanation.decision.allowed:
        raise typer.Exit(5)


def _attested(workload: Workload, enclave: str) -> Mapping[str, str]:
    """What the running enclave attests; without one, what the built image would."""
    from necli.workflows.policy import attested_as, attested_by

    try:
        running = workload.running_enclave(enclave)
    except NotReady:
        return attested_as(workload, workload.build().measurements)
    return attested_by(workload, running)


def _say(screen: Terminal, explanation: Explanation) -> None:
    first, *rest = explanation.sentences
    screen.say(first, style="green" if explanation.decision.allowed else "bold red")
    for sentence in rest:
        screen.say(f"  {sentence}")
    if explanation.fix:
        screen.say(f"  → {explanation.fix}", style="cyan")


def _apply(
    ctx: typer.Context,
    workload: Workload,
    change: PolicyChange,
    backup_name: str | None,
    done: str,
    image: Measurements | None = None,
) -> None:
    """Show a change and put it in force."""
    from necli.workflows.policy import apply_policy

    screen = terminal(ctx)
    screen.diff(change.diff)
    _warn(screen, workload, change, image)
    backup = apply_policy(workload, change, backup=backup_name)
    if screen.json:
        screen.print_json({**_change_json(change), "backup": str(backup) if backup else None})
    elif backup:
        screen.say(done, style="green")
        screen.say(f"the policy before it: {backup}")
    else:
        screen.say(_NOTHING)


def _warn(screen: Terminal, workload: Workload, change: PolicyChange, image: Measurements | None) -> None:
    """Say so, if the image couldn't decrypt after this change."""
    from necli.workflows.policy import explain_afterwards

    try:
        explanation = explain_afterwards(workload, change, image)
    except NotReady:
        return  # nothing built: no image to ask about
    if not explanation.decision.allowed:
        screen.progress.warn("the image could not decrypt: " + "; ".join(explanation.sentences))


def _pairs(context: list[str] | None) -> Mapping[str, str] | None:
    if context is None:
        return None
    pairs = dict(text.partition("=")[::2] for text in context)
    if not all(pairs.values()) or not all(pairs):
        raise UsageError("--context is not of the form NAME=VALUE")
    return pairs


_NOTHING = "nothing to change: the key policy is as it should be"


def _change_json(change: PolicyChange) -> dict[str, object]:
    return {
        "changed": not change.unchanged,
        "before": change.before.to_json(),
        "after": change.after.to_json(),
    }
