"""From a `BuildSpec` to an enclave image for Nitro: wheels, container, nitro-cli, then our own measure of it.

The container and nitro-cli's build have been exercised with the real tools, on a stand-in for linuxkit and
without booting what came out: see tests/conformance.
"""

from __future__ import annotations

import re
import shutil
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from necli.backends import BuildSpec, BuiltEif
from necli.eif import read_eif
from necli.errors import HostError, MeasurementMismatch, UsageError
from necli.home import make_private_folder
from necli.nitro.containers import (
    DOCKER_HOST,
    build_payload_image,
    docker_client,
    fill_wheelhouse,
    payload_version,
)
from necli.nitro.nitro_cli import NitroCli
from necli.progress import Progress

if TYPE_CHECKING:
    import docker

# Measured with TensorFlow's 0.75 GB of wheels, which become an image of 1.8 GB. Docker holds the context, its
# layer, the assembled root and the final layer; the state folder holds context, ramdisk and enclave image.
_DOCKER_DISK = 7
_STATE_DISK = 6
_MEMORY = 4
"""All three times the size of the wheels."""
_AMAZON = re.compile(b"Amazon Root CA [1-4]|Starfield Services Root Certificate Authority - G2")


@dataclass(frozen=True)
class BuildTools:
    """What a build uses of this machine."""

    wheels: Path
    """Where downloaded wheels are kept."""
    nitro_cli: NitroCli = field(default_factory=NitroCli)
    docker_host: str = DOCKER_HOST


def build_nitro_eif(spec: BuildSpec, path: Path, tools: BuildTools, progress: Progress) -> BuiltEif:
    """Write the enclave image to `path`, whole or not at all.

    :raises NotReady: no base image.
    :raises HostError: too little disk or memory, or Docker or nitro-cli isn't there.
    :raises MeasurementMismatch: the file measures something else than nitro-cli says.
    """
    if spec.kms_client == "kmstool":
        raise UsageError(
            "this version builds no image with kmstool_enclave_cli for the nitro target",
            hint="leave out --kms-client: the native client needs no program of its own",
        )
    lock = spec.payload.parent / "requirements.txt"
    wheelhouse = fill_wheelhouse(lock, tools.wheels, spec.arch, progress)
    with docker_client(tools.docker_host) as client:
        make_private_folder(path.parent)
        check_room(docker_root(client), path.parent, wheelhouse, progress)
        container = build_payload_image(
            client,
            spec,
            wheelhouse=wheelhouse,
            trust_roots_pem=spec.trust_roots_pem or amazon_trust_roots(),
            progress=progress,
            work=path.parent,
        )
    with progress.step("Enclave image") as step:
        new = path.with_name(f".{path.name}.new")
        try:
            _build_eif(spec, container.tag, new, tools.nitro_cli)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
        measurements, size = read_eif(path).measurements, path.stat().st_size
        step.note(f"{path.name}, {size / 1e6:.1f} MB, {'signed' if spec.signing else 'not signed'}")
    return BuiltEif(spec.name, path, measurements, size, len(list(wheelhouse.glob("*.whl"))))


def _build_eif(spec: BuildSpec, image: str, output: Path, nitro_cli: NitroCli) -> None:
    said = nitro_cli.build_enclave(
        image, output, name=spec.name, version=payload_version(spec), signing=spec.signing
    )
    measured = read_eif(output).measurements
    if measured != said:
        raise MeasurementMismatch(
            f"nitro-cli says {said.to_json()} of {output.name}, but its bytes give {measured.to_json()}",
            hint="run necli build again; if it stays so, report it",
        )


def docker_root(client: docker.DockerClient) -> Path:
    """Where the engine keeps its images; on another machine, if the engine runs there."""
    return Path(str(client.info().get("DockerRootDir", "")))


def check_room(images: Path, builds: Path, wheelhouse: Path, progress: Progress) -> None:
    """Refuse a build that would fill a disk, and warn of one that may run out of memory.

    :raises HostError: too little disk; names the folder, what there is and what is needed.
    """
    wheels = sum(path.stat().st_size for path in wheelhouse.glob("*.whl"))
    needs: dict[int, tuple[Path, int]] = {}
    # On one disk, both needs add up.
    for folder, factor in ((images, _DOCKER_DISK), (builds, _STATE_DISK)):
        if folder.is_dir():
            device = folder.stat().st_dev
            needs[device] = (folder, needs.get(device, (folder, 0))[1] + factor * wheels)
    for folder, needed in needs.values():
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise HostError(
                f"the build needs {needed / 1e9:.1f} GB below {folder}, where {free / 1e9:.1f} GB are free",
                hint="docker system prune frees what Docker no longer uses",
                code="disk_full",
            )
    available = _available_memory(Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    if available < _MEMORY * wheels:
        progress.warn(
            f"{available / 1e9:.1f} GB of memory are free; linuxkit may need {_MEMORY * wheels / 1e9:.1f} GB:"
            " stop enclaves, or give the allocator less"
        )


def _available_memory(meminfo: Sequence[str]) -> int:
    return next(int(line.split()[1]) << 10 for line in meminfo if line.startswith("MemAvailable:"))


def amazon_trust_roots() -> bytes:
    """The CAs that AWS's own endpoints chain to, out of botocore's bundle; no other CA can speak for KMS."""
    import botocore

    bundle = (Path(botocore.__file__).parent / "cacert.pem").read_text(encoding="utf-8")
    blocks = re.findall(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n", bundle, re.DOTALL)
    return "".join(block for block in blocks if _AMAZON.search(ssl.PEM_cert_to_DER_cert(block))).encode()
