"""`necli stack`: what CloudFormation made for the nitro target, and what is wrong with a template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from necli.cli.common import JsonOption, YesOption, confirm, settings_of, terminal

if TYPE_CHECKING:
    from necli.costs import Estimate
    from necli.stacks import StackEvent
    from necli.template_check import TemplateFinding
    from necli.workflows.stack import Provisioning, StackParameters, StackPlan

app = typer.Typer(
    help="The nitro target's CloudFormation stack; check a template.",
    no_args_is_help=True,
)

NameOption = Annotated[
    str | None, typer.Option("--name", help="The stack.", show_default="the one made last, or necli")
]


@app.command()
def status(ctx: typer.Context, name: NameOption = None, json: JsonOption = False) -> None:
    """Say what state the stack is in, and why it failed if it did."""
    from necli.stacks import last_operation, root_cause

    stacks = _open(ctx).stacks
    stack = stacks.get(_name(ctx, name))
    cause = None if stack.healthy else root_cause(last_operation(stacks.events(stack)))
    screen = terminal(ctx)
    if screen.json:
        screen.print_json({**stack.to_json(), "root_cause": cause.to_json() if cause else None})
        return
    screen.facts(
        {
            "Stack": stack.name,
            "State": stack.status,
            "Cause": f"{cause.resource} ({cause.type}): {cause.reason}" if cause else stack.reason,
            "Created": stack.created.isoformat(),
            "Updated": stack.updated.isoformat() if stack.updated else None,
            "Id": stack.id,
        }
    )


@app.command()
def events(
    ctx: typer.Context,
    name: NameOption = None,
    all_events: Annotated[bool, typer.Option("--all", help="Since the stack was created.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the operation is done.")] = False,
    json: JsonOption = False,
) -> None:
    """List what happened in the last operation, oldest first."""
    from necli.stacks import last_operation

    stacks, screen = _open(ctx).stacks, terminal(ctx)
    stack = stacks.get(_name(ctx, name))
    found: Iterable[StackEvent] = stacks.follow(stack) if follow else stacks.events(stack)
    if not (follow or all_events):
        found = last_operation(list(found))
    if screen.json:
        screen.print_json([event.to_json() for event in found])
        return
    for event in found:
        screen.say(_line(event), style="red" if event.failed else "")


@app.command()
def outputs(ctx: typer.Context, name: NameOption = None, json: JsonOption = False) -> None:
    """Print what the stack made: instance, key and roles."""
    stack, screen = _open(ctx).stacks.get(_name(ctx, name)), terminal(ctx)
    if screen.json:
        screen.print_json(dict(stack.outputs))
    else:
        screen.facts(stack.outputs)


@app.command()
def delete(
    ctx: typer.Context, name: NameOption = None, yes: YesOption = False, json: JsonOption = False
) -> None:
    """Delete the stack, instance and network included. Its key stays: data is encrypted under it."""
    screen, stack_name = terminal(ctx), _name(ctx, name)
    provisioning = _open(ctx)
    provisioning.stacks.get(stack_name)
    confirm(f"This deletes the stack {stack_name} with its instance and all that is on it.", yes)
    with settings_of(ctx).home.lock("stack delete"):
        key_arn = provisioning.delete(stack_name, screen.progress, lambda e: screen.progress.say(_line(e)))
    if screen.json:
        screen.print_json({"deleted": stack_name, "key": key_arn})
    elif key_arn:
        screen.say(f"the key stays, for 1 USD a month: {key_arn}")
        screen.say(f"to destroy it and all data under it: aws kms schedule-key-deletion --key-id {key_arn}")


@app.command()
def check(
    ctx: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(help="A template.", show_default="necli's own, with its stack policy")
    ] = None,
    stack_policy: Annotated[
        Path | None, typer.Option(help="The policy that the stack has, which may protect the key.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Find enclave and key-policy faults in any CloudFormation template. Needs no AWS account.

    Exit code 1 if there are errors; a warning doesn't count.
    """
    from necli.resources import resource_folder
    from necli.template_check import check_template

    if file is None:
        own = resource_folder("cloudformation")
        file, stack_policy = own / "necli.yaml", stack_policy or own / "stack-policy.json"
    policy = _read(stack_policy) if stack_policy else None
    findings = check_template(_read(file), stack_policy=policy)
    screen = terminal(ctx)
    if screen.json:
        screen.print_json([finding.to_json() for finding in findings])
    else:
        for finding in findings:
            screen.say(_finding_text(finding))
        screen.say(_summary(file, findings))
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


def set_up_stack(
    ctx: typer.Context, name: str | None, wanted: StackParameters, *, yes: bool, dry_run: bool
) -> None:
    """What `necli setup` does from outside the instance: plan, ask, provision, say what there is."""
    screen, provisioning = terminal(ctx), _open(ctx)
    plan = provisioning.plan(_name(ctx, name), wanted)
    if not (screen.json and dry_run):
        _show_plan(ctx, plan)
    if dry_run:
        if screen.json:
            screen.print_json(plan.to_json())
        return
    confirm(f"This will {plan.action} the stack {plan.name} in {plan.region}, which costs money.", yes)
    with settings_of(ctx).home.lock("setup"):
        made = provisioning.provision(plan, screen.progress, lambda e: screen.progress.say(_line(e)))
    if screen.json:
        screen.print_json({"plan": plan.to_json(), "outputs": vars(made)})
        return
    screen.facts(vars(made))


def _show_plan(ctx: typer.Context, plan: StackPlan) -> None:
    screen = terminal(ctx)
    title = f"{plan.action} the stack {plan.name} in {plan.region}"
    if plan.action == "create":
        screen.table(title, ("parameter", "value"), list(plan.parameters.items()))
    else:
        changes = [(name, before, after) for name, (before, after) in plan.changes.items()]
        screen.table(title, ("parameter", "now", "then"), changes)
    if plan.resources:
        screen.table("another version of the template", ("resource", ""), list(plan.resources.items()))
    _show_estimate(ctx, plan.estimate)
    for warning in plan.warnings:
        screen.progress.warn(warning)


def _show_estimate(ctx: typer.Context, estimate: Estimate) -> None:
    title = f"estimate, {estimate.currency} an hour at {estimate.region} list prices of {estimate.as_of}"
    rows = [(cost.what, "not in the table" if cost.per_hour is None else f"{cost.per_hour:.3f}")
            for cost in estimate.costs]  # fmt: skip
    total = f"{estimate.per_hour:.3f}" + ("" if estimate.complete else " and more")
    terminal(ctx).table(title, ("what", "an hour"), [*rows, ("together", total)], right=("an hour",))


def _open(ctx: typer.Context) -> Provisioning:
    from necli.workflows.stack import Provisioning

    settings = settings_of(ctx)
    return Provisioning.open(settings.home, settings.region)


def _name(ctx: typer.Context, name: str | None) -> str:
    from necli.stacks import StackRecord
    from necli.workflows.stack import DEFAULT_NAME

    settings = settings_of(ctx)
    record = None if name else StackRecord.load(settings.home)
    return name or (record.name if record and record.region == settings.region else DEFAULT_NAME)


def _line(event: StackEvent) -> str:
    line = f"{event.at:%H:%M:%S}  {event.status:<20}  {event.resource}"
    line += "" if event.of_stack else f"  {event.type}"
    return f"{line}  {event.reason}" if event.reason else line


def _finding_text(finding: TemplateFinding) -> str:
    where = finding.resource or "template"
    return f"{finding.severity} {finding.rule}  {where}: {finding.message}\n    {finding.fix}"


def _summary(file: Path, findings: Sequence[TemplateFinding]) -> str:
    counts = {kind: sum(f.severity == kind for f in findings) for kind in ("error", "warning", "note")}
    told = ", ".join(
        f"{count} {kind}s" if count != 1 else f"1 {kind}" for kind, count in counts.items() if count
    )
    return f"{file}: {told or 'nothing found'}"


def _read(path: Path) -> str:
    from necli.errors import InputError
    from necli.home import host_errors

    with host_errors(f"can't read {path}"):
        raw = path.read_bytes()
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise InputError(f"{path} isn't text: {exc}") from exc
