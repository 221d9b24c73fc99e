"""Reads TensorFlow.js graph models: a topology in JSON, and weights one after the other in a binary file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tensorflow as tf  # noqa: TID253 - only ever imported by the converter's own process
from google.protobuf import json_format  # type: ignore[import-untyped]

_FLOAT: Final = tf.float32.as_datatype_enum
_FUSED: Final = {"_FusedConv2D": "Conv2D", "FusedDepthwiseConv2dNative": "DepthwiseConv2dNative"}
_FUSED_ATTRIBUTES: Final = ("num_args", "epsilon", "fused_ops", "leakyrelu_alpha")


def read_graph_model(topology: Path, weights: Path) -> Any:
    """The model as a GraphDef that TensorFlow itself runs.

    :raises ValueError: the two files don't belong together.
    """
    model = json.loads(topology.read_bytes())
    tensors = _unpack(model["weightsManifest"], weights.read_bytes())
    graph = tf.compat.v1.GraphDef()
    for value in model["modelTopology"]["node"]:
        graph.node.extend(_translate(json_format.ParseDict(value, tf.compat.v1.NodeDef()), tensors))
    return graph


def _unpack(manifest: list[Any], raw: bytes) -> dict[str, npt.NDArray[Any]]:
    tensors = {}
    offset = 0
    for entry in (entry for group in manifest for entry in group["weights"]):
        quantization = entry.get("quantization", {})
        stored = np.dtype(quantization.get("dtype", entry["dtype"])).newbyteorder("<")
        tensor = np.frombuffer(raw, stored, math.prod(entry["shape"]), offset)
        offset += tensor.nbytes
        tensor = tensor.reshape(entry["shape"]).astype(entry["dtype"])
        if "scale" in quantization:
            tensor = tensor * tensor.dtype.type(quantization["scale"]) + tensor.dtype.type(
                quantization["min"]
            )
        tensors[entry["name"]] = tensor
    if offset != len(raw):
        raise ValueError(f"the weights are {len(raw)} bytes long, their manifest says {offset}")
    return tensors


def _translate(node: Any, tensors: Mapping[str, npt.NDArray[Any]]) -> Iterator[Any]:
    node.device = ""
    node.attr.pop("_grappler_ArithmeticOptimizer_MinimizeBroadcasts", None)
    if node.op == "Const":
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(tensors[node.name]))
    elif node.op == "Placeholder":
        node.attr["shape"].shape.CopyFrom(tf.TensorShape(None).as_proto())
    if node.op in _FUSED:
        yield from _split(node)
    else:
        yield node


def _split(fused: Any) -> Iterator[Any]:
    """A fused convolution as its parts: only TensorFlow's own optimiser may write the fused form.

    The last part keeps the name, as that is what the rest of the graph refers to.
    """
    steps = [step.decode() for step in fused.attr["fused_ops"].list.s]
    convolution, *names = [f"{fused.name}/{part}" for part in ("convolution", *steps[:-1])] + [fused.name]
    inputs, bias = fused.input[:2], fused.input[2]
    for attribute in _FUSED_ATTRIBUTES:
        fused.attr.pop(attribute, None)
    yield tf.compat.v1.NodeDef(name=convolution, op=_FUSED[fused.op], input=inputs, attr=fused.attr)
    before = convolution
    for name, step in zip(names, steps, strict=True):
        part = tf.compat.v1.NodeDef(
            name=name, op=step, input=[before, bias] if step == "BiasAdd" else [before]
        )
        part.attr["T"].type = _FLOAT
        yield part
        before = name
