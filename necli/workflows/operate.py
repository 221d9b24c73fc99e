"""Starts everything in order, and stops it."""

from __future__ import annotations

from dataclasses import dataclass

from necli.backends import EnclaveInfo
from necli.errors import NotReady
from necli.keypolicy import PolicyChange
from necli.state import Build, Key
from necli.workflows.build import BuildOptions, build_image
from necli.workflows.policy import update_policy
from necli.workflows.setup import set_up
from necli.workflows.workload import CPUS, ENCLAVE, Workload


@dataclass(frozen=True)
class Running:
    key: Key
    build: Build
    enclave: EnclaveInfo
    policy: PolicyChange


def bring_up(workload: Workload, options: BuildOptions) -> Running:
    """Services, key, image, enclave, policy: each step does only what isn't done."""
    key = set_up(workload)
    build = build_image(workload, options)
    enclave = ensure_enclave(workload, build)
    return Running(key, build, enclave, update_policy(workload))


def ensure_enclave(workload: Workload, build: Build) -> EnclaveInfo:
    """An enclave that runs this build, and not in debug mode; one that runs something else is replaced."""
    backend = workload.backend
    try:
        enclave = workload.running_enclave(ENCLAVE)
        if enclave.measurements == build.measurements and not enclave.debug:
            with workload.progress.step("Enclave") as step:
                step.note(f"{ENCLAVE} runs this image already")
            return enclave
    except NotReady:
        pass
    else:
        with workload.progress.step("Old enclave") as step:
            backend.stop_enclave(ENCLAVE)
            step.note("stopped: it ran another image")
    eif = workload.measured_build().path
    return backend.run_enclave(
        ENCLAVE,
        eif,
        memory_mib=backend.memory_for(eif),
        cpus=CPUS,
        debug=False,
        progress=workload.progress,
    )


def revive_services(workload: Workload, *names: str) -> None:
    """Start again those of the named services (by default all) that don't run any more."""
    services = [each for each in workload.backend.services() if not names or each.name in names]
    if down := [each.name for each in services if not each.running]:
        workload.progress.warn(f"{' and '.join(down)} didn't run any more")
        workload.backend.ensure_services(workload.progress)


def revive(workload: Workload, name: str = ENCLAVE) -> None:
    """Put back what was killed: an enclave that nobody stopped, and the services that it needs.

    :raises NotReady: nothing was ever started under that name, or it was stopped.
    """
    enclave = workload.backend.enclave(name)
    revive_services(workload)
    if enclave.state == "TERMINATED" and enclave.eif:
        workload.progress.warn(f"the enclave {name} ended: {enclave.exit_reason}")
        workload.backend.run_enclave(
            name,
            enclave.eif,
            memory_mib=enclave.memory_mib,
            cpus=len(enclave.cpu_ids),
            debug=enclave.debug,
            progress=workload.progress,
        )


def take_down(workload: Workload) -> list[str]:
    """Stop every enclave and the services; nothing is removed. Returns what was stopped."""
    stopped = []
    for enclave in workload.backend.enclaves():
        if enclave.state in ("STARTING", "RUNNING"):
            with workload.progress.step(f"Enclave {enclave.name}") as step:
                workload.backend.stop_enclave(enclave.name)
                step.note("stopped")
            stopped.append(enclave.name)
    running = [service.name for service in workload.backend.services() if service.running]
    with workload.progress.step("Services") as step:
        workload.backend.stop_services()
        step.note(f"stopped {' and '.join(running)}" if running else "were not running")
    return stopped + running
