"""What doctor says of a parent instance, before and after it is prepared."""

from __future__ import annotations

import getpass
from pathlib import Path

from necli.nitro.host import Machine, Wishes, prepare
from necli.progress import Progress
from necli.workflows.doctor import examine_host
from tests.nitro.fakes.amazon_linux import make_instance


def levels(machine: Machine) -> dict[str, str]:
    return {finding.check: finding.level for finding in examine_host(machine)}


def test_a_bare_instance_fails_each_check_with_its_fix(tmp_path: Path) -> None:
    root, programs = make_instance(tmp_path)
    (root / "dev/nitro_enclaves").unlink()
    findings = {finding.check: finding for finding in examine_host(Machine(root, str(programs)))}
    failed = {check for check, finding in findings.items() if finding.level == "failed"}
    assert failed >= {"enclave device", "packages", "services of the host", "enclaves' share"}
    assert findings["system"].detail == "Amazon Linux 2023"
    assert all(findings[check].fix for check in failed)


def test_a_prepared_instance_is_fine(tmp_path: Path) -> None:
    root, programs = make_instance(tmp_path)
    machine = Machine(root, str(programs))
    prepare(machine, Wishes(getpass.getuser(), 4096, 2), Progress())
    assert set(levels(machine).values()) == {"ok"}


def test_a_share_that_the_kernel_took_back_is_found(tmp_path: Path) -> None:
    root, programs = make_instance(tmp_path)
    machine = Machine(root, str(programs))
    prepare(machine, Wishes(getpass.getuser(), 4096, 2), Progress())
    pages = root / "sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages"
    pages.write_text("0\n")
    assert {check for check, level in levels(machine).items() if level == "failed"} == {"enclaves' share"}
