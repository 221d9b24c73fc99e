"""The preparation of a parent instance, on a root tree and on programs that do what Amazon Linux's do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from necli.errors import Conflict, HostError, UsageError
from necli.nitro.host import Machine, Wishes, is_ec2_instance, prepare, read_release
from necli.progress import Progress
from tests.nitro.fakes.amazon_linux import ALLOCATOR_YAML, PROGRAMS, make_instance

WISHES = Wishes("ec2-user", memory_mib=8192, cpus=2)
CHANGING = [
    ("dnf", "Error: Unable to find a match: docker", "packages"),
    ("usermod", "usermod: cannot lock /etc/group; try again later.", "group"),
    ("install", "install: cannot create regular file: Read-only file system", "allocator.yaml"),
    ("systemctl", "Job for nitro-enclaves-allocator.service failed", "allocator"),
]


class Instance:
    def __init__(self, folder: Path, version: str) -> None:
        self.root, programs = make_instance(folder, version=version)
        self.told: list[str] = []
        self.machine = Machine(self.root, str(programs), on_command=self.told.append)

    def prepare(self, wishes: Wishes = WISHES) -> None:
        prepare(self.machine, wishes, Progress())

    @property
    def changes(self) -> list[str]:
        """What was called that changes something."""
        asking = ("rpm", "systemctl is-", "nitro-cli describe")
        calls = (self.root / "calls").read_text().splitlines() if (self.root / "calls").exists() else []
        return [call for call in calls if not call.startswith(asking)]


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    return Instance(tmp_path, "2023")


def test_a_bare_instance_is_prepared_in_order(instance: Instance) -> None:
    instance.prepare()
    install, groups, write, *services = instance.changes
    assert install == "dnf install -y aws-nitro-enclaves-cli aws-nitro-enclaves-cli-devel docker"
    assert groups == "usermod -aG ne,docker ec2-user"
    assert write.startswith("install -m 644 ")
    assert services == [
        "systemctl restart nitro-enclaves-allocator.service",
        "systemctl enable --now nitro-enclaves-allocator.service",
        "systemctl enable --now docker.service",
    ]
    expected = ALLOCATOR_YAML.replace("memory_mib: 512", "memory_mib: 8192")
    assert (instance.root / "etc/nitro_enclaves/allocator.yaml").read_text() == expected


def test_a_second_run_changes_nothing(instance: Instance) -> None:
    instance.prepare()
    before = instance.changes
    instance.prepare()
    assert instance.changes == before


def test_a_dry_run_tells_each_command_and_changes_nothing(instance: Instance) -> None:
    instance.machine = replace(instance.machine, dry_run=True)
    instance.prepare()
    assert instance.changes == []
    assert instance.told[0].startswith("dnf install -y aws-nitro-enclaves-cli")
    assert "systemctl enable --now docker.service" in instance.told


def test_a_dry_run_tells_the_allocators_new_file_where_there_is_an_old_one(instance: Instance) -> None:
    instance.prepare()
    instance.machine = replace(instance.machine, dry_run=True)
    instance.told.clear()
    instance.prepare(replace(WISHES, memory_mib=4096))
    assert instance.told[1:] == ["systemctl restart nitro-enclaves-allocator.service"]
    assert instance.told[0].startswith("install -m 644 ")


def test_amazon_linux_2_installs_from_its_extras(tmp_path: Path) -> None:
    instance = Instance(tmp_path, "2")
    instance.prepare()
    assert instance.changes[:2] == [
        "amazon-linux-extras install -y docker aws-nitro-enclaves-cli",
        "yum install -y aws-nitro-enclaves-cli-devel",
    ]


def test_a_user_who_is_not_root_goes_through_sudo(instance: Instance) -> None:
    instance.machine = replace(instance.machine, sudo=True)
    instance.prepare()
    assert "sudo -n usermod -aG ne,docker ec2-user" in instance.changes


@pytest.mark.parametrize(("program", "message", "step"), CHANGING)
def test_a_step_that_fails_is_named_with_its_cause_and_a_second_run_goes_on(
    instance: Instance, program: str, message: str, step: str
) -> None:
    (instance.root / "fail").mkdir()
    failure = instance.root / "fail" / program
    failure.write_text(message)
    with pytest.raises(HostError) as refused:
        instance.prepare()
    assert message in refused.value.message
    assert step in refused.value.message or program == "dnf"
    assert refused.value.hint
    failure.unlink()
    instance.prepare()
    assert "8192" in (instance.root / "etc/nitro_enclaves/allocator.yaml").read_text()


def test_a_program_that_is_missing_is_named(instance: Instance, tmp_path: Path) -> None:
    for program in PROGRAMS:
        if program != "rpm":
            (tmp_path / "bin" / program).unlink()
    with pytest.raises(HostError, match="dnf isn't on this machine"):
        instance.prepare()


def test_less_memory_than_asked_for_is_found_though_the_service_says_it_succeeded(instance: Instance) -> None:
    (instance.root / "most_mib").write_text("6144")
    with pytest.raises(HostError, match="6144 MiB aside, not 8192") as refused:
        instance.prepare()
    assert refused.value.code == "too_few_huge_pages"


def test_half_a_core_is_refused_before_anything_is_written(instance: Instance) -> None:
    with pytest.raises(UsageError, match="whole cores"):
        instance.prepare(replace(WISHES, cpus=3))
    assert (instance.root / "etc/nitro_enclaves/allocator.yaml").read_text() == ALLOCATOR_YAML


def test_the_share_of_running_enclaves_is_not_changed(instance: Instance) -> None:
    instance.prepare()
    (instance.root / "enclaves").write_text(
        '[{"EnclaveName": "other", "EnclaveID": "i-0-enc1", "ProcessID": 1, "EnclaveCID": 16,'
        ' "CPUIDs": [1, 5], "MemoryMiB": 512}]'
    )
    with pytest.raises(Conflict, match="other"):
        instance.prepare(replace(WISHES, memory_mib=4096))


def test_another_system_is_refused_at_once(instance: Instance) -> None:
    (instance.root / "etc/os-release").write_text('ID=debian\nPRETTY_NAME="Debian 12"\n')
    with pytest.raises(HostError, match="Debian 12 isn't Amazon Linux") as refused:
        read_release(instance.machine)
    assert refused.value.code == "unsupported_host"


def test_an_instance_is_known_by_its_tag(instance: Instance) -> None:
    assert is_ec2_instance(instance.machine)
    (instance.root / "sys/devices/virtual/dmi/id/board_asset_tag").write_text("Not Specified\n")
    assert not is_ec2_instance(instance.machine)
