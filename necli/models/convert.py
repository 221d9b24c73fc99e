"""Makes the embedded detector's SavedModel from its TensorFlow.js graph: `python -m necli.models.convert`.

It runs as a process of its own, so that necli never imports TensorFlow, and writes a line to stdout when a
stage is done. The same input gives the same bytes with the same TensorFlow: there are no variables, only
constants, and `fingerprint.pb`, which differs from run to run, is left out.

The network is CenterNet on MobileNetV3 (https://github.com/610265158/mobilenetv3_centernet). What stands
around it gives it the interface of TensorFlow Hub's detectors: signature `default`, images float32
[1, H, W, 3] in 0..1. A second signature, `uint8`, takes a decoded image as it is, which spares converting.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

import tensorflow as tf  # noqa: TID253 - this module is only ever run, see above

from necli.models.labels import COCO
from necli.models.tfjs import read_graph_model

_INPUT: Final = 512
_GREY: Final = 114.0  # what the network was trained to see around a picture
_SAME_OBJECT: Final = 0.4  # the overlap from which two boxes of a class are one
_APART: Final = 4.0 * _INPUT  # farther than any box reaches beyond the picture


def save_detector(graph: Any, folder: Path) -> None:
    """Write the SavedModel of the CenterNet in `graph`."""
    module = tf.Module()
    network = _network(graph)
    signatures = {
        "default": _signature(network, tf.float32, scale=255.0),
        "uint8": _signature(network, tf.uint8, scale=1.0),
    }
    tf.saved_model.save(module, str(folder), signatures=signatures)
    (folder / "fingerprint.pb").unlink(missing_ok=True)
    extra = folder / "assets.extra"
    extra.mkdir()
    (extra / "detector.json").write_text(json.dumps({"input_size": _INPUT}) + "\n", encoding="utf-8")


def _network(graph: Any) -> Any:
    """Letterboxed pixels in 0..255 to the 100 best peaks: left, top, right, bottom, score, class."""

    @tf.function(input_signature=[tf.TensorSpec([1, _INPUT, _INPUT, 3], tf.float32)])  # type: ignore[untyped-decorator]
    def network(pixels: Any) -> Any:
        inputs = {"tower_0/images": pixels}
        (peaks,) = tf.graph_util.import_graph_def(graph, inputs, ["tower_0/detections:0"], name="")
        return peaks[0]

    return network


def _signature(network: Any, dtype: Any, scale: float) -> Any:
    @tf.function(input_signature=[tf.TensorSpec([1, None, None, 3], dtype, name="images")])  # type: ignore[untyped-decorator]
    def detect(images: Any) -> dict[str, Any]:
        pixels, content = _letterbox(images, scale)
        return _detections(network(pixels), content)

    return detect


def _letterbox(images: Any, scale: float) -> tuple[Any, Any]:
    """Fit the picture into the upper left of the network's square; also its height and width there."""
    shape = tf.cast(tf.shape(images)[1:3], tf.float32)
    content = tf.maximum(tf.round(shape * (_INPUT / tf.reduce_max(shape))), 1)
    height, width = tf.unstack(tf.cast(content, tf.int32))
    resized = tf.image.resize(images, [height, width]) * scale
    margins = [[0, 0], [0, _INPUT - height], [0, _INPUT - width], [0, 0]]
    pixels = tf.pad(resized, margins, constant_values=_GREY)
    return tf.ensure_shape(pixels, [1, _INPUT, _INPUT, 3]), content


def _detections(peaks: Any, content: Any) -> dict[str, Any]:
    left, top, right, bottom, scores, classes = tf.unstack(peaks, axis=1)
    boxes = tf.stack([top, left, bottom, right], axis=1)
    # Boxes of different classes are moved apart, so that they never suppress each other.
    apart = boxes + classes[:, None] * _APART
    kept = tf.image.non_max_suppression(apart, scores, len(peaks), iou_threshold=_SAME_OBJECT)
    boxes, scores, classes = (tf.gather(values, kept) for values in (boxes, scores, classes))
    classes = tf.cast(classes, tf.int64)
    names = tf.gather(tf.constant(COCO), classes)
    return {
        "detection_boxes": tf.clip_by_value(boxes / tf.tile(content, [2]), 0.0, 1.0),
        "detection_scores": scores,
        "detection_class_labels": classes + 1,  # as in COCO's tables, 1 is the first
        "detection_class_names": names,
        "detection_class_entities": names,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert the embedded detector to a SavedModel.")
    parser.add_argument("topology", type=Path, help="centernet.json")
    parser.add_argument("weights", type=Path, help="centernet.bin")
    parser.add_argument("folder", type=Path, help="where the SavedModel goes")
    arguments = parser.parse_args()
    print("TensorFlow loaded", flush=True)
    graph = read_graph_model(arguments.topology, arguments.weights)
    print("graph read", flush=True)
    save_detector(graph, arguments.folder)
    print("SavedModel written", flush=True)


if __name__ == "__main__":
    main()
