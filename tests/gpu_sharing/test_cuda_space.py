"""Weights between a pinned arena and a GPU's memory, on the driver's double."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from cuda_double import CudaDouble, CUresult

from gpu_sharing.devices.cuda.errors import CudaError
from gpu_sharing.devices.cuda.space import CudaSpace
from gpu_sharing.memory.berths import Berth, CopyFailed
from gpu_sharing.memory.streaming import Layout
from gpu_sharing.units import MiB


@pytest.fixture
def driver() -> CudaDouble:
    driver = CudaDouble()
    driver.initialised = True
    return driver


@pytest.fixture
def compute(driver: CudaDouble) -> object:
    return driver._stream(None, -1)


@pytest.fixture
def space(driver: CudaDouble, compute: object) -> CudaSpace:
    return CudaSpace(driver, 0, SimpleNamespace(primary=driver.primary), compute, 64 * MiB)


def taken(space: CudaSpace, size: int, fill: int = 7) -> Berth:
    berth = space.take(size, "tenant")
    assert berth is not None
    berth.host[:size] = bytes([fill]) * size
    return berth


def brought(space: CudaSpace, berth: Berth, layout: Layout) -> None:
    space.fill(berth)
    for offset, length in layout.pieces(berth.size_bytes):
        space.copy(berth, offset, length)
    space.settle(berth)


def there(driver: CudaDouble, berth: Berth) -> bytes:
    """What lies behind the range."""
    address = berth.behind.address
    parts = sorted((at, held) for at, held in driver.content.items() if address <= at < address + berth.size_bytes)
    return b"".join(held for _, held in parts)


def test_weights_come_to_the_same_address_each_time_and_zeros_fill_the_rest(
    driver: CudaDouble, space: CudaSpace
) -> None:
    berth, layout = taken(space, 3 * MiB), Layout(3 * MiB, (MiB, 3 * MiB))
    before = berth.memory.__cuda_array_interface__["data"][0]
    for _ in range(3):
        brought(space, berth, layout)
        assert berth.is_there
        assert there(driver, berth) == b"\7" * 3 * MiB + bytes(MiB)
        space.empty(berth)
        assert not driver.handles
        assert not there(driver, berth)
    assert berth.memory.__cuda_array_interface__["data"][0] == before == berth.behind.address


def test_copies_run_on_a_stream_of_their_own_two_at_a_time_and_no_kernel_wipes(
    driver: CudaDouble, space: CudaSpace, compute: object
) -> None:
    berth = taken(space, 40 * MiB)
    space.fill(berth)
    landed = [space.copy(berth, *piece) for piece in Layout(40 * MiB, (40 * MiB,)).pieces(berth.size_bytes)]
    assert landed == [0, 0, 16 * MiB]
    space.settle(berth)
    streams = {call[4] for call in driver.calls if call[0] == "cuMemcpyHtoDAsync"}
    assert len(streams) == 1
    assert compute not in streams
    assert "cuMemsetD8Async" not in driver.names()


def test_a_lane_waits_on_its_stream_for_what_its_segment_needs_and_for_no_more(
    driver: CudaDouble, space: CudaSpace, compute: object
) -> None:
    berth, layout = taken(space, 32 * MiB), Layout(32 * MiB, (16 * MiB, 32 * MiB))
    space.fill(berth)
    for piece in layout.pieces(berth.size_bytes):
        space.copy(berth, *piece)
    space.await_bytes(berth, layout.needed(0))
    first = compute.free_at
    space.await_bytes(berth, layout.needed(1))
    second = compute.free_at
    assert first == pytest.approx(16 * MiB / driver.bytes_per_ms)
    assert second == pytest.approx(2 * first)
    space.settle(berth)
    before = len(driver.calls)
    space.await_bytes(berth, 32 * MiB)
    assert "cuStreamWaitEvent" not in [call[0] for call in driver.calls[before:]]


def test_whoever_waits_for_what_failed_is_told_why(space: CudaSpace) -> None:
    berth = taken(space, MiB)
    space.fill(berth)
    berth.failed = "the bus is gone"
    with pytest.raises(CopyFailed, match="the bus is gone"):
        space.await_bytes(berth, MiB)


def test_a_device_without_memory_says_so_and_the_berth_can_be_filled_later(
    driver: CudaDouble, space: CudaSpace
) -> None:
    berth = taken(space, MiB)
    driver.failing["cuMemCreate"] = [CUresult.CUDA_ERROR_OUT_OF_MEMORY]
    with pytest.raises(CudaError, match="cuMemCreate"):
        space.fill(berth)
    brought(space, berth, Layout(MiB, (MiB,)))
    assert there(driver, berth)[:1] == b"\7"


def test_a_copy_that_breaks_off_is_waited_for_before_its_memory_goes(driver: CudaDouble, space: CudaSpace) -> None:
    berth = taken(space, 2 * MiB)
    space.fill(berth)
    space.copy(berth, 0, MiB)
    driver.failing["cuMemcpyHtoDAsync"] = [CUresult.CUDA_ERROR_UNKNOWN]
    with pytest.raises(CudaError):
        space.copy(berth, MiB, MiB)
    space.empty(berth)
    names = driver.names()
    assert names.index("cuStreamSynchronize") < names.index("cuMemUnmap")


def test_the_host_has_so_much_room_and_what_is_given_back_is_wiped(driver: CudaDouble, space: CudaSpace) -> None:
    berths = [taken(space, 16 * MiB) for _ in range(4)]
    assert space.take(1, "tenant") is None
    assert len(driver.reserved) == 4
    space.give_back(berths[2])
    again = space.take(16 * MiB, "another")
    assert again is not None
    assert not any(bytes(again.host[: 1 << 16]))
    for berth in (berths[0], berths[1], berths[3], again):
        space.give_back(berth)
    space.close()
    assert (driver.reserved, driver.pinned, driver.handles) == ({}, {}, {})
    assert driver.alive["events"] == 0
