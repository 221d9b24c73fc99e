"""Prepares a parent instance: packages, groups, allocator, services; then looks at what the kernel gave.

Each step looks first, and acts only where something is missing. Everything that touches the machine goes
through `Machine`. Not exercised on Amazon Linux: the tests run it on a root tree and on executables that
replay what dnf, systemctl and usermod do there.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from necli.errors import Conflict, HostError
from necli.nitro.allocator import PATH as ALLOCATOR
from necli.nitro.allocator import AllocatorSettings
from necli.nitro.hugepages import HugePages, cpu_pool, threads_per_core
from necli.nitro.memory import check_cpus
from necli.nitro.nitro_cli import NitroCli
from necli.progress import Progress

PACKAGES = ("aws-nitro-enclaves-cli", "aws-nitro-enclaves-cli-devel", "docker")
GROUPS = ("ne", "docker")
ALLOCATOR_SERVICE = "nitro-enclaves-allocator.service"
SERVICES = (ALLOCATOR_SERVICE, "docker.service")
_TIMEOUT_S = 900.0
_TAIL_LINES = 6
_CAUSES = (
    ("another app is currently holding|Waiting for process with pid", "another dnf is at work: wait for it"),
    ("Could not resolve host|Cannot download|Curl error", "check the way out: NAT, or the S3 endpoint"),
    ("No match for argument|No package .* available", "not Amazon Linux's repositories: see dnf repolist"),
    ("No space left", "free some space: sudo dnf clean all"),
    ("a password is required|not in the sudoers", "run it as a user that may use sudo"),
    ("does not exist", "install the packages first: run necli setup again"),
)  # fmt: skip

Release = Literal["2", "2023"]


@dataclass(frozen=True)
class Machine:
    """A root file system and its programs; changes are made as root, and only told in a dry run."""

    root: Path = Path("/")
    path: str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    sudo: bool = False
    """Put `sudo -n` before what changes something."""
    dry_run: bool = False
    on_command: Callable[[str], None] = lambda command: None
    """Told every command that changes something, before it runs."""

    def read(self, path: str) -> str | None:
        """None where there is no such file."""
        try:
            return (self.root / path).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise HostError(f"can't read /{path}: {exc.strerror}", hint="run necli doctor") from exc

    def has(self, path: str) -> bool:
        return (self.root / path).exists()

    def asks(self, *argv: str) -> bool:
        """Whether a command that changes nothing says yes."""
        return self._run(argv, "ask").returncode == 0

    def changes(self, doing: str, *argv: str) -> None:
        """:raises HostError: the command failed; with the end of what it said."""
        command = ("sudo", "-n", *argv) if self.sudo else argv
        self.on_command(shlex.join(command))
        if self.dry_run:
            return
        done = self._run(command, doing)
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            tail = "".join(f"\n  {line}" for line in said.splitlines()[-_TAIL_LINES:])
            raise HostError(
                f"can't {doing}: {argv[0]} ended with status {done.returncode}{tail}", hint=_fix(said)
            )

    def writes(self, path: str, text: str) -> None:
        """Replace a file that belongs to root, keeping its mode."""
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="necli-", delete=False) as file:
            file.write(text)
        try:
            target = str(self.root / path)
            self.changes(f"write /{path}", "install", "-m", "644", file.name, target)
        finally:
            Path(file.name).unlink()

    def find(self, program: str) -> str | None:
        return shutil.which(program, path=self.path)

    def _run(self, argv: Sequence[str], doing: str) -> subprocess.CompletedProcess[str]:
        program = self.find(argv[0])
        if program is None:
            raise HostError(
                f"can't {doing}: {argv[0]} isn't on this machine", hint="run it on an Amazon Linux instance"
            )
        try:
            return subprocess.run(
                [program, *argv[1:]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_S,
                env={"PATH": self.path, "LANG": "C.UTF-8"},
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise HostError(
                f"can't {doing}: {argv[0]}: {exc}", hint="run necli setup again: it goes on from there"
            ) from exc


def _fix(said: str) -> str:
    return next(
        (fix for pattern, fix in _CAUSES if re.search(pattern, said)),
        "run necli setup again: it goes on from there",
    )


@dataclass(frozen=True)
class Wishes:
    """What the host is to give to enclaves, and who may run them. None: as it is set already."""

    user: str
    memory_mib: int | None = None
    cpus: int | None = None


@dataclass(frozen=True)
class Prepared:
    """What there is afterwards. `log_in_again`: groups were added, and count from the next log-in on."""

    release: str
    memory: HugePages
    cpus: tuple[int, ...]
    log_in_again: bool


def prepare(machine: Machine, wishes: Wishes, progress: Progress) -> Prepared:
    """Every step that isn't done yet, then what came of it.

    :raises HostError: a step failed, or the kernel gave less than was asked for.
    """
    release = read_release(machine)
    _install(machine, release, progress)
    added = _join_groups(machine, wishes.user, progress)
    settings = _allocate(machine, wishes, progress)
    _start_services(machine, progress)
    if not machine.dry_run and settings:
        with progress.step("Enclaves' share") as step:
            verify(machine.root, settings)
            step.note(f"{settings.memory_mib} MiB and {settings.cpu_count} CPUs, as the kernel says")
    return Prepared(release, HugePages.read(machine.root), cpu_pool(machine.root), added)


def read_release(machine: Machine) -> Release:
    """:raises HostError: not Amazon Linux 2 or 2023."""
    text = machine.read("etc/os-release") or ""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    name, version = values.get("ID", "").strip('"'), values.get("VERSION_ID", "").strip('"')
    if name == "amzn" and version in ("2", "2023"):
        return "2" if version == "2" else "2023"
    raise HostError(
        f"{values.get('PRETTY_NAME', 'this system').strip(chr(34))} isn't Amazon Linux 2 or 2023",
        hint="run necli setup on the parent instance, or from outside it with --from-outside",
        code="unsupported_host",
    )


def missing_packages(machine: Machine) -> list[str]:
    return [package for package in PACKAGES if not machine.asks("rpm", "--quiet", "-q", package)]


def _install(machine: Machine, release: Release, progress: Progress) -> None:
    with progress.step("Packages") as step:
        missing = missing_packages(machine)
        if not missing:
            step.note("installed already")
            return
        doing = f"install {', '.join(missing)}"
        if release == "2023":
            machine.changes(doing, "dnf", "install", "-y", *missing)
        else:
            _install_on_2(machine, doing, missing)
        if not machine.dry_run and (still := missing_packages(machine)):
            raise HostError(f"{', '.join(still)} still aren't installed", hint="run necli setup again")
        step.note(", ".join(missing))


def _install_on_2(machine: Machine, doing: str, missing: Sequence[str]) -> None:
    """Amazon Linux 2 keeps nitro-cli and Docker among its extras, and the blobs with the rest."""
    topics = [name for name in ("docker", "aws-nitro-enclaves-cli") if name in missing]
    if topics:
        machine.changes(doing, "amazon-linux-extras", "install", "-y", *topics)
    if PACKAGES[1] in missing:
        machine.changes(doing, "yum", "install", "-y", PACKAGES[1])


def missing_groups(machine: Machine, user: str) -> list[str]:
    lines = (line.split(":") for line in (machine.read("etc/group") or "").splitlines())
    members = {fields[0]: fields[3].split(",") for fields in lines if len(fields) == 4}
    return [group for group in GROUPS if user not in members.get(group, [])]


def _join_groups(machine: Machine, user: str, progress: Progress) -> bool:
    with progress.step("Groups") as step:
        missing = [] if user == "root" else missing_groups(machine, user)
        if not missing:
            step.note("root needs none" if user == "root" else f"{user} is in {' and '.join(GROUPS)}")
            return False
        machine.changes(f"put {user} into {', '.join(missing)}", "usermod", "-aG", ",".join(missing), user)
        if not machine.dry_run and missing_groups(machine, user):
            raise HostError(
                f"{user} still isn't in {', '.join(missing_groups(machine, user))}", hint="run necli doctor"
            )
        step.note(f"{user} joined {', '.join(missing)}: log in again")
        return True


def _allocate(machine: Machine, wishes: Wishes, progress: Progress) -> AllocatorSettings | None:
    """What is asked of the kernel; None in a dry run before the file is installed."""
    with progress.step("Allocator") as step:
        text = machine.read(ALLOCATOR)
        if text is None:
            if machine.dry_run:
                step.note("its file comes with the packages")
                return None
            raise HostError(f"/{ALLOCATOR} is missing", hint=f"sudo dnf reinstall {PACKAGES[0]}")
        now = AllocatorSettings.parse(text)
        wanted = AllocatorSettings(wishes.memory_mib or now.memory_mib, wishes.cpus or now.cpu_count)
        check_cpus(wanted.cpu_count, threads_per_core(machine.root))
        if wanted == now and gives(machine.root, wanted):
            step.note(f"{now.memory_mib} MiB and {now.cpu_count} CPUs already")
            return now
        _refuse_while_enclaves_run(machine)
        if wanted != now:
            machine.writes(ALLOCATOR, wanted.written_into(text))
        machine.changes("start the allocator", "systemctl", "restart", ALLOCATOR_SERVICE)
        step.note(f"asked for {wanted.memory_mib} MiB and {wanted.cpu_count} CPUs")
        return wanted


def _refuse_while_enclaves_run(machine: Machine) -> None:
    """The allocator takes pages and CPUs away from nobody: it would fail, halfway."""
    program = machine.find("nitro-cli")
    if program is None or not machine.has("dev/nitro_enclaves"):
        return
    running = NitroCli(program).describe_enclaves()
    if running:
        names = ", ".join(enclave.name or enclave.enclave_id for enclave in running)
        raise Conflict(
            f"enclaves are running ({names}), so their share can't be changed",
            hint="stop them first: necli down",
        )


def _start_services(machine: Machine, progress: Progress) -> None:
    with progress.step("Services") as step:
        stopped = [service for service in SERVICES if not is_up(machine, service)]
        for service in stopped:
            machine.changes(f"start {service}", "systemctl", "enable", "--now", service)
            if not machine.dry_run and not is_up(machine, service):
                raise HostError(f"{service} isn't active", hint=f"journalctl -u {service}")
        step.note("started" if stopped else "run already")


def is_up(machine: Machine, service: str) -> bool:
    """It runs, and will after the next boot."""
    return all(
        machine.asks("systemctl", question, "--quiet", service) for question in ("is-active", "is-enabled")
    )


def gives(root: Path, wanted: AllocatorSettings) -> bool:
    try:
        verify(root, wanted)
    except HostError:
        return False
    return True


def verify(root: Path, wanted: AllocatorSettings) -> None:
    """:raises HostError: the kernel set aside less than is asked for, whatever the service says."""
    pages, pool = HugePages.read(root), cpu_pool(root)
    if pages.largest_node_mib < wanted.memory_mib:
        raise HostError(
            f"the kernel set {pages.largest_node_mib} MiB aside, not {wanted.memory_mib} ({pages})",
            hint="reboot, so that memory isn't in pieces, or ask for less with --enclave-memory",
            code="too_few_huge_pages",
        )
    if len(pool) < wanted.cpu_count:
        raise HostError(
            f"the kernel set {len(pool)} CPUs aside, not {wanted.cpu_count}",
            hint="ask for less with --enclave-cpus: one core stays with the parent",
            code="too_few_cpus",
        )


def this_machine(*, dry_run: bool, on_command: Callable[[str], None]) -> Machine:
    return Machine(sudo=os.geteuid() != 0, dry_run=dry_run, on_command=on_command)


def is_ec2_instance(machine: Machine) -> bool:
    """By its DMI table, which needs no network and no root."""
    try:
        tag = machine.read("sys/devices/virtual/dmi/id/board_asset_tag")
    except HostError:
        return False
    return bool(tag and tag.startswith("i-"))
