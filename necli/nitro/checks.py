"""What `necli doctor` looks at on a parent instance: a check says what it found, or raises what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from necli.errors import HostError
from necli.nitro.allocator import PATH as ALLOCATOR
from necli.nitro.allocator import AllocatorSettings
from necli.nitro.host import (
    GROUPS,
    SERVICES,
    Machine,
    is_up,
    missing_groups,
    missing_packages,
    read_release,
    verify,
)
from necli.nitro.hugepages import HugePages, cpu_pool

_SETUP = "necli setup"
Check = Callable[[Machine, str], str]
"""Of a machine and the user who is to run enclaves."""


def _system(machine: Machine, _: str) -> str:
    return f"Amazon Linux {read_release(machine)}"


def _device(machine: Machine, _: str) -> str:
    if machine.has("dev/nitro_enclaves"):
        return "/dev/nitro_enclaves is there"
    raise HostError(
        "/dev/nitro_enclaves is missing: the instance has no EnclaveOptions, or the driver isn't loaded",
        hint="stop the instance and set its EnclaveOptions, or sudo modprobe nitro_enclaves",
    )


def _packages(machine: Machine, _: str) -> str:
    if missing := missing_packages(machine):
        raise HostError(f"not installed: {', '.join(missing)}", hint=_SETUP)
    return "installed"


def _groups(machine: Machine, user: str) -> str:
    missing = [] if user == "root" else missing_groups(machine, user)
    if missing:
        raise HostError(f"{user} isn't in {', '.join(missing)}", hint=f"{_SETUP}, then log in again")
    return f"{user} may use {' and '.join(GROUPS)}"


def _services(machine: Machine, _: str) -> str:
    if stopped := [service for service in SERVICES if not is_up(machine, service)]:
        raise HostError(f"not active, or not enabled: {', '.join(stopped)}", hint=_SETUP)
    return "active and enabled"


def _share(machine: Machine, _: str) -> str:
    text = machine.read(ALLOCATOR)
    if text is None:
        raise HostError(f"/{ALLOCATOR} is missing", hint=_SETUP)
    verify(machine.root, AllocatorSettings.parse(text))
    pages = HugePages.read(machine.root)
    return f"{pages.free_mib} of {pages.mib} MiB free; CPUs {', '.join(map(str, cpu_pool(machine.root)))}"


HOST_CHECKS: Sequence[tuple[str, Check]] = (
    ("system", _system),
    ("enclave device", _device),
    ("packages", _packages),
    ("groups", _groups),
    ("services of the host", _services),
    ("enclaves' share", _share),
)
