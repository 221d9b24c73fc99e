"""The local image: the same input measures the same anywhere, and any other input measures otherwise."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from necli.backends import BuildSpec
from necli.eif import read_eif, write_eif
from necli.errors import HostError, InputError, MeasurementMismatch
from necli.local.distributions import MeasuredDistribution, find_drift, link_site, required_by
from necli.local.image import LocalImage
from necli.measurements import Measurements
from tests.local.payloads import build, make_spec


@pytest.fixture
def spec(tmp_path: Path) -> BuildSpec:
    return make_spec(tmp_path / "here", needs=("cbor2",))


def measure(spec: BuildSpec, folder: Path) -> Measurements:
    return build(spec, folder / "image.eif").measurements


def test_building_twice_measures_the_same(spec: BuildSpec, tmp_path: Path) -> None:
    assert measure(spec, tmp_path / "a") == measure(spec, tmp_path / "b")


def test_the_file_measures_what_the_build_says(spec: BuildSpec, tmp_path: Path) -> None:
    built = build(spec, tmp_path / "image.eif")
    assert read_eif(built.path).measurements == built.measurements
    assert built.size == built.path.stat().st_size


def test_place_time_umask_and_byte_code_do_not_count(spec: BuildSpec, tmp_path: Path) -> None:
    before = measure(spec, tmp_path)
    elsewhere = tmp_path / "another" / "place"
    umask = os.umask(0o077)
    try:
        shutil.copytree(tmp_path / "here", elsewhere, copy_function=shutil.copyfile)
        (elsewhere / "payload/src/enclave_payload/__pycache__").mkdir()
        (elsewhere / "payload/src/enclave_payload/__pycache__/x.pyc").write_bytes(b"junk")
        (elsewhere / "model" / "fingerprint.pb").write_bytes(b"different each time")
        for path in elsewhere.rglob("*"):
            os.utime(path, (1, 1))
        moved = dataclasses.replace(spec, payload=elsewhere / "payload/src", model=elsewhere / "model")
        assert measure(moved, elsewhere) == before
    finally:
        os.umask(umask)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: flip(spec.payload / "enclave_payload" / "__main__.py"),
        lambda spec: flip(spec.model / "saved_model.pb"),
        lambda spec: flip(spec.model / "variables" / "variables.index"),
        lambda spec: (spec.model / "assets.txt").write_text(""),
        lambda spec: (spec.payload / "enclave_payload" / "more.py").write_text(""),
    ],
    ids=["payload", "model", "variables", "an empty file in the model", "an empty module"],
)
def test_one_byte_or_one_file_more_changes_pcr0_and_pcr2(
    spec: BuildSpec, tmp_path: Path, change: Callable[[BuildSpec], object]
) -> None:
    before = measure(spec, tmp_path)
    change(spec)
    after = measure(spec, tmp_path)
    assert (after.pcr0 != before.pcr0, after.pcr1 == before.pcr1, after.pcr2 != before.pcr2) == (True,) * 3


@pytest.mark.parametrize(
    "change",
    [
        {"key_arn": "arn:aws:kms:eu-central-1:111122223333:key/00000000-12ab-34cd-56ef-1234567890ab"},
        {"region": "us-east-1"},
        {"encryption_context": {"necli:workload": "other"}},
        {"model_digest": "cd" * 48},
        {"limits": {"max_pixels": 1}},
        {"kms_client": "kmstool", "encryption_context": {}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_the_enclave_accepts_is_measured(
    spec: BuildSpec, tmp_path: Path, change: dict[str, object]
) -> None:
    changed = dataclasses.replace(spec, **change)  # type: ignore[arg-type]
    assert measure(changed, tmp_path).pcr0 != measure(spec, tmp_path).pcr0


def test_the_runtime_is_measured_into_pcr1(tmp_path: Path) -> None:
    without = measure(make_spec(tmp_path / "a"), tmp_path)
    with_cbor2 = measure(make_spec(tmp_path / "b", needs=("cbor2",)), tmp_path)
    assert with_cbor2.pcr1 != without.pcr1
    assert with_cbor2.pcr2 == without.pcr2


def test_the_name_and_the_build_time_are_not_measured(spec: BuildSpec, tmp_path: Path) -> None:
    assert measure(dataclasses.replace(spec, name="other"), tmp_path) == measure(spec, tmp_path)


def test_the_payload_reads_its_configuration(spec: BuildSpec, tmp_path: Path) -> None:
    from enclave_payload.config import Config

    root = unpack(build(spec, tmp_path / "image.eif").path, tmp_path)
    config = Config.load(root / "config.json")
    assert config.version == "1.2.3"
    assert config.key_arn == spec.key_arn
    assert config.kms.host == "kms.eu-central-1.amazonaws.com"
    assert (root / config.kms.trust_roots).read_bytes().startswith(b"-----BEGIN CERTIFICATE-----")
    assert (root / config.model.path / "saved_model.pb").exists()


def unpack(eif: Path, folder: Path) -> Path:
    root = folder / "root"
    root.mkdir()
    LocalImage.of(read_eif(eif)).unpack(root)
    return root


def test_an_image_unpacks_to_what_went_in(spec: BuildSpec, tmp_path: Path) -> None:
    root = unpack(build(spec, tmp_path / "image.eif").path, tmp_path)
    assert sorted(path.name for path in root.iterdir()) == [
        "config.json", "distributions.json", "model", "payload", "trust",
    ]  # fmt: skip
    assert (root / "model/saved_model.pb").read_bytes() == b"graph" * 1000


def test_another_interpreter_is_a_runtime_drift(spec: BuildSpec, tmp_path: Path) -> None:
    eif = built_with(spec, tmp_path, runtime={"version": "3.99.0"})
    with pytest.raises(MeasurementMismatch, match=r"version is 3\.\d+\.\d+, not 3\.99\.0") as caught:
        unpack(eif, tmp_path)
    assert caught.value.code == "runtime_drift"


def built_with(spec: BuildSpec, folder: Path, *, runtime: dict[str, str]) -> Path:
    """The image of `spec`, as if it had been built by another interpreter."""
    built = read_eif(build(spec, folder / "image.eif").path)
    kernel = {**LocalImage.of(built).runtime, **runtime}
    ramdisks = []
    for section in built.ramdisks:
        with built.open_section(section) as stream:
            ramdisks.append(stream.read())
    write_eif(
        folder / "other.eif",
        kernel=json.dumps(kernel).encode(),
        cmdline="init=enclave_payload",
        ramdisks=ramdisks,
        metadata=built.metadata or {},
    )
    return folder / "other.eif"


def test_an_image_of_nitro_is_refused_by_name(tmp_path: Path) -> None:
    metadata = read_eif(build(make_spec(tmp_path / "spec"), tmp_path / "image.eif").path).metadata or {}
    write_eif(
        tmp_path / "nitro.eif", kernel=b"\x7fELF", cmdline="reboot=k", ramdisks=[b"070701"], metadata=metadata
    )
    with pytest.raises(InputError, match="wasn't built for the local target"):
        LocalImage.of(read_eif(tmp_path / "nitro.eif"))


@pytest.mark.parametrize("missing", ["model", "payload/src/enclave_payload"])
def test_a_missing_folder_is_named(spec: BuildSpec, tmp_path: Path, missing: str) -> None:
    shutil.move(tmp_path / "here" / missing, tmp_path / "gone")
    with pytest.raises(InputError, match=missing):
        build(spec, tmp_path / "image.eif")
    assert not list(tmp_path.glob("*.eif"))


def test_a_missing_distribution_is_named(tmp_path: Path) -> None:
    spec = make_spec(tmp_path / "here", needs=("no-such-distribution>=2",))
    with pytest.raises(HostError, match="needs no-such-distribution, which isn't installed"):
        build(spec, tmp_path / "image.eif")


class TestDistributions:
    @pytest.fixture
    def site(self, tmp_path: Path) -> Path:
        """A site-packages folder with a package, a module, and a namespace that two distributions share."""
        folder = tmp_path / "site-packages"
        for name, files in {
            "one": ["one/__init__.py", "one/deep/data.txt", "shared/a/__init__.py", "../bin/one"],
            "two": ["two.py", "__pycache__/two.pyc", "shared/b/__init__.py"],
        }.items():
            info = folder / f"{name}-1.0.dist-info"
            info.mkdir(parents=True)
            rows = [f"{file},sha256={file.encode().hex()},1" for file in files]
            rows += [
                f"{info.name}/METADATA,sha256=ab,1",
                f"{info.name}/INSTALLER,sha256=cd,4",
                f"{info.name}/RECORD,,",
            ]
            (info / "RECORD").write_text("\n".join(rows) + "\n")
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            for file in files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_text(f"# {file}\n")
        return folder

    def test_place_and_installer_do_not_count(self, site: Path, tmp_path: Path) -> None:
        before = MeasuredDistribution.of(Distribution.at(site / "one-1.0.dist-info"))
        moved = tmp_path / "moved"
        shutil.copytree(site, moved)
        record = moved / "one-1.0.dist-info" / "RECORD"
        text = record.read_text().replace("../bin/one,sha256=", "../bin/one,sha256=ff")
        record.write_text("\n".join(reversed(text.replace("sha256=cd,4", "sha256=ee,2").splitlines())) + "\n")
        assert MeasuredDistribution.of(Distribution.at(moved / "one-1.0.dist-info")) == before

    def test_another_file_counts(self, site: Path) -> None:
        before = MeasuredDistribution.of(Distribution.at(site / "one-1.0.dist-info"))
        with open(site / "one-1.0.dist-info" / "RECORD", "a") as record:
            record.write("one/more.py,sha256=00,1\n")
        after = MeasuredDistribution.of(Distribution.at(site / "one-1.0.dist-info"))
        assert (after.version, after.record_sha256 == before.record_sha256) == ("1.0", False)

    def test_drift_names_what_differs(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(str(site))
        one = MeasuredDistribution.of(Distribution.at(site / "one-1.0.dist-info"))
        two = MeasuredDistribution.of(Distribution.at(site / "two-1.0.dist-info"))
        assert find_drift([one, two]) == []
        assert find_drift(
            [
                dataclasses.replace(one, version="0.9"),
                dataclasses.replace(two, record_sha256="00"),
                dataclasses.replace(two, name="three"),
            ]
        ) == ["one is 1.0, not 0.9", "two 1.0 has other files", "three 1.0 isn't installed"]

    def test_links_reach_what_is_listed_and_nothing_else(
        self, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(str(site))
        linked = tmp_path / "linked"
        link_site(["one"], linked)
        assert (linked / "one").is_symlink()
        assert (linked / "one/deep/data.txt").read_text() == "# one/deep/data.txt\n"
        assert (linked / "shared/a/__init__.py").exists()
        assert not (linked / "shared/b").exists()
        assert not (linked / "two.py").exists()

    @pytest.mark.parametrize("names", [["one", "three"], ["three", "one"]])
    def test_files_in_anothers_package_are_linked_with_it(
        self, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]
    ) -> None:
        (site / "three-1.0.dist-info").mkdir()
        (site / "three-1.0.dist-info" / "METADATA").write_text("Name: three\nVersion: 1.0\n")
        (site / "three-1.0.dist-info" / "RECORD").write_text("one/plugins/three.txt,sha256=00,1\n")
        (site / "one/plugins").mkdir()
        (site / "one/plugins/three.txt").write_text("three")
        before = sorted(site.rglob("*"))
        monkeypatch.syspath_prepend(str(site))
        link_site(names, tmp_path / "linked")
        assert (tmp_path / "linked/one").is_symlink()
        assert (tmp_path / "linked/one/plugins/three.txt").read_text() == "three"
        assert sorted(site.rglob("*")) == before

    def test_a_single_module_keeps_its_byte_code(
        self, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(str(site))
        link_site(["two", "one"], tmp_path / "linked")
        assert (tmp_path / "linked/__pycache__/two.pyc").exists()
        assert (tmp_path / "linked/shared/b/__init__.py").exists()


def test_needs_are_followed_to_their_end(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["HTTPX>=0.1"]\n')
    names = [distribution.metadata["Name"] for distribution in required_by(tmp_path / "pyproject.toml")]
    assert {"httpx", "httpcore", "h11", "anyio", "idna", "certifi"} <= set(names)
    assert not {"pytest", "rich", "typer"} & set(names)
    assert names == sorted(names, key=str.lower)


def test_an_extra_brings_its_own_needs(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["httpx[cli]"]\n')
    names = {distribution.metadata["Name"] for distribution in required_by(tmp_path / "pyproject.toml")}
    assert {"httpx", "click", "rich"} <= {name.lower() for name in names}


def test_the_links_give_a_bare_interpreter_what_is_listed_and_nothing_else(tmp_path: Path) -> None:
    link_site(["cbor2"], tmp_path / "site")
    code = f"""
import sys; sys.path.append({str(tmp_path / "site")!r})
import cbor2; print(cbor2.loads(cbor2.dumps("found")))
try: import pytest
except ModuleNotFoundError as exc: print(exc)
"""
    run = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["found", "No module named 'pytest'"]
