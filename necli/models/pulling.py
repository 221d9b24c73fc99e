"""Brings models into the cache: from npm, from TensorFlow Hub, or from a folder or tarball of the user's."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from necli.errors import HostError, InputError, MeasurementMismatch
from necli.home import host_errors, make_private_folder, read_json, write_json_atomically
from necli.models.archive import unpack, unpack_locked
from necli.models.catalogue import HubSource, ModelEntry, NpmSource, SamplePhoto, find_entry
from necli.models.digest import digest_of
from necli.models.npm import npm_pack
from necli.models.store import SAMPLE, SAVED_MODEL, InstalledModel, Slot, model_slot, slug, verify_model
from necli.progress import Progress

_CONVERTER: Final = "necli.models.convert"
_CONVERTER_STAGES: Final = 3
# TensorFlow reads these when it is loaded: too late for the converter to set them itself.
_QUIET: Final = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}


def ensure_model(reference: str, cache: Path, progress: Progress) -> InstalledModel:
    """The model of that name, or in that folder or tarball, pulled if need be and verified in any case.

    :raises InputError: there is no such model.
    :raises MeasurementMismatch: it was changed since it was pulled.
    """
    entry = find_entry(reference)
    name = entry.name if entry else reference
    # A path's contents may have changed since they were copied, so only a bare name means the copy.
    known = name == slug(name) and (entry or not Path(name).exists())
    model = InstalledModel.load(cache / name) if known else None
    if model is None:
        return pull(reference, cache, progress)
    verify_model(model)
    return model


def pull(
    reference: str | ModelEntry,
    cache: Path,
    progress: Progress,
    *,
    from_file: Path | None = None,
    force: bool = False,
) -> InstalledModel:
    """Fetch, check and install a model of the catalogue, or copy one from a path; nothing if it is there.

    `from_file` is the package or archive of a catalogue's model, fetched by hand.

    :raises InputError: neither a name nor a path, or not a SavedModel.
    :raises MeasurementMismatch: what came isn't what is locked.
    :raises ServiceFailed: the source refuses, or broke off.
    :raises HostError: npm or TensorFlow is missing, or the disk is full.
    """
    entry = reference if isinstance(reference, ModelEntry) else find_entry(reference)
    if entry is None:
        return _import(Path(str(reference)), cache, progress)
    if from_file and not from_file.is_file():
        raise InputError(f"there is no file {from_file}", hint="check the path", code="no_such_file")
    with model_slot(cache, entry.name, progress) as slot:
        if not force and (model := _intact(slot, progress)):
            return model
        with progress.step(f"Model {entry.name}") as step:
            if isinstance(entry.source, NpmSource):
                _stage_from_npm(entry.source, slot, progress, from_file)
            else:
                _stage_from_hub(entry.source, slot, progress, from_file)
            model = slot.install(source=str(entry.source), licence=entry.licence, classes=entry.classes)
            step.note(f"{model.size / 1e6:.1f} MB, digest {model.digest[:16]}…")
        return model


def _intact(slot: Slot, progress: Progress) -> InstalledModel | None:
    try:
        if model := slot.installed():
            verify_model(model)
        return model
    except (MeasurementMismatch, InputError) as exc:
        progress.warn(f"{exc.message}; it is pulled again")
        return None


def _stage_from_npm(source: NpmSource, slot: Slot, progress: Progress, tarball: Path | None) -> None:
    parts = make_private_folder(slot.staging / "package")
    tarball = tarball or npm_pack(source.package, parts, progress)
    topology, weights, photo = unpack_locked(tarball, source.files, parts)
    _convert(topology, weights, slot.staging / SAVED_MODEL, progress)
    _cut_sample(source.sample, photo, slot.staging / SAMPLE)
    shutil.rmtree(parts)


def _convert(topology: Path, weights: Path, folder: Path, progress: Progress) -> None:
    """Run the converter, which says on stdout when a stage is done."""
    if importlib.util.find_spec("tensorflow") is None:
        raise HostError("converting the model needs TensorFlow", hint="pip install 'necli[local]'")
    # -P: no module of the folder that necli happens to be called in.
    argv = [sys.executable, "-P", "-m", _CONVERTER, str(topology), str(weights), str(folder)]
    with (
        progress.step("Convert to a SavedModel", total=_CONVERTER_STAGES) as step,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **_QUIET}
        ) as process,
    ):
        try:
            for done, _ in enumerate(process.stdout or (), 1):
                step.update(done)
        except BaseException:
            process.kill()
            raise
        if process.wait() != 0:
            errors.seek(0)
            last = errors.read().strip().rpartition("\n")[2] or f"exit status {process.returncode}"
            raise HostError(f"converting the model failed: {last}", hint="run necli doctor")


def _cut_sample(sample: SamplePhoto, photo: Path, target: Path) -> None:
    from PIL import Image

    with Image.open(photo) as image:
        part = image.convert("RGB").crop(sample.crop)
    size = (part.width * sample.enlarge, part.height * sample.enlarge)
    part.resize(size, Image.Resampling.LANCZOS).save(target, quality=92)


def _stage_from_hub(source: HubSource, slot: Slot, progress: Progress, archive: Path | None) -> None:
    if archive is None:
        archive = _download(source, slot, progress)
    try:
        digest = _check_lock(source, slot, archive)
        _unpack_saved_model(archive, slot.staging / SAVED_MODEL)
    except (InputError, MeasurementMismatch):
        slot.download.unlink(missing_ok=True)  # it will never do
        raise
    if not slot.locked_digest.exists():
        write_json_atomically(slot.locked_digest, {"source": str(source), "sha256": digest})
        progress.warn(f"no digest of {source} is published: SHA-256 {digest} is locked now, at first use")
    slot.download.unlink(missing_ok=True)


def _check_lock(source: HubSource, slot: Slot, archive: Path) -> str:
    locked = read_json(slot.locked_digest)
    with host_errors(f"can't read {archive}"):
        digest = digest_of(archive, "sha256")
    if locked and locked["sha256"] != digest:
        raise MeasurementMismatch(
            f"{source} isn't what it was when it was first pulled: SHA-256 {digest}, not {locked['sha256']}",
            hint=f"if you trust the new one, remove {slot.locked_digest} and pull again",
            code="digest_mismatch",
        )
    return digest


def _download(source: HubSource, slot: Slot, progress: Progress) -> Path:
    from necli.models.download import download  # httpx takes its time to load

    with progress.step(f"Download {source}", unit="B") as step:
        download(source.url, slot.download, step)
    return slot.download


def _unpack_saved_model(archive: Path, folder: Path) -> None:
    """Unpack an archive with a SavedModel at its top or in its only folder."""
    unpack(archive, make_private_folder(folder))
    entries = list(folder.iterdir())
    if len(entries) == 1 and (entries[0] / "saved_model.pb").is_file():
        inner = entries[0].rename(folder.with_name(f"{folder.name}.inner"))
        folder.rmdir()
        inner.rename(folder)
    if not (folder / "saved_model.pb").is_file():
        raise InputError(f"{archive.name} holds no SavedModel: it has no saved_model.pb")


def _import(path: Path, cache: Path, progress: Progress) -> InstalledModel:
    """Copy a SavedModel's folder, or unpack its tarball, under its own name."""
    if not path.exists():
        raise InputError(f"there is no model and no path {str(path)!r}", hint="necli model list")
    if path.is_dir() and not (path / "saved_model.pb").is_file():
        raise InputError(f"{path} is no SavedModel: it has no saved_model.pb", hint="necli model list")
    name = slug(path.resolve().name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar"))
    if find_entry(name):
        name = f"local-{name}"
    with model_slot(cache, name, progress) as slot, progress.step(f"Model {name}") as step:
        staged = slot.staging / SAVED_MODEL
        if path.is_dir():
            with host_errors(f"can't copy {path}"):
                shutil.copytree(path, staged)
        else:
            _unpack_saved_model(path, staged)
        model = slot.install(source=str(path.resolve()))
        step.note(f"{model.size / 1e6:.1f} MB, digest {model.digest[:16]}…")
        return model
