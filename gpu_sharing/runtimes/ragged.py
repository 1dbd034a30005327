"""Rows of different lengths: padded into one array, or taken apart again, by one kernel on the lane's stream.

Rows come side by side in one block; `pad` spreads row r's `lengths[r]` items over [r, 0 … longest) of the result and fills the
rest. Arrays of NumPy take the same way through NumPy's own indexing. The kernel moves items of 1, 2, 4 or 8 bytes and knows no data
types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

THREADS = 256
MOST_BLOCKS = 4096
"""A loop strides over what is left, so that no batch needs more."""

ITEM_TYPES = {1: "unsigned char", 2: "unsigned short", 4: "unsigned int", 8: "unsigned long long"}

SOURCE = r"""
extern "C" __global__ void pad(
    const ITEM* __restrict__ flat, const long long* __restrict__ starts, ITEM* __restrict__ padded,
    long long rows, long long longest, long long inner, ITEM filler) {
  const long long total = rows * longest * inner;
  const long long stride = (long long)gridDim.x * blockDim.x;
  for (long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x; at < total; at += stride) {
    const long long row = at / (longest * inner);
    const long long within = at - row * longest * inner;
    const long long length = (starts[row + 1] - starts[row]) * inner;
    padded[at] = within < length ? flat[starts[row] * inner + within] : filler;
  }
}

extern "C" __global__ void unpad(
    const ITEM* __restrict__ padded, const long long* __restrict__ starts, ITEM* __restrict__ flat,
    long long rows, long long longest, long long inner) {
  const long long total = rows * longest * inner;
  const long long stride = (long long)gridDim.x * blockDim.x;
  for (long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x; at < total; at += stride) {
    const long long row = at / (longest * inner);
    const long long within = at - row * longest * inner;
    const long long length = (starts[row + 1] - starts[row]) * inner;
    if (within < length) flat[starts[row] * inner + within] = padded[at];
  }
}
"""
"""CUDA C++, with ITEM to be defined."""


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, as a model gets them and gives them back.

    padded: [rows, longest], on the model's device. lengths: items of each row, on the processor. shape: of the tensor whose
    elements the rows are, row-major; None: [rows].
    """

    padded: Any
    lengths: np.ndarray
    shape: tuple[int, ...] | None = None

    def mask(self, xp: Any) -> Any:
        """[rows, longest] of bool: what is no filling. xp: the module of `padded`: numpy or cupy."""
        return xp.arange(self.padded.shape[1])[None, :] < xp.asarray(self.lengths)[:, None]


def starts_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where each row starts in the block, in items of the first axis, and where the last one ends. ValueError: a negative length."""
    told = np.asarray(lengths, dtype=np.int64)
    if (told < 0).any():
        raise ValueError(f"lengths: must not be negative, are {told.tolist()}")
    return np.concatenate([[0], np.cumsum(told)]).astype(np.int64)


def grid(rows: int, longest: int, inner: int) -> int:
    """Blocks to launch; at least one."""
    return max(1, min(MOST_BLOCKS, -(-rows * longest * inner // THREADS)))


def source(item_bytes: int) -> str:
    """The kernels for items of so many bytes. ValueError for a size that there is none for."""
    if item_bytes not in ITEM_TYPES:
        raise ValueError(f"item_bytes: must be one of {', '.join(map(str, ITEM_TYPES))}, is {item_bytes}")
    return SOURCE.replace("ITEM", ITEM_TYPES[item_bytes])


@lru_cache(maxsize=16)
def kernel(name: str, item_bytes: int) -> Any:
    """`pad` or `unpad`, compiled: at load time, since the first call of a process takes long."""
    import cupy

    return cupy.RawKernel(source(item_bytes), name, options=("--std=c++17",))


def pad(flat: Any, starts: Any, longest: int, *, filler: int = 0) -> Any:
    """[rows, longest, …] from rows side by side [items, …], both arrays of NumPy or of CuPy, on CuPy's current stream.

    starts: as `starts_of` gives them, where `flat` is. filler: the bits of the item that fills up. Nothing is waited for.
    """
    rows = len(starts) - 1
    if isinstance(flat, np.ndarray):
        padded = np.empty((rows, longest, *flat.shape[1:]), flat.dtype)
        if padded.size:
            padded.view(_bits(flat))[...] = filler
            inside = _inside(starts, longest)
            padded[inside] = flat
        return padded
    import cupy

    padded = cupy.empty((rows, longest, *flat.shape[1:]), flat.dtype)
    _launch("pad", flat, starts, padded, padded, (_bits(flat).type(filler),))
    return padded


def unpad(padded: Any, starts: Any, items: int) -> Any:
    """The inverse: rows side by side [items, …] from [rows, longest, …]. items: of all rows together."""
    if isinstance(padded, np.ndarray):
        return padded[_inside(starts, padded.shape[1])]
    import cupy

    padded = cupy.ascontiguousarray(padded)
    flat = cupy.empty((items, *padded.shape[2:]), padded.dtype)
    _launch("unpad", padded, starts, flat, padded, ())
    return flat


def _inside(starts: np.ndarray, longest: int) -> np.ndarray:
    """[rows, longest] of bool: which items are a row's own."""
    return np.arange(longest)[None, :] < np.diff(starts)[:, None]


def _bits(array: Any) -> np.dtype[Any]:
    source(array.dtype.itemsize)
    return np.dtype(f"u{array.dtype.itemsize}")


def _launch(name: str, given: Any, starts: Any, made: Any, padded: Any, more: tuple[Any, ...]) -> None:
    rows, longest = padded.shape[:2]
    inner = int(np.prod(padded.shape[2:], dtype=np.int64))
    if not rows * longest * inner:
        return
    bits = _bits(given)
    sizes = (np.int64(rows), np.int64(longest), np.int64(inner))
    arguments = (given.view(bits), starts, made.view(bits), *sizes, *more)
    kernel(name, bits.itemsize)((grid(rows, longest, inner),), (THREADS,), arguments)
