"""The payload's image by a real Docker engine: without network, the same each time, and able to detect."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest

from necli import kms
from necli.backends import BuildSpec, open_backend
from necli.backends.local import LocalBackend
from necli.envelope import CONTEXT, seal
from necli.errors import InputError, NecliError, NotReady
from necli.home import Home
from necli.keypolicy import plan_measurements
from necli.local.image import configuration
from necli.local.nsm import SimulatedNsm, serve_nsm
from necli.local.pki import LocalPki
from necli.measurements import Measurements
from necli.models import InstalledModel
from necli.nitro.containers import BuiltContainer, build_payload_image, docker_client, fill_wheelhouse
from necli.progress import Progress
from necli.resources import resource_folder
from necli.settings import DEFAULT_REGION, find_home
from necli.sockets import UnixAddress
from necli.transport import enclave_client
from necli.workflows.setup import set_up
from necli.workflows.workload import Workload
from tests.conformance.docker_engine import base_image
from tests.local.payloads import make_spec

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(1800)]

LOCK = resource_folder("enclave_payload") / "requirements.txt"
WHEELS = find_home(os.environ).cache / "wheels"
READY_S = 240


@dataclass(frozen=True)
class Engine:
    client: docker.DockerClient
    base: str

    def build(self, spec: BuildSpec, folder: Path) -> BuiltContainer:
        lock = spec.payload.parent / "requirements.txt"
        return build_payload_image(
            self.client,
            replace(spec, base_image=spec.base_image or self.base),
            wheelhouse=fill_wheelhouse(lock, WHEELS, spec.arch, Progress()),
            trust_roots_pem=b"-----BEGIN CERTIFICATE-----\n",
            progress=Progress(),
            work=folder,
        )


@pytest.fixture(scope="module")
def engine(docker_host: str) -> Iterator[Engine]:
    with docker_client(docker_host) as client:
        yield Engine(client, base_image(client))


@pytest.fixture
def small(tmp_path: Path) -> BuildSpec:
    """A payload of a few lines, with two small distributions out of the real lock file."""
    spec = make_spec(tmp_path / "here", "import asn1crypto, cbor2; print('imported', cbor2.dumps(1))")
    blocks = re.findall(r"^(?:asn1crypto|cbor2)==.*?(?=^\S|\Z)", LOCK.read_text(), re.MULTILINE | re.DOTALL)
    (spec.payload.parent / "requirements.txt").write_text("".join(blocks))
    return replace(spec, fresh=True)


def test_two_builds_give_equal_layers_and_a_changed_payload_another(
    engine: Engine, small: BuildSpec, tmp_path: Path
) -> None:
    first = engine.build(small, tmp_path)
    elsewhere = tmp_path / "another" / "place"
    shutil.copytree(tmp_path / "here", elsewhere)
    moved = replace(small, payload=elsewhere / "payload/src", model=elsewhere / "model", name="moved")
    second = engine.build(moved, tmp_path)
    assert first.layers == second.layers
    assert len(first.layers) == 1
    (elsewhere / "payload/src/enclave_payload/extra.py").write_text("x = 1\n")
    assert engine.build(moved, tmp_path).layers != first.layers


def test_the_image_runs_its_payload_and_holds_no_shell(
    engine: Engine, small: BuildSpec, tmp_path: Path
) -> None:
    built = engine.build(small, tmp_path)
    run = engine.client.containers.run
    assert run(built.tag, remove=True, network_mode="none") == b"imported b'\\x01'\n"
    for program in ("/bin/sh", "/bin/bash", "/usr/bin/env", "/usr/bin/pip3"):
        with pytest.raises(docker.errors.APIError, match="no such file"):
            run(built.tag, [program], remove=True, network_mode="none")
    engine.client.api.remove_image(built.tag, force=True)


def test_a_wheel_that_is_not_the_locked_one_fails_the_build(
    engine: Engine, small: BuildSpec, tmp_path: Path
) -> None:
    lock = small.payload.parent / "requirements.txt"
    wheelhouse = tmp_path / "wheelhouse"
    shutil.copytree(fill_wheelhouse(lock, WHEELS, small.arch, Progress()), wheelhouse)
    wheel = next(wheelhouse.glob("asn1crypto*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"x")
    with pytest.raises(NecliError, match="a wheel isn't the one that was locked"):
        build_payload_image(
            engine.client,
            replace(small, base_image=engine.base),
            wheelhouse=wheelhouse,
            trust_roots_pem=b"",
            progress=Progress(),
            work=tmp_path,
        )


def test_a_base_without_python_is_named_as_the_cause(
    engine: Engine, small: BuildSpec, tmp_path: Path
) -> None:
    empty = engine.client.api.import_image_from_data(bytes(10240), repository="empty", tag="latest")
    assert "sha256" in empty
    with pytest.raises(InputError, match=r"no Python 3\.11") as error:
        engine.build(replace(small, base_image="empty:latest"), tmp_path)
    assert "--base-image" in str(error.value.hint)


def test_a_base_that_may_be_another_one_tomorrow_is_refused(
    engine: Engine, small: BuildSpec, tmp_path: Path
) -> None:
    with pytest.raises(NotReady, match="may mean another one tomorrow"):
        engine.build(replace(small, base_image="python:3.11-slim"), tmp_path)
    with pytest.raises(NecliError, match="docker pull"):
        engine.build(replace(small, base_image="necli.invalid/python@sha256:" + "0" * 64), tmp_path)


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workload]:
    home = Home(tmp_path_factory.mktemp("docker") / "state", find_home(os.environ).cache)
    made = Workload(home, "local", open_backend("local", home, DEFAULT_REGION), Progress())
    set_up(made)
    yield made
    made.backend.stop_services()


@pytest.fixture(scope="module")
def image(
    engine: Engine,
    workload: Workload,
    embedded_model: InstalledModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[BuiltContainer, BuildSpec]:
    spec = BuildSpec(
        name="conformance",
        model=embedded_model.path,
        model_name=embedded_model.name,
        model_digest=embedded_model.digest,
        payload=resource_folder("enclave_payload") / "src",
        key_arn=workload.key().arn,
        region=DEFAULT_REGION,
        encryption_context=CONTEXT,
    )
    return engine.build(spec, tmp_path_factory.mktemp("build")), spec


def test_a_real_payload_in_its_container_detects_objects_in_an_encrypted_photo(
    engine: Engine,
    image: tuple[BuiltContainer, BuildSpec],
    workload: Workload,
    embedded_model: InstalledModel,
) -> None:
    """Its network is none: KMS is reached through the parent's proxy, as on Nitro; the NSM is simulated."""
    built, spec = image
    assert isinstance(workload.backend, LocalBackend)
    pki = LocalPki.ensure(workload.home.pki)
    pcrs = Measurements(*(hashlib.sha384(built.layers[0].encode() + bytes([i])).digest() for i in range(3)))
    administrator = workload.kms("administrator")
    policy = kms.read_policy(administrator, spec.key_arn)
    change = plan_measurements(policy, pcrs, parent_arn=workload.backend.parent_arn)
    kms.write_policy(administrator, spec.key_arn, change.after)
    assert embedded_model.sample
    photo = embedded_model.sample.read_bytes()
    message = seal(photo, kms=workload.kms("owner"), key_arn=spec.key_arn, context=CONTEXT).message
    with tempfile.TemporaryDirectory(prefix="enclave-") as name:
        folder = Path(name)
        (folder / "vsock").mkdir()
        (folder / "config.json").write_text(json.dumps(configuration(spec)))
        nsm = UnixAddress(folder / "nsm.sock").listen(socket.SOCK_SEQPACKET)
        threading.Thread(
            target=serve_nsm, args=(SimulatedNsm(pki, "i-0-enc0", pcrs.pcrs()), nsm), daemon=True
        ).start()
        mounts = {
            str(folder / "vsock"): "/vsock",
            str(folder / "nsm.sock"): "/nsm.sock",
            str(folder / "config.json"): "/config.json",
            str(pki.tls_ca_pem): "/trust/kms-ca.pem",
            str(workload.home.proxy / "3-8000.sock"): "/vsock/3-8000.sock",
        }
        container = engine.client.containers.run(
            built.tag,
            detach=True,
            network_mode="none",
            volumes=[f"{source}:{target}" for source, target in mounts.items()],
        )
        try:
            answer = _detect(folder / "vsock/5005.sock", container, message, workload)
        finally:
            container.remove(force=True)
            nsm.close()
    assert answer["model_digest"] == spec.model_digest
    assert "person" in {found["name"] for found in answer["objects"]}


def _detect(
    path: Path, container: docker.models.containers.Container, message: bytes, workload: Workload
) -> dict[str, Any]:
    credentials = workload.backend.credentials_for_enclave()
    headers = {
        "x-aws-access-key-id": credentials.access_key_id,
        "x-aws-secret-access-key": credentials.secret_access_key,
        "x-aws-session-token": credentials.session_token or "",
        "content-type": "application/octet-stream",
    }
    with enclave_client(UnixAddress(path), name="container") as client:
        deadline = time.monotonic() + READY_S
        while not _is_ready(client):
            container.reload()
            if container.status == "exited" or time.monotonic() > deadline:
                pytest.fail(container.logs().decode(errors="replace")[-3000:])
            time.sleep(0.5)
        response = client.post("/detect", params={"min_score": 0.4}, content=message, headers=headers)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()["answer"]
    return answer


def _is_ready(client: httpx.Client) -> bool:
    with suppress(NecliError):
        return client.get("/health").status_code == 200
    return False
