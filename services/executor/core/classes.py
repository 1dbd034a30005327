"""The classification extension: the largest values of an output, as text, in place of the output itself."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpu_sharing.tensors import NUMPY_NAMES

MOST_ELEMENTS = 1 << 20
"""Elements of one output that are looked through for its classes: others wait meanwhile."""


def classify(
    content: bytes | memoryview, datatype: str, shape: Sequence[int], most: int, *, batched: bool, labels: Sequence[str]
) -> tuple[bytes, tuple[int, ...]]:
    """The `most` largest values of each row as "value:index" or "value:index:label", as BYTES, and their shape.

    content: a raw tensor of a numeric data type. batched: axis 0 holds rows, each with classes of its own. Equal values
    come by index; values that are not a number come last.
    """
    values = _values(content, datatype)
    rows = shape[0] if batched and shape else 1
    table = values.reshape(rows, -1)
    most = min(most, table.shape[1])
    parts: list[bytes] = []
    for row in table:
        for index in _largest(row, most):
            text = _text(row[index])
            label = f":{labels[index]}" if index < len(labels) else ""
            told = f"{text}:{index}{label}".encode()
            parts += (struct.pack("<I", len(told)), told)
    return b"".join(parts), (rows, most) if batched else (most,)


def _values(content: bytes | memoryview, datatype: str) -> np.ndarray[Any, Any]:
    values = np.frombuffer(content, NUMPY_NAMES[datatype])
    if datatype == "BF16":
        # The upper half of a float32.
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


def _largest(row: np.ndarray[Any, Any], most: int) -> list[int]:
    if not most:
        return []
    ranked = np.where(np.isnan(row), -np.inf, row) if row.dtype.kind == "f" else row
    if most < len(ranked):
        least = np.partition(ranked, len(ranked) - most)[len(ranked) - most]
        # The least value that is wanted may occur more often than it is wanted: the first of those are.
        above, equal = np.flatnonzero(ranked > least), np.flatnonzero(ranked == least)
        found = np.concatenate((above, equal[: most - len(above)]))
    else:
        found = np.arange(len(ranked))
    chosen = [int(index) for index in found]
    return sorted(chosen, key=lambda index: (-_number(ranked[index]), index))


def _number(value: Any) -> float | int:
    return int(value) if value.dtype.kind in "iub" else float(value)


def _text(value: Any) -> str:
    if value.dtype.kind in "iub":
        return str(int(value))
    number = float(value)
    return f"{number:f}" if math.isfinite(number) else str(number)
