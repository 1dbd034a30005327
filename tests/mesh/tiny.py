"""Tiny ONNX models that mesh tests push."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.gpu_sharing.artefact_samples import onnx_bytes

TYPES: dict[str, int] = {
    "bool": TensorProto.BOOL,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "object": TensorProto.STRING,
}
"""ONNX's types by NumPy's names."""


def echo(path: Path, *kinds: str) -> Path:
    """A model with an input `in_KIND` and an equal output `out_KIND`, both [batch, n], for each of these types."""
    shape = ["batch", "n"]
    data = onnx_bytes(
        [helper.make_node("Identity", [f"in_{kind}"], [f"out_{kind}"]) for kind in kinds],
        [(f"in_{kind}", TYPES[kind], shape) for kind in kinds],
        [(f"out_{kind}", TYPES[kind], shape) for kind in kinds],
    )
    path.write_bytes(data)
    return path


def slow(path: Path) -> Path:
    """A model that multiplies a matrix by itself `turns` times (INT64 [1]), some ten thousand a second, in one segment."""
    matrix = np.full((160, 160), 1 / 160, np.float32)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["goes_on"]),
            helper.make_node("MatMul", ["h", "matrix"], ["product"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, [160, 160]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("product", TensorProto.FLOAT, [160, 160]),
        ],
    )
    data = onnx_bytes(
        [
            helper.make_node("Squeeze", ["turns"], ["count"]),
            helper.make_node("Loop", ["count", "", "matrix"], ["last"], body=body),
            helper.make_node("ReduceMean", ["last"], ["mean"], keepdims=0),
        ],
        [("turns", TensorProto.INT64, [1])],
        [("mean", TensorProto.FLOAT, [])],
        [onnx.numpy_helper.from_array(matrix, "matrix")],
    )
    path.write_bytes(data)
    return path


def inflate(path: Path) -> Path:
    """A model whose output `y` holds as many zeros (FP32) as its input `size` (INT64 [1]) says."""
    data = onnx_bytes(
        [helper.make_node("ConstantOfShape", ["size"], ["y"])],
        [("size", TensorProto.INT64, [1])],
        [("y", TensorProto.FLOAT, ["n"])],
    )
    path.write_bytes(data)
    return path
