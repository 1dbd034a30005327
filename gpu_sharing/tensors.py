"""Tensors as the Open Inference Protocol names them: data types, specs and signatures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from gpu_sharing.units import Bytes

ITEM_BYTES: dict[str, Bytes] = {
    "BOOL": 1,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
}
"""Bytes of one element. BYTES is not here: its elements are a 4-byte little-endian length and that many bytes."""

DATATYPES = frozenset((*ITEM_BYTES, "BYTES"))

NUMPY_NAMES: dict[str, str] = {
    "BOOL": "bool",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "FP16": "float16",
    # NumPy has no bfloat16: its bits travel as uint16, and runtimes that know the type view them as such.
    "BF16": "uint16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}
"""The NumPy type that holds a data type's elements."""


class TensorSpec(msgspec.Struct, frozen=True):
    """One named input or output.

    shape: the whole shape, batch axis included; None where the extent varies between requests.
    symbols: one per dimension; equal non-empty symbols of one signature have equal extents in a request.
    batch_axis: the axis along which requests are joined; None: the tensor has none, and requests share a batch only
        where its bytes agree.
    """

    name: str
    datatype: str
    shape: tuple[int | None, ...]
    symbols: tuple[str, ...] = ()
    batch_axis: int | None = None
    optional: bool = False


class Signature(msgspec.Struct, frozen=True):
    """What a model takes and gives. max_batch_size: rows that one batch may hold; 0: requests run one at a time."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = 0


def byte_count(datatype: str, shape: Sequence[int]) -> Bytes | None:
    """The bytes of a tensor; None for BYTES, whose elements differ in length. KeyError for an unknown data type."""
    if datatype == "BYTES":
        return None
    return ITEM_BYTES[datatype] * math.prod(shape)


class WarmupTensor(msgspec.Struct, frozen=True):
    """One input of a warm-up request of one row; no data: zeros."""

    name: str
    shape: tuple[int, ...]
    data: bytes = b""
