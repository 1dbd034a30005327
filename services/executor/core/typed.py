"""Typed tensor contents: which field of `contents` carries which data type, and its values as raw bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

BYTES_KIND = "bytes_contents"

TYPED_KINDS: dict[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": BYTES_KIND,
}
"""FP16 and BF16 are not here: the protocol carries them raw only."""

AS_THEY_ARE = frozenset({"fp32_contents", "fp64_contents"})
"""Kinds whose bytes in a message are those of a raw content."""

MOST_CONVERTED = 1 << 18
"""Typed elements of other kinds that one input may have: each costs a tenth of a microsecond, and others wait for it."""


Values: TypeAlias = Sequence[Any] | np.ndarray[Any, Any]


def to_bytes(values: Values, dtype: np.dtype[Any] | None) -> bytes:
    """Values as a raw content: row-major, little-endian; BYTES (dtype None) each behind its length.

    Raises OverflowError, naming the element, where one does not fit an integer type: errors tell of places, never of values.
    """
    if dtype is None:
        return b"".join(part for value in values for part in (struct.pack("<I", len(value)), value))
    if dtype.kind in "iu" and len(values):
        limits = np.iinfo(dtype)
        wide = np.array(values, dtype=np.uint64 if dtype == np.uint64 else np.int64)
        if wide.min() < limits.min or wide.max() > limits.max:
            place = next(at for at, value in enumerate(values) if not limits.min <= value <= limits.max)
            raise OverflowError(f"element {place}")
        return wide.astype(dtype).tobytes()
    return np.array(values, dtype=dtype).tobytes()
