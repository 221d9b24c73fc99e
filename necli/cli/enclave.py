"""`necli enclave`: start, stop and look at enclaves, in nitro-cli's words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from necli.cli.common import JsonOption, terminal, workload_of

if TYPE_CHECKING:
    from necli.backends import EnclaveInfo
    from necli.cli.render import Terminal

app = typer.Typer(help="Start, stop and look at enclaves.", no_args_is_help=True)

_DEFAULT_NAME = "necli"
NameArgument = Annotated[str, typer.Argument(help="The enclave's name.", show_default=True)]


@app.command()
def run(
    ctx: typer.Context,
    eif: Annotated[
        Path | None, typer.Argument(help="The image to boot.", show_default="the one built last")
    ] = None,
    name: Annotated[str, typer.Option(help="The new enclave's name.")] = _DEFAULT_NAME,
    memory: Annotated[
        int | None, typer.Option(min=64, help="MiB.", show_default="what the image needs")
    ] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="How many CPUs.", show_default="2")] = None,
    debug_mode: Annotated[
        bool, typer.Option("--debug-mode", help="With a console; attests zero PCRs, so KMS refuses it.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Boot an image and wait until its payload is ready."""
    from necli.workflows.workload import CPUS

    workload = workload_of(ctx)
    workload.backend.ensure_services(workload.progress)
    image = eif or workload.measured_build().path
    info = workload.backend.run_enclave(
        name,
        image,
        memory_mib=memory or workload.backend.memory_for(image),
        cpus=cpus or CPUS,
        debug=debug_mode,
        progress=workload.progress,
    )
    _show(terminal(ctx), info)


@app.command()
def stop(ctx: typer.Context, name: NameArgument = _DEFAULT_NAME, json: JsonOption = False) -> None:
    """Stop an enclave and remove what it was unpacked to."""
    screen, workload = terminal(ctx), workload_of(ctx)
    with workload.progress.step("Stop") as step:
        workload.backend.stop_enclave(name)
        step.note(f"{name} is gone")
    if screen.json:
        screen.print_json({"EnclaveName": name, "Terminated": True})


@app.command("list")
def list_(ctx: typer.Context, json: JsonOption = False) -> None:
    """List the enclaves, those that ended by themselves included."""
    screen, backend = terminal(ctx), workload_of(ctx).backend
    infos = backend.enclaves()
    if screen.json:
        screen.print_json([info.to_json() for info in infos])
        return
    if backend.simulated:
        screen.banner()
    if not infos:
        screen.say("no enclaves; start one with necli enclave run")
        return
    columns = ("Name", "State", "CID", "PID", "CPUs", "MiB", "Flags", "PCR0")
    screen.table(None, columns, [_row(info) for info in infos], right=("CID", "PID", "CPUs", "MiB"))


@app.command()
def describe(ctx: typer.Context, name: NameArgument = _DEFAULT_NAME, json: JsonOption = False) -> None:
    """Say everything about one enclave, as nitro-cli describe-enclaves does."""
    _show(terminal(ctx), workload_of(ctx).backend.enclave(name))


@app.command()
def console(
    ctx: typer.Context,
    name: NameArgument = _DEFAULT_NAME,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more until it ends.")] = False,
    json: JsonOption = False,
) -> None:
    """Print what the payload of a debug-mode enclave printed."""
    screen = terminal(ctx)
    backend = workload_of(ctx).backend
    lines = backend.console(name, follow=follow)
    if screen.json:
        screen.print_json({"EnclaveName": name, "Simulated": backend.simulated, "Lines": list(lines)})
        return
    for line in lines:
        screen.say(line)


def _show(screen: Terminal, info: EnclaveInfo) -> None:
    if screen.json:
        screen.print_json(info.to_json())
        return
    if info.simulated:
        screen.banner()
    screen.facts(_facts(info))


def _facts(info: EnclaveInfo) -> dict[str, object]:
    ready = f", ready after {info.ready_after_s:.1f} s" if info.ready_after_s else ""
    facts: dict[str, object] = {
        "Name": info.name,
        "ID": info.enclave_id,
        "State": f"{info.state}{ready}",
        "CID": info.cid,
        "Process": info.process_id,
        "CPUs": ", ".join(map(str, info.cpu_ids)),
        "Memory": f"{info.memory_mib} MiB; limited: {info.memory_limit}",
        "Mode": "DEBUG: attests zero PCRs, whatever the image measures" if info.debug else "production",
        "Network": "none" if info.network_isolated else "NOT ISOLATED: this kernel refuses it a namespace",
        "Image": info.eif,
    }
    facts |= {f"PCR{index}": value.hex() for index, value in info.measurements.pcrs().items()}
    return facts | ({"Ended": info.exit_reason} if info.exit_reason else {})


def _row(info: EnclaveInfo) -> list[Any]:
    return [
        info.name,
        info.state,
        info.cid,
        info.process_id,
        len(info.cpu_ids),
        info.memory_mib,
        "DEBUG_MODE" if info.debug else "NONE",
        f"{info.measurements.pcr0.hex()[:16]}…",
    ]
