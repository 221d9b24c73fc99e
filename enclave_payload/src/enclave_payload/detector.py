"""Runs an object-detection SavedModel with the interface of TensorFlow Hub's detectors.

TensorFlow's C++ side talks on stderr from the moment it is loaded. Whoever starts the process quiets it with
TF_CPP_MIN_LOG_LEVEL=2 in its environment: setting it here would be too late, and would change a global of
whoever imports this.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from enclave_payload.imaging import Pixels

try:
    import tensorflow_hub
except ImportError:  # an enclave image may leave it out: it gives bit-equal outputs, and weighs a lot
    tensorflow_hub = None

Box: TypeAlias = tuple[float, float, float, float]
"""ymin, xmin, ymax, xmax, as fractions of the image's height and width."""

_OUTPUTS: Final = frozenset({"detection_boxes", "detection_scores", "detection_class_entities"})


class ModelError(Exception):
    """The folder holds no object detector that can be used here."""


@dataclass(frozen=True)
class Detection:
    name: str
    score: float
    box: Box


class Detector:
    """A loaded model. `detect` may be called from several threads at once."""

    def __init__(self, model: Any, signature: Any, input_size: int | None) -> None:
        self._model = model  # a signature alone doesn't keep the model's variables alive
        self._signature = signature
        ((self._input, spec),) = signature.structured_input_signature[1].items()
        self._dtype = spec.dtype
        self.input_size = input_size
        """The longest side that the model looks at, where it says so; see `decode_image`."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """:raises ModelError: no SavedModel, or not one of a detector."""
        load = tensorflow_hub.load if tensorflow_hub else tf.saved_model.load
        try:
            model = load(str(folder))
        except (OSError, ValueError, tf.errors.OpError) as exc:
            raise ModelError(f"{folder} holds no SavedModel that loads: {exc}") from exc
        signatures = model.signatures
        signature = signatures.get("uint8", signatures.get("default"))
        if signature is None:
            raise ModelError(f"{folder} has no signature called default, only {sorted(signatures)}")
        if missing := _OUTPUTS - signature.structured_outputs.keys():
            raise ModelError(f"{folder} is no object detector: it has no output {min(missing)}")
        return cls(model, signature, _input_size(folder))

    def warm_up(self) -> None:
        """Have TensorFlow optimise its graph (0.5 s) before the first image does."""
        self.detect(np.zeros((8, 8, 3), np.uint8))

    def detect(self, pixels: Pixels) -> list[Detection]:
        """Everything that the model finds, best first; the caller draws the line."""
        images = tf.constant(pixels[None])
        if images.dtype != self._dtype:
            images = tf.image.convert_image_dtype(images, self._dtype)
        outputs = self._signature(**{self._input: images})
        scores = outputs["detection_scores"].numpy()
        names = outputs["detection_class_entities"].numpy()
        boxes = np.clip(outputs["detection_boxes"].numpy(), 0.0, 1.0)
        order = [i for i in np.argsort(-scores, kind="stable") if scores[i] > 0]
        return [Detection(names[i].decode(errors="replace"), float(scores[i]), _box(boxes[i])) for i in order]


def _box(corners: npt.NDArray[np.float32]) -> Box:
    ymin, xmin, ymax, xmax = corners.tolist()
    return ymin, xmin, ymax, xmax


def _input_size(folder: Path) -> int | None:
    """`assets.extra` is the part of a SavedModel that TensorFlow leaves to others."""
    try:
        facts = json.loads((folder / "assets.extra" / "detector.json").read_bytes())
    except FileNotFoundError:
        return None
    return int(facts["input_size"])
