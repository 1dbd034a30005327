"""Doubles of the driver's memory and of torch's pools, around the real callbacks: what is counted is counted by machine code."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpu_sharing.memory.callbacks import Wiping, callbacks, keep_for_ever
from gpu_sharing.memory.capped import Budget, CountedBudget, Counting
from gpu_sharing.memory.gate import GATE

WIPER = 0x77


class Memory:
    """The driver's memory. given: what is allocated, by address. wiped: address, bytes and stream of each. capturing: streams."""

    def __init__(self, capacity_bytes: int = 1 << 40) -> None:
        self.given: dict[int, int] = {}
        self.capacity_bytes, self.refuses, self.fails_to_wipe = capacity_bytes, False, False
        self.wiped: list[tuple[int, int, int]] = []
        self.waited: list[int] = []
        self.modes: list[int] = []
        self.capturing: set[int] = set()
        self._next = 0x1000
        self._mode = 1
        # Pools may go, and call it, after everybody has forgotten it, as the driver is called.
        keep_for_ever(self)
        kinds = ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_int32)
        self.kept = (
            ctypes.CFUNCTYPE(ctypes.c_int, kinds[0], ctypes.c_size_t)(self._malloc),
            ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64)(self._free),
            ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_uint8, ctypes.c_size_t, ctypes.c_uint64)(
                self._memset
            ),
            ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, kinds[1])(self._is_capturing),
            ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64)(self._synchronize),
            ctypes.CFUNCTYPE(ctypes.c_int, kinds[1])(self._exchange),
        )

    def _malloc(self, slot: Any, size: int) -> int:
        if self.refuses or sum(self.given.values()) + size > self.capacity_bytes:
            return 2
        slot[0], self._next = self._next, self._next + size + 0x1000
        self.given[slot[0]] = size
        return 0

    def _free(self, address: int) -> int:
        del self.given[address]
        return 0

    def _memset(self, address: int, value: int, size: int, stream: int) -> int:
        assert value == 0
        assert self.given[address] == size
        # While a thread captures, the driver refuses what is not in the relaxed mode, and spoils the capture.
        assert self._mode == 2
        assert stream not in self.capturing
        self.wiped.append((address, size, stream))
        return 2 if self.fails_to_wipe else 0

    def _is_capturing(self, stream: int, status: Any) -> int:
        status[0] = int(stream in self.capturing)
        return 0

    def _synchronize(self, stream: int) -> int:
        self.waited.append(stream)
        return 0

    def _exchange(self, mode: Any) -> int:
        self._mode, mode[0] = mode[0], self._mode
        self.modes.append(self._mode)
        return 0

    @property
    def addresses(self) -> list[int]:
        return [ctypes.cast(each, ctypes.c_void_p).value or 0 for each in self.kept]

    def callbacks(self, limit_bytes: int) -> Any:
        malloc, free, memset, is_capturing, synchronize, exchange = self.addresses
        return callbacks(malloc, free, limit_bytes, wiping=Wiping(memset, is_capturing, synchronize, exchange, WIPER))


class Pool:
    """A pool of torch's: keeps what is given back to it for the next that fits, and gives it to the driver when it goes."""

    def __init__(self, allocator: tuple[Any, Any]) -> None:
        self._allocate, self._release = allocator
        self._free: list[tuple[int, int]] = []
        self._drawn: list[tuple[int, int]] = []
        weakref.finalize(self, Pool._gone, self._release, self._drawn)

    def draw(self, size: int, stream: int = 1) -> tuple[int, int]:
        fitting = sorted((have, address) for address, have in self._free if have >= size)
        if fitting:
            found = (fitting[0][1], fitting[0][0])
            self._free.remove(found)
            return found
        address = self._allocate(size, 0, stream)
        if not address:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size} bytes. GPU 0 has a total capacity of"
            )
        self._drawn.append((address, size))
        return (address, size)

    def give_back(self, block: tuple[int, int]) -> None:
        self._free.append(block)

    @staticmethod
    def _gone(release: Any, drawn: list[tuple[int, int]]) -> None:
        # As torch asserts it, in a destructor.
        assert not GATE._inside
        for address, size in drawn:
            release(address, size, 0, 0)


def allocator(allocate: int, release: int) -> tuple[Any, Any]:
    """torch's object around two callbacks."""
    allocates = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int, ctypes.c_uint64)
    releases = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int, ctypes.c_uint64)
    return (allocates(allocate), releases(release))


class PoolsOnDouble:
    """Makes budgets of a double's memory. See `MakeBudget`."""

    def __init__(self, memory: Memory | None = None) -> None:
        self.memory = memory or Memory()
        self.counting = Counting(self.memory.callbacks, allocator, Pool)

    def __call__(self, limit_bytes: int, within: Budget | None = None) -> CountedBudget:
        return CountedBudget(self.counting, limit_bytes, within)


class Allocating(TorchDispatchMode):
    """torch's allocator, as far as a pool goes: what an operator makes anew is drawn on it, and given back with its tensor."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {
            each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)
        }
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor) and each.untyped_storage()._cdata not in before and each.nbytes:
                block = self.pool.draw(each.untyped_storage().nbytes())
                weakref.finalize(each, self.pool.give_back, block)
        return made


class PooledBackend:
    """What a double of torch's CUDA does with pools. inside: those that each thread allocates from now."""

    def __init__(self) -> None:
        self.inside: dict[int, Any] = {}

    @contextmanager
    def allocating(self, pool: Any) -> Iterator[None]:
        me = threading.get_ident()
        assert pool not in self.inside.values(), "torch refuses a pool that another thread, or this one, allocates from"
        assert me not in self.inside, "of two pools torch takes the one that was entered first"
        self.inside[me] = pool
        try:
            with GATE, Allocating(pool):
                yield
        finally:
            del self.inside[me]
