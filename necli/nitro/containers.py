"""The payload's Docker image: from locked wheels and a pinned base, without network, byte for byte.

The build's context holds all that goes in. Its Dockerfile and the program that assembles the root stand in
templates/payload-image.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from necli.backends import BuildSpec
from necli.eif.cpio import folder_entries
from necli.errors import HostError, InputError, NotReady
from necli.home import host_errors, make_private_folder
from necli.local.image import configuration
from necli.nitro.faults import docker_failure
from necli.progress import Progress
from necli.resources import resource_folder

if TYPE_CHECKING:
    import docker

DOCKER_HOST = "unix:///var/run/docker.sock"
PORT = 5005
PROXY_PORT = 8000
PARENT_CID = 3
PYTHON = (3, 11)
SOURCE_DATE_EPOCH = 315532800
"""1980, the earliest that every archive format knows: what the image's files say they were changed at."""

_BUILD_TIMEOUT_S = 3600
_STEP = re.compile(r"Step (\d+)/(\d+) : (.*)")
_JUNK = ("__pycache__", "*.pyc", ".DS_Store")
_NOT_THE_MODEL = ("fingerprint.pb", *_JUNK)
_PLATFORMS = {
    "x86_64": [f"manylinux_2_{minor}_x86_64" for minor in range(36, 16, -1)] + ["manylinux2014_x86_64"],
    "aarch64": [f"manylinux_2_{minor}_aarch64" for minor in range(36, 16, -1)] + ["manylinux2014_aarch64"],
}


@dataclass(frozen=True)
class BuiltContainer:
    """A Docker image of the payload; the same input gives the same layers."""

    tag: str
    image_id: str
    layers: tuple[str, ...]
    size: int
    base_id: str


@contextmanager
def docker_client(host: str = DOCKER_HOST) -> Iterator[docker.DockerClient]:
    """:raises HostError: the Docker daemon isn't running, or is closed to this user."""
    import docker

    try:
        client = docker.DockerClient(base_url=host, timeout=_BUILD_TIMEOUT_S)
        client.ping()
    except (docker.errors.DockerException, OSError) as exc:
        raise docker_failure(str(exc)) from exc
    try:
        yield client
    finally:
        client.close()


def fill_wheelhouse(requirements: Path, wheels: Path, arch: str, progress: Progress) -> Path:
    """Download what `requirements` locks, by its hashes, into a folder below `wheels`; once.

    :raises HostError: another Python than the image's runs this, which the lock's conditions would follow.
    :raises ServiceFailed: the package index can't be reached, or a hash is wrong.
    """
    lock = requirements.read_bytes()
    folder = wheels / hashlib.sha256(lock + arch.encode()).hexdigest()[:16]
    complete = folder / "complete"
    with progress.step("Wheels") as step:
        if not complete.exists():
            if sys.version_info[:2] != PYTHON:
                raise HostError(
                    "the image's wheels are chosen by Python 3.11", hint="run necli with Python 3.11"
                )
            make_private_folder(folder)
            _download(requirements, folder, arch)
            complete.touch()
        found = list(folder.glob("*.whl"))
        step.note(f"{len(found)}, {sum(path.stat().st_size for path in found) / 1e6:.0f} MB, hashes checked")
    return folder


def _download(requirements: Path, folder: Path, arch: str) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
            *("--require-hashes", "--only-binary=:all:", "--implementation=cp", "--python-version=3.11"),
            *(f"--platform={platform}" for platform in _PLATFORMS[arch]),
            *("--dest", str(folder), "--requirement", str(requirements)),
        ],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise docker_failure(done.stderr, doing="pip download")


def build_payload_image(
    client: docker.DockerClient,
    spec: BuildSpec,
    *,
    wheelhouse: Path,
    trust_roots_pem: bytes,
    progress: Progress,
    work: Path,
) -> BuiltContainer:
    """Build the image `necli/NAME`, whose only layer is the whole root of the enclave.

    :raises NotReady: no base image is named, or it isn't here and isn't named by digest.
    :raises ServiceFailed, HostError: Docker failed; the message has the end of its output.
    """
    import docker

    base = pinned_base(client, spec.base_image)
    tag = f"necli/{spec.name}:latest"
    with (
        host_errors("can't write the build's context"),
        progress.step("Container", unit="steps") as step,
        tempfile.TemporaryFile(dir=make_private_folder(work)) as context,
    ):
        write_context(context, spec, wheelhouse=wheelhouse, trust_roots_pem=trust_roots_pem)
        context.seek(0)
        output: list[str] = []
        try:
            for event in client.api.build(
                fileobj=context,
                custom_context=True,
                decode=True,
                rm=True,
                forcerm=True,
                pull=False,
                nocache=spec.fresh,
                network_mode="none",
                tag=tag,
                buildargs={"BASE_IMAGE": base, "SOURCE_DATE_EPOCH": str(SOURCE_DATE_EPOCH)},
            ):
                text = str(event.get("error") or event.get("stream") or "").rstrip()
                output.append(text)
                if found := _STEP.match(text):
                    step.update(int(found[1]), int(found[2]))
                if "error" in event:
                    raise docker_failure("\n".join(output), doing="docker build")
            image = client.images.get(tag)
        except (docker.errors.DockerException, OSError) as exc:
            raise docker_failure(str(exc), doing="docker build") from exc
        built = BuiltContainer(
            tag, str(image.id), tuple(image.attrs["RootFS"]["Layers"]), int(image.attrs["Size"]), base
        )
        step.note(f"{tag}, {built.size / 1e6:.0f} MB, layer {built.layers[-1][7:19]}")
    return built


def pinned_base(client: docker.DockerClient, name: str | None) -> str:
    """The name to build from, which can mean one image only; it is pulled if need be.

    :raises NotReady: none is named, or only by a tag, and it isn't on this machine.
    """
    import docker

    if name is None:
        raise NotReady(
            "the image needs a base that brings Python 3.11",
            hint="name one by its digest: --base-image python:3.11-slim-bookworm@sha256:…",
        )
    try:
        return str(client.images.get(name).id)
    except docker.errors.ImageNotFound as exc:
        if "@sha256:" not in name:
            raise NotReady(
                f"the base image {name} isn't on this machine, and its name may mean another one tomorrow",
                hint="name it by its digest: NAME@sha256:…",
            ) from exc
    except (docker.errors.DockerException, OSError) as exc:
        raise docker_failure(str(exc)) from exc
    try:
        return str(client.images.pull(name).id)
    except (docker.errors.DockerException, OSError) as exc:
        raise docker_failure(str(exc), doing=f"docker pull {name}") from exc


def write_context(file: IO[bytes], spec: BuildSpec, *, wheelhouse: Path, trust_roots_pem: bytes) -> None:
    """The build's context, in which the application stands as it will in the image.

    :raises InputError: payload or model aren't where `spec` says.
    """
    package, template = spec.payload / "enclave_payload", resource_folder("templates") / "payload-image"
    for folder in (package, spec.model):
        if not folder.is_dir():
            raise InputError(f"{folder} isn't a folder", hint="necli model pull")
    files: dict[str, Path | bytes] = {
        "Dockerfile": template / "Dockerfile",
        "runtime/assemble.py": template / "assemble.py",
        "runtime/requirements.txt": spec.payload.parent / "requirements.txt",
        **{f"runtime/wheelhouse/{path.name}": path for path in sorted(wheelhouse.glob("*.whl"))},
        **_files(package, "application/app/site/enclave_payload", _JUNK),
        **_files(spec.model, "application/model", _NOT_THE_MODEL),
        "application/config.json": json.dumps(
            nitro_configuration(spec), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode(),
        "application/trust/kms-ca.pem": trust_roots_pem,
    }
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            _add(archive, name, content)


def nitro_configuration(spec: BuildSpec) -> dict[str, Any]:
    """The payload's config.json where there are vsock and a Nitro Security Module."""
    value = configuration(spec)
    value["kms"] = {**value["kms"], "address": f"vsock:{PARENT_CID}:{PROXY_PORT}"}
    return {**value, "listen": f"vsock:{PORT}", "nsm": "/dev/nsm"}


def payload_version(spec: BuildSpec) -> str:
    return str(configuration(spec)["version"])


def _files(folder: Path, prefix: str, exclude: tuple[str, ...]) -> Mapping[str, Path | bytes]:
    return {e.name: e.data for e in folder_entries(folder, prefix, exclude) if not e.is_folder}


def _add(archive: tarfile.TarFile, name: str, content: Path | bytes) -> None:
    member = tarfile.TarInfo(name)
    member.mode, member.mtime = 0o644, SOURCE_DATE_EPOCH
    if isinstance(content, bytes):
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
        return
    with content.open("rb") as source:
        member.size = content.stat().st_size
        archive.addfile(member, source)
