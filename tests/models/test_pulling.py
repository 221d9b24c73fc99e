"""What gets into the cache, from where, and what never does."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_server import HubServer, hub_server
from tarballs import SAVED_MODEL, special, tarball

from necli.errors import HostError, InputError, MeasurementMismatch, NotReady, ServiceFailed
from necli.models import (
    CATALOGUE,
    HubSource,
    InstalledModel,
    ModelEntry,
    ensure_model,
    find_entry,
    installed_models,
    pull,
    verify_installed,
    verify_model,
)
from necli.progress import Progress

EMBEDDED = CATALOGUE[0]
MEASURED = SAVED_MODEL.keys() - {"fingerprint.pb"}


@dataclass(frozen=True)
class LoopbackHub(HubSource):
    address: str = ""

    @property
    def url(self) -> str:
        return self.address


class Told(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server(tarball(SAVED_MODEL)) as server:
        yield server


@pytest.fixture
def entry(hub: HubServer) -> ModelEntry:
    source = LoopbackHub("someone/detector/1", hub.url("/redirected"))
    return ModelEntry("hub-detector", "for tests", "Apache-2.0", 600, 1000, source)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A SavedModel of the user's own."""
    path = tmp_path / "My Model"
    for name, content in SAVED_MODEL.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def files(model: InstalledModel) -> set[str]:
    return {path.relative_to(model.path).as_posix() for path in model.path.rglob("*") if path.is_file()}


# TensorFlow Hub


def test_a_model_of_tf_hub_is_downloaded_and_installed(cache: Path, entry: ModelEntry) -> None:
    model = pull(entry, cache, Progress())

    assert files(model) == MEASURED
    assert (model.licence, model.classes, model.source) == ("Apache-2.0", 600, "TF Hub someone/detector/1")
    assert installed_models(cache) == [model]
    assert not list((cache / "downloads").iterdir())


def test_its_digest_is_locked_at_first_use_and_said_so(cache: Path, entry: ModelEntry) -> None:
    progress = Told()
    pull(entry, cache, progress)

    locked = json.loads((cache / "digests" / "hub-detector.json").read_text())
    assert any(locked["sha256"] in line and "locked now" in line for line in progress.lines)


def test_another_content_later_is_refused_even_if_the_model_was_removed(
    cache: Path, entry: ModelEntry, hub: HubServer
) -> None:
    model = pull(entry, cache, Progress())
    shutil.rmtree(model.folder)
    hub.content = tarball({**SAVED_MODEL, "saved_model.pb": b"another graph"})

    with pytest.raises(MeasurementMismatch, match="isn't what it was when it was first pulled") as caught:
        pull(entry, cache, Progress())

    assert caught.value.code == "digest_mismatch"
    assert str(cache / "digests" / "hub-detector.json") in str(caught.value.hint)
    assert installed_models(cache) == []


def test_what_is_installed_is_not_downloaded_again(cache: Path, entry: ModelEntry, hub: HubServer) -> None:
    model = pull(entry, cache, Progress())
    requests = len(hub.requests)

    assert pull(entry, cache, Progress()) == model
    assert len(hub.requests) == requests

    assert pull(entry, cache, Progress(), force=True) == model
    assert len(hub.requests) == requests + 1


def test_a_changed_model_is_pulled_again(cache: Path, entry: ModelEntry) -> None:
    model = pull(entry, cache, Progress())
    (model.path / "saved_model.pb").write_bytes(b"changed")
    progress = Told()

    again = pull(entry, cache, progress)

    verify_model(again)
    assert "saved_model.pb was changed; it is pulled again" in progress.lines[0]


@pytest.mark.parametrize(
    "evil",
    [special("link", b"2", "/etc/passwd"), b"<html>sign in</html>", tarball({"a": b""})],
    ids=["link", "page", "empty"],
)
def test_an_archive_without_a_model_leaves_nothing_behind(
    cache: Path, entry: ModelEntry, hub: HubServer, evil: bytes
) -> None:
    hub.content = evil

    with pytest.raises(InputError):
        pull(entry, cache, Progress())

    assert {path.name for path in cache.iterdir()} == {".hub-detector.lock", "downloads"}
    assert not list((cache / "downloads").iterdir())


def test_a_refused_download_can_be_given_by_hand(
    cache: Path, entry: ModelEntry, hub: HubServer, tmp_path: Path
) -> None:
    hub.statuses = [403]
    with pytest.raises(ServiceFailed, match="403 Forbidden") as caught:
        pull(entry, cache, Progress())
    assert "--from-file" in str(caught.value.hint)

    by_hand = tmp_path / "by-hand.tar.gz"
    by_hand.write_bytes(hub.content)

    assert files(pull(entry, cache, Progress(), from_file=by_hand)) == MEASURED
    assert by_hand.exists()


def test_a_download_that_broke_off_is_continued_by_the_next_pull(
    cache: Path, entry: ModelEntry, hub: HubServer
) -> None:
    (cache / "downloads").mkdir(parents=True)
    part = cache / "downloads" / "hub-detector.tar.gz.part"
    part.write_bytes(hub.content[:20])
    part.with_name(f"{part.name}.validator").write_text(json.dumps(hub.etag))

    pull(entry, cache, Progress())

    assert hub.requests == ["bytes=20-"]


@pytest.mark.parametrize(
    "name",
    [
        "faster_rcnn/openimages_v4/inception_resnet_v2",
        "google/faster_rcnn/openimages_v4/inception_resnet_v2/1",
        "faster-rcnn-inception",
    ],
)
def test_tf_hub_models_answer_to_their_handles(name: str) -> None:
    entry = find_entry(name)

    assert entry
    assert entry.name == "faster-rcnn-inception"
    assert isinstance(entry.source, HubSource)
    assert entry.source.url == (
        "https://tfhub.dev/google/faster_rcnn/openimages_v4/inception_resnet_v2/1?tf-hub-format=compressed"
    )


# Folders and tarballs of the user's


def test_a_folder_is_copied_under_its_own_name(cache: Path, folder: Path) -> None:
    model = pull(str(folder), cache, Progress())

    assert model.name == "my-model"
    assert files(model) == MEASURED
    assert model.source == str(folder)


def test_the_digest_depends_on_contents_and_on_nothing_else(
    cache: Path, folder: Path, tmp_path: Path
) -> None:
    digest = pull(str(folder), cache, Progress()).digest
    elsewhere = Path(shutil.copytree(folder, tmp_path / "elsewhere", copy_function=shutil.copy))
    (elsewhere / "fingerprint.pb").write_bytes(b"another")

    assert pull(str(elsewhere), cache, Progress()).digest == digest

    (elsewhere / "saved_model.pb").write_bytes(b"grapH")
    assert pull(str(elsewhere), cache, Progress()).digest != digest


@pytest.mark.parametrize("prefix", ["", "./", "detector/"])
def test_a_tarball_is_unpacked_whether_or_not_it_has_a_folder_of_its_own(
    cache: Path, tmp_path: Path, prefix: str
) -> None:
    archive = tmp_path / "detector.tar.gz"
    archive.write_bytes(tarball({f"{prefix}{name}": content for name, content in SAVED_MODEL.items()}))

    model = pull(str(archive), cache, Progress())

    assert model.name == "detector"
    assert files(model) == MEASURED


def test_a_folder_of_the_catalogues_name_does_not_take_its_place(cache: Path, folder: Path) -> None:
    path = folder.rename(folder.with_name(EMBEDDED.name))

    assert pull(str(path), cache, Progress()).name == f"local-{EMBEDDED.name}"


def test_a_path_is_read_anew_and_a_name_is_what_was_copied(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ensure_model(str(folder), cache, Progress())
    (folder / "saved_model.pb").write_bytes(b"newer")
    second = ensure_model(str(folder), cache, Progress())

    assert first.digest != second.digest
    assert ensure_model("my-model", cache, Progress()) == second


@pytest.mark.parametrize("reference", ["no-such-model", "/no/such/path", "../x"])
def test_what_is_neither_a_name_nor_a_path_is_an_input_error(cache: Path, reference: str) -> None:
    with pytest.raises(InputError, match="there is no model and no path") as caught:
        ensure_model(reference, cache, Progress())

    assert caught.value.hint == "necli model list"


def test_a_folder_without_a_graph_is_no_model(cache: Path, folder: Path) -> None:
    (folder / "saved_model.pb").unlink()

    with pytest.raises(InputError, match=r"has no saved_model\.pb"):
        pull(str(folder), cache, Progress())


# Integrity


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "saved_model.pb").write_bytes(b"grapH"), r"saved_model\.pb was changed"),
        (
            lambda path: (path / "variables/variables.index").unlink(),
            r"variables/variables\.index is missing",
        ),
        (lambda path: (path / "more").write_bytes(b""), "more was added"),
        (lambda path: (path / "fingerprint.pb").write_bytes(b""), r"fingerprint\.pb was added"),
        (lambda path: (path / "link").symlink_to("/etc/passwd"), "link is neither a file nor a folder"),
    ],
)
def test_verifying_names_the_file_that_differs(
    cache: Path, folder: Path, damage: object, message: str
) -> None:
    model = pull(str(folder), cache, Progress())
    assert verify_installed(cache) == [model]
    damage(model.path)  # type: ignore[operator]

    with pytest.raises(MeasurementMismatch, match=message):
        verify_installed(cache, model.name)
    with pytest.raises(MeasurementMismatch, match=message):
        ensure_model(model.name, cache, Progress())


def test_nothing_to_verify_is_an_earlier_step_missing(cache: Path) -> None:
    with pytest.raises(NotReady, match="no model is installed"):
        verify_installed(cache)
    with pytest.raises(NotReady, match="the model detector isn't installed"):
        verify_installed(cache, "detector")


@pytest.mark.parametrize("record", ["{", "[]", '{"name": "x"}', '{"files": {"a": 1}}'])
def test_a_damaged_record_is_told_and_a_pull_mends_it(cache: Path, entry: ModelEntry, record: str) -> None:
    model = pull(entry, cache, Progress())
    (model.folder / "model.json").write_text(record)
    with pytest.raises(InputError, match=r"model\.json"):
        installed_models(cache)

    assert pull(entry, cache, Progress()) == model


def test_what_a_killed_pull_left_is_swept_away(cache: Path, entry: ModelEntry) -> None:
    half = cache / ".hub-detector.partial-x" / "saved_model"
    half.mkdir(parents=True)
    (half / "saved_model.pb").write_bytes(b"half")
    assert installed_models(cache) == []

    verify_model(pull(entry, cache, Progress()))

    assert not half.parent.exists()


def test_two_pulls_at_once_download_once(cache: Path, entry: ModelEntry, hub: HubServer) -> None:
    fork = multiprocessing.get_context("fork")
    pulls = [fork.Process(target=pull, args=(entry, cache, Progress())) for _ in range(3)]
    for process in pulls:
        process.start()
    for process in pulls:
        process.join()

    assert [process.exitcode for process in pulls] == [0, 0, 0]
    assert len(hub.requests) == 1
    verify_installed(cache)


def test_a_cache_that_cannot_be_made_is_an_error_of_this_machine(tmp_path: Path, entry: ModelEntry) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(HostError, match="can't make the folder"):
        pull(entry, tmp_path / "file" / "models", Progress())


# npm


def stand_in_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an npm of our own before everything else on the PATH."""
    folder.mkdir()
    (folder / "npm").write_text(f"#!{sys.executable}\n{script}")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_missing_npm_is_told_with_both_cures(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(HostError, match="npm isn't installed") as caught:
        pull(EMBEDDED, cache, Progress())

    assert caught.value.hint == (
        "install Node.js, or fetch the package: necli model pull --from-file vladmandic-human-3.3.6.tgz"
    )


def test_what_npm_says_is_passed_on(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import sys\nsys.exit('npm error code ENOTFOUND\\nnpm error network request failed\\n"
        "npm error A complete log of this run can be found in: x')"
    )
    stand_in_npm(tmp_path / "bin", script, monkeypatch)

    with pytest.raises(ServiceFailed, match=r": code ENOTFOUND; network request failed$") as caught:
        pull(EMBEDDED, cache, Progress())

    assert "npm pack @vladmandic/human@3.3.6" in str(caught.value.hint)


def test_a_package_with_other_weights_is_refused(cache: Path, tmp_path: Path) -> None:
    package = {
        "package/models/centernet.json": b"{}",
        "package/models/centernet.bin": b"",
        "package/assets/samples.jpg": b"",
    }
    by_hand = tmp_path / "vladmandic-human-3.3.6.tgz"
    by_hand.write_bytes(tarball(package))

    with pytest.raises(MeasurementMismatch, match=r"package/models/centernet\.json in .* isn't the file"):
        pull(EMBEDDED, cache, Progress(), from_file=by_hand)

    assert installed_models(cache) == []


def test_a_package_that_isnt_there_is_an_input_error(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        pull(EMBEDDED, cache, Progress(), from_file=tmp_path / "none.tgz")


def test_the_embedded_model_comes_with_a_photo(embedded_model: InstalledModel) -> None:
    assert embedded_model.name == EMBEDDED.name
    assert (embedded_model.licence, embedded_model.classes) == ("MIT", 80)
    assert embedded_model.sample
    assert embedded_model.sample.read_bytes().startswith(b"\xff\xd8\xff")


def test_every_catalogued_file_has_a_digest() -> None:
    for entry in CATALOGUE:
        assert all(len(bytes.fromhex(digest)) == 32 for digest in entry.to_json()["sha256"].values())
    assert EMBEDDED.to_json()["sha256"].keys() == {
        "package/models/centernet.json",
        "package/models/centernet.bin",
        "package/assets/samples.jpg",
    }
