"""Memory on a GPU: addresses that stay and budgets; on doubles."""

from __future__ import annotations

import ctypes
import threading
import types

import pytest
from cuda_double import CudaDouble, CUresult
from pool_double import Memory

from gpu_sharing.devices.cuda.errors import CudaError
from gpu_sharing.devices.cuda.vmm import Ranges
from gpu_sharing.memory.callbacks import callbacks
from gpu_sharing.memory.capped import CappedPool, PoolUnavailable
from gpu_sharing.units import MiB

# Ranges.


@pytest.fixture
def driver() -> CudaDouble:
    driver = CudaDouble()
    driver.initialised = True
    return driver


def test_a_range_keeps_its_address_while_memory_comes_and_goes(driver: CudaDouble) -> None:
    ranges = Ranges(driver, 0)
    held = ranges.reserve(3 * MiB)
    assert (held.size_bytes, held.handle) == (4 * MiB, None)
    before = held.address
    for _ in range(3):
        ranges.fill(held)
        assert ranges.filled_bytes == sum(driver.handles.values()) == 4 * MiB
        assert held.address in driver.readable
        ranges.empty(held)
        assert not driver.handles
    assert held.address == before
    ranges.close()
    assert not driver.reserved


def test_filling_twice_is_once_and_so_is_emptying(driver: CudaDouble) -> None:
    ranges = Ranges(driver, 0)
    held = ranges.reserve(1)
    ranges.fill(held)
    ranges.fill(held)
    assert len(driver.handles) == 1
    ranges.empty(held)
    ranges.empty(held)


def test_another_tenants_bytes_are_wiped_before_they_can_be_read(driver: CudaDouble) -> None:
    ranges = Ranges(driver, 0)
    held = ranges.reserve(2 * MiB)
    ranges.fill(held, wiped_on="a stream")
    assert driver.calls[-1] == ("cuMemsetD8Async", held.address, 0, 2 * MiB, "a stream")


@pytest.mark.parametrize("name", ["cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemsetD8Async"])
def test_a_fill_that_breaks_leaves_the_range_empty(driver: CudaDouble, name: str) -> None:
    ranges = Ranges(driver, 0)
    held = ranges.reserve(2 * MiB)
    driver.failing[name] = [CUresult.CUDA_ERROR_OUT_OF_MEMORY]
    with pytest.raises(CudaError, match=name):
        ranges.fill(held, wiped_on="a stream")
    assert (held.handle, driver.handles, driver.mapped) == (None, {}, {})
    ranges.fill(held)
    ranges.close()
    assert not driver.handles


def test_a_range_is_freed_once(driver: CudaDouble) -> None:
    ranges = Ranges(driver, 0)
    held = ranges.reserve(1)
    ranges.free(held)
    with pytest.raises(ValueError, match="is not reserved"):
        ranges.free(held)
    with pytest.raises(ValueError, match="must be positive"):
        ranges.reserve(0)


# Budgets.


def test_the_callbacks_count_and_refuse_what_is_above_the_budget() -> None:
    pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    memory = Memory()
    malloc, free, *_ = memory.addresses
    made = callbacks(malloc, free, limit_bytes=100)
    allocate = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int, ctypes.c_uint64)(made.allocate)
    release = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int, ctypes.c_uint64)(made.release)
    first = allocate(60, 0, 0)
    assert (first, made.cells.used, memory.given) == (0x1000, 60, {0x1000: 60})
    assert memory.wiped == [], "nobody said how"
    assert allocate(41, 0, 0) == 0
    assert made.cells.used == 60
    second = allocate(40, 0, 0)
    assert made.cells.used == 100
    release(first, 60, 0, 0)
    assert (made.cells.used, list(memory.given)) == (40, [second])
    memory.refuses = True
    assert allocate(10, 0, 0) == 0
    assert made.cells.used == 40
    made.cells.limit = 10
    memory.refuses = False
    assert allocate(1, 0, 0) == 0


def test_the_callbacks_counters_stand_several_threads() -> None:
    pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    libc = ctypes.CDLL(None)
    # Stands for the driver's free: it touches nothing, and needs no interpreter.
    always = ctypes.cast(libc.getpid, ctypes.c_void_p).value or 0
    made = callbacks(always, always, limit_bytes=1 << 40)
    release = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int, ctypes.c_uint64)(made.release)

    def work() -> None:
        for _ in range(20_000):
            release(0, 3, 0, 0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made.cells.used == -3 * 80_000


def test_a_torch_without_such_allocators_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "_C", types.SimpleNamespace())
    with pytest.raises(PoolUnavailable, match="takes no allocator of others' making"):
        CappedPool(100)
