"""A real Docker engine for tests, with a state of its own, and a base image without a registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest

from necli.errors import HostError
from necli.nitro.containers import docker_client

BASE = "necli-conformance-base:latest"
_START_S = 60


@contextmanager
def running_engine() -> Iterator[str]:
    """The address of a Docker engine: NECLI_TEST_DOCKER_HOST's, or one that is started and stopped here."""
    if given := os.environ.get("NECLI_TEST_DOCKER_HOST"):
        yield given
        return
    if not shutil.which("dockerd") or os.geteuid():
        pytest.skip("a Docker engine needs dockerd and root: run tests/conformance/install-docker.sh")
    # Not pytest's folder, which it keeps: an engine's state is large, and its socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="necli-docker-"))
    try:
        with (folder / "log").open("wb") as log:
            engine = subprocess.Popen(
                [
                    "dockerd",
                    *("--data-root", folder / "data", "--exec-root", folder / "exec"),
                    *("--host", f"unix://{folder}/docker.sock", "--pidfile", folder / "pid"),
                    *("--iptables=false", "--bridge=none"),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            _await(f"unix://{folder}/docker.sock", engine, folder / "log")
            yield f"unix://{folder}/docker.sock"
        finally:
            engine.terminate()
            engine.wait(_START_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _await(host: str, engine: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            with docker_client(host):
                return
        except HostError:
            if engine.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-2000:]
                pytest.skip(f"no Docker engine can run here: {tail}")
            time.sleep(0.2)


def base_image(client: docker.DockerClient) -> str:
    """A root made of Debian's packages, imported once."""
    try:
        client.images.get(BASE)
    except docker.errors.ImageNotFound:
        script = Path(__file__).with_name("make-base-image.sh")
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "base.tar"
            made = subprocess.run([script, archive], capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"no base image can be made here: {made.stderr[-500:]}")
            name, _, tag = BASE.partition(":")
            client.api.import_image_from_file(str(archive), repository=name, tag=tag)
    return BASE
