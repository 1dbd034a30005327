"""The kernels that pad and unpad, compiled for the processor with a grid that is a loop: the same source, the same arguments."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_sharing.runtimes.ragged import ITEM_TYPES, MOST_BLOCKS, THREADS, grid, source, starts_of

SHIM = """
#define __global__
#define __restrict__
struct Place {{ unsigned x; }};
static Place blockIdx, threadIdx, gridDim, blockDim;
{source}
extern "C" void run_pad(const {t}* a, const long long* s, {t}* b, long long r, long long l, long long i, {t} f, unsigned g, unsigned n) {{
  gridDim.x = g; blockDim.x = n;
  for (blockIdx.x = 0; blockIdx.x < g; blockIdx.x++)
    for (threadIdx.x = 0; threadIdx.x < n; threadIdx.x++) pad(a, s, b, r, l, i, f);
}}
extern "C" void run_unpad(const {t}* a, const long long* s, {t}* b, long long r, long long l, long long i, unsigned g, unsigned n) {{
  gridDim.x = g; blockDim.x = n;
  for (blockIdx.x = 0; blockIdx.x < g; blockIdx.x++)
    for (threadIdx.x = 0; threadIdx.x < n; threadIdx.x++) unpad(a, s, b, r, l, i);
}}
"""
Library = Callable[[int], ctypes.CDLL]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    folder: Path = tmp_path_factory.mktemp("kernels")
    made: dict[int, ctypes.CDLL] = {}

    def of(item_bytes: int) -> ctypes.CDLL:
        if item_bytes not in made:
            code, target = folder / f"k{item_bytes}.cpp", folder / f"k{item_bytes}.so"
            code.write_text(SHIM.format(source=source(item_bytes), t=ITEM_TYPES[item_bytes]))
            subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", target, code], check=True)
            made[item_bytes] = ctypes.CDLL(str(target))
        return made[item_bytes]

    return of


def at(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    inner=st.integers(1, 4),
    item_bytes=st.sampled_from(sorted(ITEM_TYPES)),
    blocks=st.integers(1, 3),
    filler=st.integers(0, 255),
)
@settings(max_examples=60, deadline=None)
def test_rows_are_padded_and_taken_apart_again(
    library: Library, lengths: list[int], inner: int, item_bytes: int, blocks: int, filler: int
) -> None:
    longest = max(lengths)
    starts = starts_of(lengths)
    kind = np.dtype(f"u{item_bytes}")
    flat = np.arange(1, 1 + int(starts[-1]) * inner, dtype=kind).reshape(-1, inner)
    padded = np.full((len(lengths), longest, inner), 99, kind)
    item = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}[item_bytes]
    sizes = [ctypes.c_longlong(each) for each in (len(lengths), longest, inner)]
    library(item_bytes).run_pad(at(flat), at(starts), at(padded), *sizes, item(filler), blocks, 4)
    expected = np.full_like(padded, filler)
    for row, length in enumerate(lengths):
        expected[row, :length] = flat[starts[row] : starts[row] + length]
    assert (padded == expected).all()
    again = np.zeros_like(flat)
    library(item_bytes).run_unpad(at(padded), at(starts), at(again), *sizes, blocks, 4)
    assert (again == flat).all()


def test_the_grid_covers_small_batches_and_is_bounded_for_large_ones() -> None:
    assert grid(0, 5, 5) == 1
    assert grid(1, 1, THREADS + 1) == 2
    assert grid(1 << 20, 1 << 10, 8) == MOST_BLOCKS


def test_what_cannot_be_moved_is_refused() -> None:
    with pytest.raises(ValueError, match="item_bytes: must be one of 1, 2, 4, 8, is 16"):
        source(16)
    with pytest.raises(ValueError, match="must not be negative"):
        starts_of([1, -1])
    assert starts_of([]).tolist() == [0]
