"""The models that necli knows by name, and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final


@dataclass(frozen=True)
class LockedFile:
    """A file in a package, and the only content it may have."""

    path: str
    sha256: str


@dataclass(frozen=True)
class SamplePhoto:
    """A picture to try the model on: `crop` (left, top, right, bottom) of a file in the package, enlarged."""

    file: LockedFile
    crop: tuple[int, int, int, int]
    enlarge: int


@dataclass(frozen=True)
class NpmSource:
    """A TensorFlow.js graph in an npm package, which necli converts."""

    kind: ClassVar[str] = "npm"
    package: str
    topology: LockedFile
    weights: LockedFile
    sample: SamplePhoto

    @property
    def files(self) -> tuple[LockedFile, ...]:
        return (self.topology, self.weights, self.sample.file)

    def __str__(self) -> str:
        return f"{self.kind} {self.package}"


@dataclass(frozen=True)
class HubSource:
    """A compressed SavedModel on TensorFlow Hub; no digest is published, so the first one seen is locked."""

    kind: ClassVar[str] = "TF Hub"
    handle: str

    @property
    def url(self) -> str:
        return f"https://tfhub.dev/{self.handle}?tf-hub-format=compressed"

    @property
    def short_handle(self) -> str:
        """Without publisher and version."""
        return self.handle.partition("/")[2].rpartition("/")[0]

    def __str__(self) -> str:
        return f"{self.kind} {self.handle}"


@dataclass(frozen=True)
class ModelEntry:
    name: str
    summary: str
    licence: str
    classes: int
    download_bytes: int
    """What is fetched; for TF Hub's an estimate from the networks' parameter counts."""
    source: NpmSource | HubSource

    def to_json(self) -> dict[str, Any]:
        files = self.source.files if isinstance(self.source, NpmSource) else ()
        return {
            "name": self.name,
            "summary": self.summary,
            "licence": self.licence,
            "classes": self.classes,
            "source": str(self.source),
            "download_bytes": self.download_bytes,
            "sha256": {file.path: file.sha256 for file in files},
        }


CATALOGUE: Final = (
    ModelEntry(
        name="centernet-mobilenetv3",
        summary="CenterNet on MobileNetV3, COCO classes: small and quick, the default",
        licence="MIT",
        classes=80,
        download_bytes=28_615_417,
        source=NpmSource(
            package="@vladmandic/human@3.3.6",
            topology=LockedFile(
                "package/models/centernet.json",
                "bfb942eaacc5becf738d536663bc4580a0ae9e560722306e6d4dd7fe4a09de05",
            ),
            weights=LockedFile(
                "package/models/centernet.bin",
                "1b635a15009071f506f9f2b3519b31c072c534888989f30d269ffd44734ef7ef",
            ),
            # A collage; this part of it is a man at a dinner table, with a glass on it.
            sample=SamplePhoto(
                LockedFile(
                    "package/assets/samples.jpg",
                    "cc08cc353cbb38beb0ac32a0900a92e78a3656acb477212ac360e3da6331bb9e",
                ),
                crop=(325, 0, 538, 158),
                enlarge=4,
            ),
        ),
    ),
    ModelEntry(
        name="faster-rcnn-inception",
        summary="Faster R-CNN on Inception ResNet V2, Open Images V4 classes: large, slow, the most exact",
        licence="Apache-2.0",
        classes=600,
        download_bytes=240_000_000,
        source=HubSource("google/faster_rcnn/openimages_v4/inception_resnet_v2/1"),
    ),
    ModelEntry(
        name="ssd-mobilenet-v2",
        summary="SSD on MobileNet V2, Open Images V4 classes: quick",
        licence="Apache-2.0",
        classes=600,
        download_bytes=55_000_000,
        source=HubSource("google/openimages_v4/ssd/mobilenet_v2/1"),
    ),
)

DEFAULT_MODEL: Final = CATALOGUE[0].name


def find_entry(name: str) -> ModelEntry | None:
    """The entry of that name; TF Hub's also answer to their handle, with or without publisher and version."""
    return next((entry for entry in CATALOGUE if name in _names(entry)), None)


def _names(entry: ModelEntry) -> set[str]:
    if isinstance(entry.source, HubSource):
        return {entry.name, entry.source.handle, entry.source.short_handle}
    return {entry.name}
