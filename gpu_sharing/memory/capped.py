"""Budgets of device memory: who draws on one beyond its limit runs out, and nobody else.

A budget has any number of torch's pools, each for one thread at a time or for one chain of graphs; what all of them draw counts
together, and in the larger budget that it is part of, if there is one. What a pool gives is wiped.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from gpu_sharing.memory.callbacks import Callbacks, PoolUnavailable, Wiping, callbacks, keep_for_ever
from gpu_sharing.memory.gate import GATE
from gpu_sharing.units import Bytes

__all__ = [
    "Budget",
    "Budgets",
    "CappedPool",
    "CountedBudget",
    "Counting",
    "MakeBudget",
    "ModelPool",
    "PlainBudget",
    "PoolUnavailable",
]


class Budget(Protocol):
    """Bytes that may be drawn. used_bytes: drawn and not given back, what torch keeps for itself included."""

    limit_bytes: Bytes

    @property
    def used_bytes(self) -> Bytes: ...

    @property
    def peak_bytes(self) -> Bytes:
        """The most that was drawn at once."""
        ...

    @property
    def refusals(self) -> int:
        """How often it was full."""
        ...

    def pool(self) -> Any:
        """A pool of torch's that draws on it, until it is given back."""
        ...

    def give_back(self, pools: list[Any]) -> None:
        """Ends these of its pools, and with them what nobody uses of their memory; empties the list, which must be the last that
        refers to them. Waits for threads that allocate from any pool; none that calls it may."""
        ...

    def renew(self) -> None:
        """Ends all of its pools, in the same way."""
        ...

    def close(self) -> None:
        """Nobody draws on it any more: ends its pools. What is in use still counts until it is not."""
        ...


MakeBudget = Callable[[Bytes, Budget | None], Budget]
"""Makes one of so many bytes, as part of another."""


class Counting:
    """What budgets of a process are made of: torch's side and the driver's, or doubles of both.

    make: callbacks with a limit. allocator: torch's object around their two addresses. pool: one of torch's pools with it.
    """

    def __init__(
        self,
        make: Callable[[Bytes], Callbacks],
        allocator: Callable[[int, int], Any],
        pool: Callable[[Any], Any],
    ) -> None:
        self._make, self._allocator, self._pool = make, allocator, pool
        self._lock = threading.Lock()
        self._resting: list[tuple[Callbacks, Any]] = []

    def take(self, limit_bytes: Bytes, parent: Callbacks | None) -> tuple[Callbacks, Any]:
        """Callbacks that nothing is drawn on. Machine code stays for ever: what has come to rest is taken again."""
        with self._lock:
            found = next((each for each in self._resting if not each[0].cells.used), None)
            if found is not None:
                self._resting.remove(found)
        if found is None:
            made = self._make(0)
            found = (made, self._allocator(made.allocate, made.release))
            keep_for_ever(found)
        cells = found[0].cells
        cells.limit, cells.peak, cells.refusals = max(0, limit_bytes), 0, 0
        found[0].within(parent)
        return found

    def rest(self, taken: tuple[Callbacks, Any]) -> None:
        """Nobody makes pools of these any more."""
        taken[0].cells.limit = 0
        with self._lock:
            self._resting.append(taken)

    def pool(self, allocator: Any) -> Any:
        """A pool of torch's."""
        return self._pool(allocator)


class _Pools:
    """What budgets of either kind have made, and how that ends."""

    def __init__(self) -> None:
        self._pools: list[Any] = []
        weakref.finalize(self, GATE.leave_behind, self._pools).atexit = False

    def give_back(self, pools: list[Any]) -> None:
        """See `Budget`."""
        self._pools[:] = [each for each in self._pools if not any(each is pool for pool in pools)]
        GATE.end(pools)

    def renew(self) -> None:
        """See `Budget`."""
        GATE.end(self._pools)

    def _added(self, made: Any) -> Any:
        self._pools.append(made)
        return made


class CountedBudget(_Pools):
    """A budget whose books are kept by machine code. See `Budget`."""

    def __init__(self, counting: Counting, limit_bytes: Bytes, within: Budget | None = None) -> None:
        """PoolUnavailable without llvmlite. ValueError where `within` is of another kind."""
        if within is not None and not isinstance(within, CountedBudget):
            raise ValueError("within: must be a budget of the same kind")
        self._counting = counting
        self._taken: tuple[Callbacks, Any] = counting.take(
            limit_bytes, within._taken[0] if within is not None else None
        )
        self._cells = self._taken[0].cells
        self._within = within
        super().__init__()
        self._closed = False

    @property
    def used_bytes(self) -> Bytes:
        """See `Budget`."""
        return int(self._cells.used)

    @property
    def peak_bytes(self) -> Bytes:
        """See `Budget`."""
        return int(self._cells.peak)

    @property
    def refusals(self) -> int:
        """See `Budget`."""
        return int(self._cells.refusals)

    @property
    def limit_bytes(self) -> Bytes:
        """See `Budget`."""
        return int(self._cells.limit)

    @limit_bytes.setter
    def limit_bytes(self, limit_bytes: Bytes) -> None:
        """From now on; what is drawn already stays."""
        if not self._closed:
            self._cells.limit = max(0, limit_bytes)

    def pool(self) -> Any:
        """See `Budget`."""
        return self._added(self._counting.pool(self._taken[1]))

    def close(self) -> None:
        """See `Budget`."""
        if not self._closed:
            self._closed = True
            GATE.end(self._pools)
            self._counting.rest(self._taken)


class Budgets:
    """Makes budgets of a real device's memory."""

    def __init__(self, wiping_stream: int = 0) -> None:
        """PoolUnavailable where this torch has no allocators of others' making, or llvmlite or the driver is missing.

        wiping_stream: of the lane, that nobody captures on, for what is drawn during a capture.
        """
        import torch

        make = getattr(torch._C, "_cuda_customAllocator", None)
        if make is None:
            raise PoolUnavailable(f"torch {torch.__version__} takes no allocator of others' making")
        try:
            driver = ctypes.CDLL("libcuda.so.1")
        except OSError as missing:
            raise PoolUnavailable(f"there is no CUDA driver: {missing}") from missing
        # torch may call them after the pool is gone, for blocks that were still in use then.
        keep_for_ever(driver)
        wiping = Wiping(
            _address(driver.cuMemsetD8Async),
            _address(driver.cuStreamIsCapturing),
            _address(driver.cuStreamSynchronize),
            _address(driver.cuThreadExchangeStreamCaptureMode),
            wiping_stream,
        )
        malloc, free = _address(driver.cuMemAlloc_v2), _address(driver.cuMemFree_v2)
        self._counting = Counting(
            lambda limit_bytes: callbacks(malloc, free, limit_bytes, wiping=wiping),
            make,
            lambda allocator: torch.cuda.MemPool(allocator),
        )

    def __call__(self, limit_bytes: Bytes, within: Budget | None = None) -> CountedBudget:
        """See `MakeBudget`."""
        return CountedBudget(self._counting, limit_bytes, within)


class PlainBudget(_Pools):
    """A budget that nobody keeps, where `Budgets` cannot be had: everything is given, and nothing is wiped. See `Budget`."""

    refusals = 0

    def __init__(self, limit_bytes: Bytes, make: Callable[[], Any], size: Callable[[Any], Bytes], because: str) -> None:
        """make: a pool of torch's. size: what one holds. because: what is missing."""
        self.limit_bytes, self._make, self._size, self.because = limit_bytes, make, size, because
        super().__init__()
        self._peak_bytes: Bytes = 0

    @property
    def used_bytes(self) -> Bytes:
        """What its own pools hold."""
        used = sum(self._size(pool) for pool in self._pools)
        self._peak_bytes = max(self._peak_bytes, used)
        return used

    @property
    def peak_bytes(self) -> Bytes:
        """As often as somebody has looked."""
        return max(self._peak_bytes, self.used_bytes)

    def pool(self) -> Any:
        """See `Budget`."""
        return self._added(self._make())

    def close(self) -> None:
        """See `Budget`."""
        GATE.end(self._pools)


class ModelPool:
    """One pool with a budget of its own, for one thread."""

    def __init__(self, limit_bytes: Bytes, within: Budget | None = None) -> None:
        """within: a budget of a real device that is the pool's, in place of one of its own. As `Budgets`."""
        self._budget: Budget = Budgets()(limit_bytes) if within is None else within
        self.pool: Any = self._budget.pool()

    @property
    def used_bytes(self) -> Bytes:
        """See `Budget`."""
        return self._budget.used_bytes

    @property
    def limit_bytes(self) -> Bytes:
        """See `Budget`."""
        return self._budget.limit_bytes

    @limit_bytes.setter
    def limit_bytes(self, limit_bytes: Bytes) -> None:
        """From now on; what is drawn already stays."""
        self._budget.limit_bytes = limit_bytes


class CappedPool(ModelPool):
    """One that stays with the process. One thread draws on it, in `with torch.cuda.use_mem_pool(pool.pool)`, shortly."""

    def __init__(self, limit_bytes: Bytes) -> None:
        """As ModelPool."""
        super().__init__(limit_bytes)
        keep_for_ever(self.pool)


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
