"""Rows of different lengths on a GPU: padded into one tensor, or taken apart again, by one kernel on the lane's stream.

Requests come side by side in one block; `pad` spreads row r's `lengths[r]` items over [r, 0 … longest) of the result and fills the
rest. The kernel moves items of 1, 2, 4 or 8 bytes and knows no data types. CuPy and torch hand memory to each other by DLPack.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def starts_of(lengths: Sequence[int]) -> np.ndarray:
    """Where each row starts in the block, in items of the first axis, and where the last one ends. ValueError: a negative length."""
    if any(length < 0 for length in lengths):
        raise ValueError(f"lengths: must not be negative, are {list(lengths)}")
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]).astype(np.int64)


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


def pad(flat: Any, lengths: Sequence[int], *, filler: int = 0) -> Any:
    """A torch tensor [rows, longest, …] from rows side by side [items, …], on the calling thread's current torch stream.

    filler: the bits of the item that fills up. Both tensors share the device; nothing is waited for.
    """
    import torch

    starts = starts_of(lengths)
    if starts[-1] != flat.shape[0]:
        raise ValueError(f"lengths: add up to {int(starts[-1])}, and there are {flat.shape[0]} items")
    longest = max(lengths, default=0)
    padded = torch.empty((len(lengths), longest, *flat.shape[1:]), dtype=flat.dtype, device=flat.device)
    _launch("pad", flat, starts, padded, filler)
    return padded


def unpad(padded: Any, lengths: Sequence[int]) -> Any:
    """The inverse: rows side by side [items, …] from [rows, longest, …]."""
    import torch

    starts = starts_of(lengths)
    if len(lengths) != padded.shape[0] or max(lengths, default=0) > padded.shape[1]:
        raise ValueError(f"lengths: {list(lengths)} do not fit {list(padded.shape)}")
    flat = torch.empty((int(starts[-1]), *padded.shape[2:]), dtype=padded.dtype, device=padded.device)
    _launch("unpad", padded, starts, flat, None)
    return flat


def _launch(name: str, given: Any, starts: np.ndarray, made: Any, filler: int | None) -> None:
    import cupy
    import torch

    tensor = made if name == "pad" else given
    rows, longest = tensor.shape[:2]
    inner = int(np.prod(tensor.shape[2:], dtype=np.int64))
    if not rows * longest * inner:
        return
    item_bytes = tensor.element_size()
    kind = np.dtype(f"u{item_bytes}")
    at = torch.from_numpy(starts).pin_memory().to(given.device, non_blocking=True)
    # As bits: DLPack knows no bfloat16 that CuPy could take.
    bits = torch.uint8 if item_bytes == 1 else {2: torch.int16, 4: torch.int32, 8: torch.int64}[item_bytes]
    views = [cupy.from_dlpack(each.contiguous().view(bits)).view(kind) for each in (given, made)]
    arguments = (views[0], cupy.from_dlpack(at), views[1], np.int64(rows), np.int64(longest), np.int64(inner))
    with cupy.cuda.Stream.from_external(torch.cuda.current_stream(given.device)):
        kernel(name, item_bytes)(
            (grid(rows, longest, inner),), (THREADS,), arguments if filler is None else (*arguments, kind.type(filler))
        )
