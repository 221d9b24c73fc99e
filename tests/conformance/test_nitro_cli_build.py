"""The real nitro-cli builds the payload's image; necli measures and describes the file as it does.

Kernel, init and driver are stubs and linuxkit is a stand-in, so nothing here was booted. Building, signing,
measuring and describing are AWS's own code.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from necli.backends import BuildSpec
from necli.eif import describe, diff_eifs, read_eif
from necli.eif.listing import list_ramdisk
from necli.errors import HostError, InputError
from necli.nitro.building import BuildTools, build_nitro_eif
from necli.nitro.containers import docker_client
from necli.nitro.nitro_cli import NitroCli, Signing
from necli.progress import Progress
from necli.settings import find_home
from tests.conformance.docker_engine import base_image
from tests.conformance.signing import signing_pair
from tests.local.payloads import build, make_spec

NITRO_CLI = shutil.which("nitro-cli")
ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not NITRO_CLI, reason="nitro-cli is not installed: run tests/conformance/install-nitro-cli.sh"
    ),
]


@dataclass(frozen=True)
class Machine:
    tools: BuildTools
    base: str
    blobs: Path

    def build(self, spec: BuildSpec, path: Path) -> Path:
        return build_nitro_eif(replace(spec, base_image=self.base), path, self.tools, Progress()).path


@pytest.fixture(scope="module")
def machine(docker_host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    blobs = make_blobs(tmp_path_factory.mktemp("blobs"))
    state = tmp_path_factory.mktemp("nitro_enclaves")
    with docker_client(docker_host) as client:
        environment = {
            "NITRO_CLI_BLOBS": str(blobs),
            "DOCKER_HOST": docker_host,
            "NITRO_CLI_LOGS_PATH": str(state),
            "NITRO_CLI_SOCKETS_PATH": str(state),
        }
        cli = NitroCli(str(NITRO_CLI), environment)
        wheels = find_home(os.environ).cache / "wheels"
        yield Machine(BuildTools(wheels, cli, docker_host), base_image(client), blobs)


def make_blobs(folder: Path) -> Path:
    """What aws-nitro-enclaves-cli-devel installs, as stubs."""
    (folder / "cmdline").write_text("reboot=k panic=30 pci=off nomodules console=ttyS0 random.trust_cpu=on\n")
    (folder / "bzImage").write_bytes(b"a kernel that boots nothing" * 1000)
    (folder / "bzImage.config").write_text("#\n# \n# Linux/x86_64 6.1.0-test Kernel Configuration\n")
    (folder / "init").write_bytes(b"\x7fELF init")
    (folder / "nsm.ko").write_bytes(b"\x7fELF driver")
    linuxkit = folder / "linuxkit"
    linuxkit.write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.conformance.stand_in_linuxkit "$@"\n'
    )
    linuxkit.chmod(0o755)
    return folder


@pytest.fixture
def spec(tmp_path: Path) -> BuildSpec:
    made = make_spec(tmp_path / "payload", "print('hello')")
    (made.payload.parent / "requirements.txt").write_text("")
    return replace(made, name="conformance")


def test_necli_measures_and_describes_the_file_as_nitro_cli_does(
    machine: Machine, spec: BuildSpec, tmp_path: Path
) -> None:
    eif = read_eif(machine.build(spec, tmp_path / "x.eif"))
    described = machine.tools.nitro_cli.describe_eif(eif.path)
    described["Measurements"]["HashAlgorithm"] = "Sha384 { ... }"
    assert describe(eif) == described
    assert described["ImageName"] == "conformance"
    assert described["IsSigned"] is False
    with eif.open_section(eif.ramdisks[1]) as stream:
        files = list_ramdisk(stream)
    assert {"cmd", "env", "rootfs/config.json", "rootfs/app/site/enclave_payload/__main__.py"} <= set(files)
    assert not {"rootfs/bin/sh", "rootfs/usr/bin/env"} & set(files)


def test_a_signed_image_has_the_same_measurements_and_pcr8(
    machine: Machine, spec: BuildSpec, tmp_path: Path
) -> None:
    plain = read_eif(machine.build(spec, tmp_path / "plain.eif"))
    certificate, key = signing_pair(tmp_path)
    signed = read_eif(
        machine.build(replace(spec, signing=Signing(certificate, key)), tmp_path / "signed.eif")
    )
    assert signed.signature
    assert signed.signature.is_valid
    assert replace(signed.measurements, pcr8=None) == plain.measurements
    described = machine.tools.nitro_cli.describe_eif(signed.path)
    assert described["Measurements"]["PCR8"] == (signed.measurements.pcr8 or b"").hex()
    assert describe(signed)["SigningCertificate"] == described["SigningCertificate"]


def test_a_second_build_without_caches_measures_the_same(
    machine: Machine, spec: BuildSpec, tmp_path: Path
) -> None:
    first = read_eif(machine.build(spec, tmp_path / "first.eif"))
    second = read_eif(machine.build(replace(spec, name="again", fresh=True), tmp_path / "second.eif"))
    assert first.measurements == second.measurements
    assert diff_eifs(first, second).sections == ("metadata",)


def test_a_changed_payload_is_named_by_the_difference(
    machine: Machine, spec: BuildSpec, tmp_path: Path
) -> None:
    before = read_eif(machine.build(spec, tmp_path / "before.eif"))
    (spec.payload / "enclave_payload/__main__.py").write_text("print('hello, changed')\n")
    found = diff_eifs(before, read_eif(machine.build(spec, tmp_path / "after.eif")))
    assert (found.pcrs, found.sections) == (("PCR0", "PCR2"), ("ramdisk 1", "metadata"))
    assert {change.name.rpartition("/")[2] for change in found.files} == {
        "__main__.py",
        "__main__.cpython-311.pyc",
    }


def test_nitro_cli_describes_what_necli_wrote(machine: Machine, spec: BuildSpec, tmp_path: Path) -> None:
    built = build(spec, tmp_path / "local.eif")
    described = machine.tools.nitro_cli.describe_eif(built.path)
    described["Measurements"]["HashAlgorithm"] = "Sha384 { ... }"
    assert described == describe(read_eif(built.path))


def test_real_failures_are_told_by_their_cause(machine: Machine, spec: BuildSpec, tmp_path: Path) -> None:
    """Each is nitro-cli's own output, not a replay."""
    environment = machine.tools.nitro_cli.environment
    path, output = machine.tools.nitro_cli.path, tmp_path / "x.eif"
    with pytest.raises(HostError, match="blobs are missing"):
        NitroCli(path, {**environment, "NITRO_CLI_BLOBS": "/nowhere"}).build_enclave("a:b", output)
    with pytest.raises(HostError, match="daemon isn't running"):
        NitroCli(path, {**environment, "DOCKER_HOST": "unix:///nowhere"}).build_enclave("a:b", output)
    wrong = Signing(tmp_path / "nothing.pem", tmp_path / "nothing.key")
    with pytest.raises(InputError, match="signing key or certificate"):
        machine.tools.nitro_cli.build_enclave("a:b", output, signing=wrong)
    (tmp_path / "broken.eif").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"describe-eif \(E35\): the file isn't a valid image"):
        machine.tools.nitro_cli.describe_eif(tmp_path / "broken.eif")
    assert machine.tools.nitro_cli.describe_enclaves() == []
