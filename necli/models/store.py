"""The model cache: one folder a model, complete or absent.

NAME/saved_model/       what goes into an enclave image, and nothing else
NAME/model.json         what it is, where it came from, and the digest of every file
NAME/sample.jpg         a photo to try it on, where its source has one
digests/NAME.json       the digest of a download, locked when it was first seen; outlives the model
downloads/NAME.tar.gz  a download, until it is unpacked; with .part behind it, one under way
.NAME.partial-*, .NAME.lock
"""

from __future__ import annotations

import fcntl
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from necli.errors import InputError, MeasurementMismatch, NotReady
from necli.home import host_errors, make_private_folder, read_json, write_json_atomically
from necli.models.catalogue import find_entry
from necli.models.digest import FileDigest, FolderDigest, digest_folder
from necli.progress import Progress

SAVED_MODEL = "saved_model"
SAMPLE = "sample.jpg"
_MANIFEST = "model.json"
_SCHEMA = 1
# Differs from build to build, and TensorFlow doesn't need it: never taken into the cache, so never measured.
_NOT_MEASURED = "fingerprint.pb"


@dataclass(frozen=True)
class InstalledModel:
    name: str
    folder: Path
    source: str
    contents: FolderDigest
    licence: str | None = None
    classes: int | None = None
    """How many kinds of objects it knows; None where nobody said."""

    @property
    def path(self) -> Path:
        """The SavedModel's folder."""
        return self.folder / SAVED_MODEL

    @property
    def digest(self) -> str:
        """SHA-384 in hex over every file of it."""
        return self.contents.sha384

    @property
    def size(self) -> int:
        return self.contents.size

    @property
    def reference(self) -> str:
        """What `pull` takes to get it again."""
        return self.name if find_entry(self.name) else self.source

    @property
    def sample(self) -> Path | None:
        path = self.folder / SAMPLE
        return path if path.is_file() else None

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": _SCHEMA,
            "name": self.name,
            "digest": self.digest,
            "source": self.source,
            "licence": self.licence,
            "classes": self.classes,
            "files": {
                path: {"sha384": file.sha384, "size": file.size} for path, file in self.contents.files.items()
            },
        }

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """What is recorded of the model in `folder`; None where no whole one is.

        :raises InputError: the record is damaged.
        """
        value = read_json(folder / _MANIFEST)
        if value is None:
            return None
        try:
            files = {
                str(path): FileDigest(str(file["sha384"]), int(file["size"]))
                for path, file in value["files"].items()
            }
            return cls(
                name=str(value["name"]),
                folder=folder,
                source=str(value["source"]),
                contents=FolderDigest(files),
                licence=value["licence"],
                classes=value["classes"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise InputError(
                f"{folder / _MANIFEST} is damaged", hint=f"necli model pull {folder.name} --force"
            ) from exc


def installed_models(cache: Path) -> list[InstalledModel]:
    """Every model in the cache, by name."""
    models = [InstalledModel.load(manifest.parent) for manifest in sorted(cache.glob(f"[!.]*/{_MANIFEST}"))]
    return [model for model in models if model]


def verify_model(model: InstalledModel) -> None:
    """Hash every file anew.

    :raises MeasurementMismatch: something changed since the model was pulled; names the first such file.
    """
    recorded, found = model.contents.files, digest_folder(model.path).files
    for path in sorted(recorded.keys() | found.keys()):
        if recorded.get(path) != found.get(path):
            state = (
                "is missing" if path not in found else "was added" if path not in recorded else "was changed"
            )
            raise MeasurementMismatch(
                f"the model {model.name} isn't what was pulled: {path} {state}",
                hint=f"necli model pull {model.reference} --force",
                code="model_changed",
            )


def verify_installed(cache: Path, name: str | None = None) -> list[InstalledModel]:
    """Verify one model, or all.

    :raises NotReady: it isn't installed, or none is.
    :raises MeasurementMismatch: see `verify_model`.
    """
    models = [model for model in installed_models(cache) if name in (None, model.name)]
    if not models:
        which = f"the model {name} isn't" if name else "no model is"
        raise NotReady(f"{which} installed", hint=f"necli model pull {name or ''}".rstrip())
    for model in models:
        verify_model(model)
    return models


@dataclass(frozen=True)
class Slot:
    """The place of one model in the cache, held by this process alone."""

    cache: Path
    name: str
    staging: Path
    """An empty folder; whatever isn't installed from it goes away."""

    @property
    def download(self) -> Path:
        return make_private_folder(self.cache / "downloads") / f"{self.name}.tar.gz"

    @property
    def locked_digest(self) -> Path:
        return self.cache / "digests" / f"{self.name}.json"

    def installed(self) -> InstalledModel | None:
        return InstalledModel.load(self.cache / self.name)

    def install(
        self, *, source: str, licence: str | None = None, classes: int | None = None
    ) -> InstalledModel:
        """Make what was staged the model of this name."""
        saved_model = self.staging / SAVED_MODEL
        (saved_model / _NOT_MEASURED).unlink(missing_ok=True)
        final = self.cache / self.name
        model = InstalledModel(self.name, final, source, digest_folder(saved_model), licence, classes)
        write_json_atomically(self.staging / _MANIFEST, model.to_json())
        with host_errors(f"can't install the model in {self.cache}"):
            if final.exists():
                shutil.rmtree(final)
            self.staging.rename(final)
        return model


@contextmanager
def model_slot(cache: Path, name: str, progress: Progress) -> Iterator[Slot]:
    """Hold a model's place, waiting for whoever has it; the kernel frees it with the process."""
    make_private_folder(cache)
    with _locked(cache / f".{name}.lock", progress, f"waiting for another necli, which is pulling {name}"):
        for left in cache.glob(f".{name}.partial-*"):  # by one that was killed
            shutil.rmtree(left, ignore_errors=True)
        with host_errors(f"can't make a folder in {cache}"):
            # Never the same: a killed necli's converter may still be writing into its own.
            staging = Path(tempfile.mkdtemp(prefix=f".{name}.partial-", dir=cache))
        try:
            yield Slot(cache, name, staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _locked(path: Path, progress: Progress, waiting: str) -> Iterator[None]:
    with host_errors(f"can't lock {path}"):
        lock = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed below, outside of host_errors
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(waiting)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def slug(name: str) -> str:
    """A file's name as one that a folder of the cache may have."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip(".-") or "model"
