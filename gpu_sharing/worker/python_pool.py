"""The pools that models of Python code draw on: with a budget, and gone with their model."""

from __future__ import annotations

import ctypes
from typing import Any

from gpu_sharing.memory.capped import PoolUnavailable, callbacks
from gpu_sharing.units import Bytes

_ALLOCATORS: list[Any] = []
"""torch may call them after their pool is gone, for blocks that were still in use then."""


class ModelPool:
    """A torch.cuda.MemPool with a budget, which gives its memory back with the last that refers to it. For one thread."""

    def __init__(self, limit_bytes: Bytes) -> None:
        """PoolUnavailable where this torch has no allocators of others' making, or llvmlite or the driver is missing."""
        import torch

        make = getattr(torch._C, "_cuda_customAllocator", None)
        if make is None:
            raise PoolUnavailable(f"torch {torch.__version__} takes no allocator of others' making")
        try:
            driver = ctypes.CDLL("libcuda.so.1")
        except OSError as missing:
            raise PoolUnavailable(f"there is no CUDA driver: {missing}") from missing
        self._counts = callbacks(_address(driver.cuMemAlloc_v2), _address(driver.cuMemFree_v2), limit_bytes)
        allocator = make(self._counts.allocate, self._counts.release)
        _ALLOCATORS.append((driver, allocator))
        self.pool: Any = torch.cuda.MemPool(allocator)

    @property
    def used_bytes(self) -> Bytes:
        """Drawn and not given back, what torch keeps for itself included."""
        return self._counts.used.value

    @property
    def limit_bytes(self) -> Bytes:
        """The budget."""
        return self._counts.limit.value

    @limit_bytes.setter
    def limit_bytes(self, limit_bytes: Bytes) -> None:
        """From now on; what is drawn already stays."""
        self._counts.limit.value = limit_bytes


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
