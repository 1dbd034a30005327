"""The repeated options of a push: NAME=AXIS and NAME=SHAPE[:VALUE[:TYPE]]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from services.cli.errors import usage

TYPES: dict[str, str] = {
    "BOOL": "?",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
NO_AXIS = -1


def batch_axes(options: Sequence[str]) -> dict[str, int]:
    """ "state=1", "sr=none" as axes by tensor name; none is -1."""
    axes: dict[str, int] = {}
    for text in options:
        name, equals, axis = text.partition("=")
        if not (name and equals):
            raise usage(f"--batch-axis: {text!r} is not NAME=AXIS")
        if axis in ("none", "-1"):
            axes[name] = NO_AXIS
        elif axis.isdigit():
            axes[name] = int(axis)
        else:
            raise usage(f"--batch-axis: {text!r}: {axis!r} is neither an axis nor none")
    return axes


def warmup(text: str) -> tuple[str, tuple[int, ...], bytes]:
    """ "sr=scalar:16000:INT64" as (name, shape, data): row-major little-endian, every element the value.

    Without a value, no data: zeros. Without a type, INT64 for a whole number and FP32 for another.
    """
    name, equals, rest = text.partition("=")
    extents, *value = rest.split(":")
    if not (name and equals and extents) or len(value) > 2:
        raise usage(f"--warmup: {text!r} is not NAME=SHAPE[:VALUE[:TYPE]], with a SHAPE like 1x16 or scalar")
    try:
        shape = () if extents == "scalar" else tuple(int(extent) for extent in extents.split("x"))
        if any(extent < 1 for extent in shape):
            raise ValueError
    except ValueError:
        raise usage(f"--warmup: {text!r}: {extents!r} is not a shape like 1x16 or scalar") from None
    return name, shape, _filled(text, shape, value)


def _filled(text: str, shape: tuple[int, ...], value: list[str]) -> bytes:
    if not value:
        return b""
    try:
        whole = value[0].lstrip("+-").isdigit()
        number = int(value[0]) if whole else float(value[0])
        datatype = value[1] if len(value) == 2 else ("INT64" if whole else "FP32")
        if datatype not in TYPES:
            raise usage(f"--warmup: {text!r}: {datatype!r} is none of {', '.join(TYPES)}")
        return np.full(math.prod(shape), number, dtype=np.dtype(TYPES[datatype])).tobytes()
    except (ValueError, OverflowError) as error:
        raise usage(f"--warmup: {text!r}: {error}") from None
