"""`necli policy`: who may decrypt, as KMS has it and as necli would write it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from necli.cli.common import JsonOption, terminal, workload_of

if TYPE_CHECKING:
    from necli.keypolicy import PolicyChange

app = typer.Typer(help="The key policy, and binding it to the built image.", no_args_is_help=True)


@app.command()
def show(ctx: typer.Context, json: JsonOption = False) -> None:
    """Print the key policy that is in force."""
    from necli.workflows.policy import show_policy

    policy = show_policy(workload_of(ctx))
    screen = terminal(ctx)
    if screen.json:
        screen.print_json(policy.to_json())
    else:
        screen.say(policy.to_text())


@app.command()
def plan(ctx: typer.Context, json: JsonOption = False) -> None:
    """Show what `necli policy update` would change, and change nothing."""
    from necli.workflows.policy import plan_policy

    screen = terminal(ctx)
    change = plan_policy(workload_of(ctx))
    if screen.json:
        screen.print_json(_change_json(change))
    else:
        screen.diff(change.diff)
        screen.say(_NOTHING if change.unchanged else "put it in force with: necli policy update")


@app.command()
def update(ctx: typer.Context, json: JsonOption = False) -> None:
    """Let the built image decrypt, and nothing else; every other statement stays as it is."""
    from necli.workflows.policy import apply_policy, plan_policy

    screen, workload = terminal(ctx), workload_of(ctx)
    with workload.home.lock("policy update"):
        change = plan_policy(workload)
        screen.diff(change.diff)
        backup = apply_policy(workload, change)
    if screen.json:
        screen.print_json({**_change_json(change), "backup": str(backup) if backup else None})
    elif backup:
        screen.say("the key policy is bound to the built image", style="green")
        screen.say(f"the policy before it: {backup}")
    else:
        screen.say(_NOTHING)


_NOTHING = "nothing to change: the key policy is bound to the built image"


def _change_json(change: PolicyChange) -> dict[str, object]:
    return {
        "changed": not change.unchanged,
        "before": change.before.to_json(),
        "after": change.after.to_json(),
    }
