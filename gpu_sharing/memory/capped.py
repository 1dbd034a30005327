"""A pool of device memory with a budget: who draws on it beyond that runs out, and nobody else.

torch calls a pool's allocator with its own lock held. Callbacks in Python would want the interpreter's lock there, which another
thread may hold while it waits for torch's: so they are machine code, made here by llvmlite.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

from gpu_sharing.units import Bytes

_CODE = """
define i64 @allocate(i64 %size, i32 %device, i64 %stream) {{
entry:
  %slot = alloca i64
  %before = atomicrmw add ptr inttoptr (i64 {used} to ptr), i64 %size seq_cst
  %after = add i64 %before, %size
  %limit = load i64, ptr inttoptr (i64 {limit} to ptr)
  %fits = icmp ule i64 %after, %limit
  br i1 %fits, label %ask, label %undo
ask:
  store i64 0, ptr %slot
  %code = call i32 inttoptr (i64 {malloc} to ptr)(ptr %slot, i64 %size)
  %good = icmp eq i32 %code, 0
  br i1 %good, label %done, label %undo
done:
  %address = load i64, ptr %slot
  ret i64 %address
undo:
  %given = atomicrmw sub ptr inttoptr (i64 {used} to ptr), i64 %size seq_cst
  ret i64 0
}}
define void @release(i64 %address, i64 %size, i32 %device, i64 %stream) {{
entry:
  %code = call i32 inttoptr (i64 {free} to ptr)(i64 %address)
  %before = atomicrmw sub ptr inttoptr (i64 {used} to ptr), i64 %size seq_cst
  ret void
}}
"""


class PoolUnavailable(RuntimeError):
    """Budgets cannot be had here. The message says what is missing."""


class Callbacks(NamedTuple):
    """allocate, release: addresses of machine code. used, limit: the counters that it works on. keep: what must not be freed."""

    allocate: int
    release: int
    used: ctypes.c_int64
    limit: ctypes.c_int64
    keep: tuple[Any, ...]


_FOREVER: list[Any] = []
"""Pools call their callbacks after everybody has forgotten them, too."""


def callbacks(malloc: int, free: int, limit_bytes: Bytes) -> Callbacks:
    """Counting ones around `int malloc(void **, size_t)` and `int free(uint64_t)`, given by their addresses.

    PoolUnavailable without llvmlite.
    """
    try:
        import llvmlite.binding as llvm
    except ImportError as missing:
        raise PoolUnavailable("llvmlite is not installed: memory pools have no budgets of their own") from missing
    for name in ("initialize", "initialize_native_target", "initialize_native_asmprinter"):
        try:
            getattr(llvm, name)()
        except RuntimeError:
            # Newer releases start by themselves, and say so.
            continue
    used, limit = ctypes.c_int64(0), ctypes.c_int64(limit_bytes)
    code = _CODE.format(used=ctypes.addressof(used), limit=ctypes.addressof(limit), malloc=malloc, free=free)
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(code), machine)
    engine.finalize_object()
    made = Callbacks(
        engine.get_function_address("allocate"), engine.get_function_address("release"), used, limit, (engine, machine)
    )
    _FOREVER.append(made)
    return made


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
        # torch may call it after the pool is gone, for blocks that were still in use then.
        _FOREVER.append((driver, allocator))
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


class CappedPool(ModelPool):
    """One that stays with the process. One thread draws on it, in `with torch.cuda.use_mem_pool(pool.pool)`, shortly."""

    def __init__(self, limit_bytes: Bytes) -> None:
        """As ModelPool."""
        super().__init__(limit_bytes)
        _FOREVER.append(self.pool)


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
