"""What goes into a build for Nitro, and what stops it before it begins."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from enclave_payload.config import Config
from necli.errors import HostError, InputError, NecliError, UsageError
from necli.nitro.building import BuildTools, amazon_trust_roots, build_nitro_eif, check_room
from necli.nitro.containers import docker_client, nitro_configuration, write_context
from necli.progress import Progress
from tests.local.payloads import make_spec

Usage = namedtuple("Usage", "total used free")


class Warnings(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Path:
    """Of a gigabyte, though it takes no room."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with (folder / "large-1-py3-none-any.whl").open("wb") as wheel:
        wheel.truncate(10**9)
    return folder


def context(folder: Path, **changes: object) -> dict[str, bytes]:
    (folder / "wheels").mkdir()
    (folder / "wheels" / "a-1-py3-none-any.whl").write_bytes(b"wheel")
    spec = make_spec(folder / "here")
    (spec.payload.parent / "requirements.txt").write_text("a==1 --hash=sha256:00\n")
    (spec.model / "fingerprint.pb").write_bytes(b"another each time")
    file = io.BytesIO()
    write_context(file, replace(spec, **changes), wheelhouse=folder / "wheels", trust_roots_pem=b"root\n")
    file.seek(0)
    with tarfile.open(fileobj=file) as archive:
        assert {(member.mtime, member.mode, member.uid) for member in archive} == {(315532800, 0o644, 0)}
        return {member.name: (archive.extractfile(member) or io.BytesIO()).read() for member in archive}


def test_the_context_holds_all_that_goes_in_and_nothing_else(tmp_path: Path) -> None:
    assert set(context(tmp_path)) == {
        "Dockerfile",
        "runtime/assemble.py",
        "runtime/requirements.txt",
        "runtime/wheelhouse/a-1-py3-none-any.whl",
        "application/app/site/enclave_payload/__init__.py",
        "application/app/site/enclave_payload/__main__.py",
        "application/config.json",
        "application/model/saved_model.pb",
        "application/model/variables/variables.index",
        "application/trust/kms-ca.pem",
    }


def test_the_configuration_is_one_that_the_payload_takes(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(context(tmp_path)["application/config.json"])
    config = Config.load(path)
    assert (str(config.listen), str(config.nsm)) == ("vsock:5005", "/dev/nsm")
    assert str(config.kms.address) == "vsock:3:8000"


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing isn't a folder"):
        context(tmp_path, model=tmp_path / "nothing")


def test_the_limits_of_the_spec_are_baked_in(tmp_path: Path) -> None:
    spec = replace(make_spec(tmp_path), limits={"queue": 3})
    assert json.loads(json.dumps(nitro_configuration(spec)))["limits"]["queue"] == 3


def test_only_amazon_can_speak_for_kms() -> None:
    roots = x509.load_pem_x509_certificates(amazon_trust_roots())
    names = {root.subject.rfc4514_string().partition(",")[0] for root in roots}
    assert names == {
        *(f"CN=Amazon Root CA {number}" for number in range(1, 5)),
        "CN=Starfield Services Root Certificate Authority - G2",
    }


def test_a_full_disk_stops_the_build_before_it_begins(
    wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker's images and necli's builds are on one disk here, so their needs add up."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, 12 * 10**9))
    with pytest.raises(HostError, match=r"needs 13\.0 GB .* where 12\.0 GB are free") as error:
        check_room(tmp_path, tmp_path, wheelhouse, Progress())
    assert error.value.code == "disk_full"


def test_an_engine_on_another_machine_needs_no_room_here(
    wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, 7 * 10**9))
    check_room(tmp_path / "not here", tmp_path, wheelhouse, Progress())


def test_too_little_memory_is_a_warning(
    wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**15, 0, 10**15))
    with (wheelhouse / "large-1-py3-none-any.whl").open("r+b") as wheel:
        wheel.truncate(10**12)
    warnings = Warnings()
    check_room(tmp_path, tmp_path, wheelhouse, warnings)
    assert "linuxkit may need 4000.0 GB" in warnings.lines[0]


def test_an_engine_that_is_not_running_is_the_cause(tmp_path: Path) -> None:
    with (
        pytest.raises(HostError, match="daemon isn't running") as error,
        docker_client(f"unix://{tmp_path}/x"),
    ):
        pass
    assert "systemctl" in str(error.value.hint)


def test_kmstool_is_refused_before_anything_is_downloaded(tmp_path: Path) -> None:
    spec = replace(make_spec(tmp_path), kms_client="kmstool")
    with pytest.raises(UsageError, match="kmstool") as error:
        build_nitro_eif(spec, tmp_path / "x.eif", BuildTools(tmp_path / "wheels"), Progress())
    assert isinstance(error.value, NecliError)
    assert not (tmp_path / "wheels").exists()
