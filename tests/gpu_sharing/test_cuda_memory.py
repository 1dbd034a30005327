"""Memory on a GPU: addresses that stay, budgets, and whose weights stay; on doubles."""

from __future__ import annotations

import ctypes
import threading
import types

import pytest
from cuda_double import CudaDouble, CUresult
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpu_sharing.devices.cuda.errors import CudaError
from gpu_sharing.devices.cuda.vmm import Ranges
from gpu_sharing.memory.capped import CappedPool, PoolUnavailable, callbacks
from gpu_sharing.memory.residence import Plan, Residence
from gpu_sharing.units import MS, SECOND, MiB

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


class Memory:
    """malloc and free that count, as the driver's are called."""

    def __init__(self) -> None:
        self.given: dict[int, int] = {}
        self.refuses = False
        self.kept = (
            ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_uint64), ctypes.c_size_t)(self._malloc),
            ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64)(self._free),
        )

    def _malloc(self, slot: ctypes._Pointer[ctypes.c_uint64], size: int) -> int:
        if self.refuses:
            return 2
        slot[0] = 0x1000 * (len(self.given) + 1)
        self.given[slot[0]] = size
        return 0

    def _free(self, address: int) -> int:
        del self.given[address]
        return 0

    @property
    def addresses(self) -> tuple[int, ...]:
        return tuple(ctypes.cast(each, ctypes.c_void_p).value or 0 for each in self.kept)


def test_the_callbacks_count_and_refuse_what_is_above_the_budget() -> None:
    pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    memory = Memory()
    made = callbacks(*memory.addresses, limit_bytes=100)
    allocate = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int, ctypes.c_uint64)(made.allocate)
    release = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int, ctypes.c_uint64)(made.release)
    first = allocate(60, 0, 0)
    assert (first, made.used.value, memory.given) == (0x1000, 60, {0x1000: 60})
    assert allocate(41, 0, 0) == 0
    assert made.used.value == 60
    second = allocate(40, 0, 0)
    assert made.used.value == 100
    release(first, 60, 0, 0)
    assert (made.used.value, list(memory.given)) == (40, [second])
    memory.refuses = True
    assert allocate(10, 0, 0) == 0
    assert made.used.value == 40
    made.limit.value = 10
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
    assert made.used.value == -3 * 80_000


def test_a_torch_without_such_allocators_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "_C", types.SimpleNamespace())
    with pytest.raises(PoolUnavailable, match="takes no allocator of others' making"):
        CappedPool(100)


# Whose weights stay.


def made(*sizes: int, capacity: int = 100) -> Residence:
    residence = Residence(capacity)
    for number, size in enumerate(sizes):
        residence.add(number, size, load_ns=size * MS)
    return residence


def test_the_least_likely_to_be_asked_for_goes_first() -> None:
    residence = made(40, 40, 40)
    for moment, model in ((1, 0), (2, 0), (3, 0), (4, 1)):
        residence.arrive(model, moment * SECOND)
    for model in (0, 1):
        assert residence.use(model, 5 * SECOND) == Plan((), model)
        residence.release(model)
    assert residence.use(2, 6 * SECOND) == Plan((1,), 2)
    assert not residence.is_resident(1)


def test_what_was_asked_for_long_ago_counts_for_little() -> None:
    residence = made(40, 40, 40)
    for _ in range(10):
        residence.arrive(0, 0)
    residence.arrive(1, 600 * SECOND)
    for model in (0, 1):
        residence.use(model, 600 * SECOND)
        residence.release(model)
    assert residence.use(2, 601 * SECOND).evict == (0,)


def test_what_takes_long_to_load_for_its_size_stays() -> None:
    residence = Residence(100)
    residence.add(0, 50, load_ns=500 * MS)
    residence.add(1, 50, load_ns=5 * MS)
    residence.add(2, 50, load_ns=5 * MS)
    for model in (0, 1):
        residence.arrive(model, 1)
        residence.use(model, 2)
        residence.release(model)
    assert residence.use(2, 3).evict == (1,)


def test_what_is_in_use_is_never_evicted() -> None:
    residence = made(60, 60)
    assert residence.use(0, 1).fill == 0
    assert residence.use(1, 2) == Plan((), None)
    assert not residence.is_resident(1)
    residence.release(0)
    assert residence.use(1, 3) == Plan((0,), 1)
    with pytest.raises(ValueError, match="is not in use"):
        residence.release(0)


def test_a_model_larger_than_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit 100"):
        made(101)


class World(RuleBasedStateMachine):
    """Models come, are used and go: nothing in use is ever taken away, and no more is resident than there is."""

    def __init__(self) -> None:
        super().__init__()
        self.residence = Residence(100)
        self.sizes: dict[int, int] = {}
        self.used: list[int] = []
        self.resident: set[int] = set()
        self.now = self.numbers = 0

    @rule(size=st.integers(0, 100), load=st.integers(0, 1000))
    def add(self, size: int, load: int) -> None:
        self.numbers += 1
        number = self.numbers
        self.residence.add(number, size, load)
        self.sizes[number] = size

    @precondition(lambda self: self.sizes)
    @rule(data=st.data(), later=st.integers(0, 10 * SECOND))
    def use(self, data: st.DataObject, later: int) -> None:
        self.now += later + 1
        number = data.draw(st.sampled_from(sorted(self.sizes)))
        self.residence.arrive(number, self.now)
        plan = self.residence.use(number, self.now)
        assert not set(plan.evict) & set(self.used)
        self.resident -= set(plan.evict)
        if plan.fill is not None:
            self.resident.add(plan.fill)
        if number in self.resident:
            self.used.append(number)
        else:
            assert sum(self.sizes[each] for each in {*self.used}) + self.sizes[number] > 100

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.used))
        self.used.remove(number)
        self.residence.release(number)

    @precondition(lambda self: set(self.sizes) - set(self.used))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(set(self.sizes) - set(self.used))))
        assert self.residence.remove(number) is (number in self.resident)
        self.resident.discard(number)
        del self.sizes[number]

    @invariant()
    def holds(self) -> None:
        self.residence.check_invariants()
        assert self.residence.used_bytes == sum(self.sizes[each] for each in self.resident)


def test_the_books_of_residence_add_up_whatever_comes() -> None:
    case = World.TestCase
    case.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
    case("runTest").runTest()
