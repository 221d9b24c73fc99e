"""`necli setup`, `build`, `up`, `down`, `status`, `doctor` and `cleanup`: the life of a workload."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from necli.cli.common import JsonOption, YesOption, confirm, settings_of, terminal, workload_of

if TYPE_CHECKING:
    from necli.backends import EnclaveInfo
    from necli.cli.render import Terminal
    from necli.state import Build
    from necli.workflows.doctor import Finding
    from necli.workflows.status import Status

app = typer.Typer()

ModelOption = Annotated[
    str | None, typer.Option(metavar="NAME|PATH", help="The model to build in; see necli model list.")
]
KmsClientOption = Annotated[Literal["native", "kmstool"], typer.Option(help="How the enclave talks to KMS.")]
BaseImageOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME@sha256:…", help="On nitro: the Docker image that brings Python 3.11 and pip, by digest."
    ),
]


@app.command()
def setup(
    ctx: typer.Context,
    owner: Annotated[
        str | None, typer.Option(metavar="ARN", help="On nitro: who encrypts data for the enclave.")
    ] = None,
    administrator: Annotated[
        str | None, typer.Option(metavar="ARN", help="On nitro: the key's administrator.", show_default="you")
    ] = None,
    instance_type: Annotated[str | None, typer.Option(help="On nitro: the parent instance's.")] = None,
    enclave_cpus: Annotated[int | None, typer.Option(min=1, help="On nitro: set aside for enclaves.")] = None,
    enclave_memory: Annotated[
        int | None, typer.Option(min=64, help="On nitro: MiB, set aside for enclaves.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="On nitro: the stack.")] = None,
    outputs: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="On the parent instance: what necli stack outputs --json printed elsewhere.",
        ),
    ] = None,
    from_outside: Annotated[
        bool | None,
        typer.Option(
            "--from-outside/--on-instance",
            help="On nitro: make the stack, or prepare this host.",
            show_default="by where this runs",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="On nitro: only say what would be done.")
    ] = False,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Start the services and make the key.

    On nitro: make the stack, or on the parent instance prepare the host.
    """
    from necli.cli.host import NitroOptions, set_up_nitro

    options = NitroOptions(
        owner,
        administrator,
        instance_type,
        enclave_cpus,
        enclave_memory,
        name,
        outputs,
        from_outside,
        dry_run,
    )
    if settings_of(ctx).target == "nitro":
        set_up_nitro(ctx, options, yes=yes)
        return
    options.refuse_on_local()
    from necli.workflows.setup import set_up

    screen, workload = terminal(ctx), workload_of(ctx)
    with workload.home.lock("setup"):
        key = set_up(workload)
    if screen.json:
        screen.print_json({"key": {"arn": key.arn, "alias": key.alias}})
        return
    screen.facts({"key": key.arn, "alias": key.alias, "next": "necli build, or necli up for all the rest"})
    screen.banner()


@app.command()
def build(
    ctx: typer.Context,
    model: ModelOption = None,
    kms_client: KmsClientOption = "native",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Put a copy of the image here.")
    ] = None,
    base_image: BaseImageOption = None,
    signing_certificate: Annotated[
        Path | None, typer.Option(help="On nitro: sign the image; the certificate becomes PCR8.")
    ] = None,
    private_key: Annotated[
        str | None, typer.Option(metavar="FILE|ARN", help="The certificate's key: a PEM file or a KMS key.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Build twice, the second time without caches, and compare.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Build the enclave image, and measure it."""
    from necli.workflows.build import BuildOptions, build_image, signing_with

    signing = signing_with(signing_certificate, private_key)
    screen, workload = terminal(ctx), workload_of(ctx)
    with workload.home.lock("build"):
        options = BuildOptions(model, kms_client, output, base_image, signing, check)
        built = build_image(workload, options)
    if screen.json:
        screen.print_json(built.to_json())
        return
    screen.facts(_build_facts(built))
    if workload.backend.simulated:
        screen.banner()


@app.command()
def up(
    ctx: typer.Context,
    model: ModelOption = None,
    kms_client: KmsClientOption = "native",
    base_image: BaseImageOption = None,
    json: JsonOption = False,
) -> None:
    """Setup, build, run and policy update, as far as needed."""
    from necli.workflows.build import BuildOptions
    from necli.workflows.operate import bring_up

    screen, workload = terminal(ctx), workload_of(ctx)
    with workload.home.lock("up"):
        running = bring_up(workload, BuildOptions(model, kms_client, base_image=base_image))
    if screen.json:
        screen.print_json(
            {
                "key": running.key.arn,
                "build": running.build.to_json(),
                "enclave": running.enclave.to_json(),
                "policy_changed": not running.policy.unchanged,
            }
        )
        return
    screen.facts({"enclave": running.enclave.name, "next": "necli detect photo.jpg, or necli prove"})
    if workload.backend.simulated:
        screen.banner()


@app.command()
def down(ctx: typer.Context, json: JsonOption = False) -> None:
    """Stop the enclaves and the services; nothing is removed."""
    from necli.workflows.operate import take_down

    screen, workload = terminal(ctx), workload_of(ctx)
    with workload.home.lock("down"):
        stopped = take_down(workload)
    if screen.json:
        screen.print_json({"stopped": stopped})


@app.command()
def status(ctx: typer.Context, json: JsonOption = False) -> None:
    """What there is, and what to do next."""
    from necli.workflows.status import read_status

    screen = terminal(ctx)
    found = read_status(workload_of(ctx))
    if screen.json:
        screen.print_json(found.to_json())
    else:
        _show_status(screen, found)


@app.command()
def doctor(
    ctx: typer.Context,
    fix: Annotated[
        bool, typer.Option("--fix", help="Mend what can be mended without losing anything.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Look for what stands in the way, and say what helps.

    Exit code 1 if a check failed; a warning doesn't count.
    """
    from necli.workflows.doctor import examine, repair

    screen, workload = terminal(ctx), workload_of(ctx)
    findings = list(examine(workload))
    if fix:
        with workload.home.lock("doctor"):
            repaired = repair(workload, findings)
        if repaired:
            findings = list(examine(workload))
    if screen.json:
        screen.print_json({"findings": [finding.to_json() for finding in findings]})
    else:
        _show_findings(screen, findings)
    if any(finding.level == "failed" for finding in findings):
        raise typer.Exit(1)


@app.command()
def cleanup(
    ctx: typer.Context,
    models: Annotated[
        bool, typer.Option("--models", help="Remove the models that were fetched, too.")
    ] = False,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Remove everything; asks before it destroys a key."""
    from necli.workflows.cleanup import clean_up, key_at_stake

    screen, workload = terminal(ctx), workload_of(ctx, local_only=True)
    with workload.home.lock("cleanup"):
        if key := key_at_stake(workload):
            confirm(
                f"This destroys the key {key.arn}\nand with it everything that is encrypted under it.", yes
            )
        clean_up(workload, models=models)
    if screen.json:
        screen.print_json({"removed": str(settings_of(ctx).home.state), "key": key.arn if key else None})


def _build_facts(built: Build) -> dict[str, object]:
    from necli.sbom import sbom_path

    materials = sbom_path(built.path)
    return {
        "image": f"{built.path} ({built.size / 1e6:.1f} MB)",
        **({"SBOM": materials} if materials.is_file() else {}),
        "model": built.model_name,
        **{f"PCR{index}": value.hex() for index, value in built.measurements.pcrs().items()},
    }


def _show_status(screen: Terminal, found: Status) -> None:
    facts: dict[str, object] = {
        service.name: f"running, pid {service.pid}" if service.running else "not running"
        for service in found.services
    }
    facts["key"] = f"{found.key.alias}  {found.key.arn}" if found.key else "none"
    if found.build:
        facts["image"] = f"PCR0 {found.build.measurements.pcr0.hex()[:16]}…, {found.build.model_name}"
    else:
        facts["image"] = "none"
    facts["key policy"] = f"{found.policy} to this image" if found.policy.endswith("bound") else found.policy
    for enclave in found.enclaves:
        facts[f"enclave {enclave.name}"] = _enclave_line(enclave)
    if not found.enclaves:
        facts["enclave"] = "none"
    facts["next"] = "necli detect photo.jpg" if found.ready else "necli up"
    screen.facts(facts)
    if found.simulated:
        screen.banner()


def _enclave_line(enclave: EnclaveInfo) -> str:
    parts = [enclave.state.lower(), f"CID {enclave.cid}", f"{enclave.memory_mib} MiB"]
    if enclave.debug:
        parts.append("debug mode")
    if enclave.exit_reason:
        parts.append(enclave.exit_reason)
    return ", ".join(parts)


def _show_findings(screen: Terminal, findings: list[Finding]) -> None:
    for finding in findings:
        screen.finding(finding.level, finding.check, finding.detail, finding.fix)
    counts = Counter(finding.level for finding in findings)
    screen.say(f"{counts['ok']} fine, {counts['warning']} to look at, {counts['failed']} failed")
