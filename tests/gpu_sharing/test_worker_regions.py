"""Regions in a worker: what is opened for whom, how far requests reach, and that nothing is closed under a batch."""

from __future__ import annotations

import ctypes
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cuda_double import CudaDouble, CUresult
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from test_worker_loop import SIGNATURE, Gate, World, negated, seat_on_the_double

from gpu_sharing.devices.cuda.lanes import CudaLanes
from gpu_sharing.devices.cuda.regions import CudaRegions
from gpu_sharing.devices.host_regions import ROOT, HostRegions, handle_of
from gpu_sharing.devices.regions import ABSENT, Opened, RegionRefused
from gpu_sharing.runtimes.lent import LentInputs
from gpu_sharing.worker.config import WorkerConfig
from gpu_sharing.worker.messages import (
    Cancel,
    CloseRegion,
    Done,
    Event,
    Failed,
    OpenRegion,
    RegionFailed,
    RegionOpened,
    RegionPart,
    Stop,
    Submit,
    TensorRef,
)
from gpu_sharing.worker.regions import RegionLost, Regions

SIZE = 4096
A, B = "a" * 32, "b" * 32


@pytest.fixture
def memory() -> Iterator[Path]:
    """Shared memory of this process."""
    path = ROOT / f"test_{uuid.uuid4().hex}"
    path.write_bytes(bytes(SIZE))
    yield path
    path.unlink(missing_ok=True)


def wanted(path: Path, region: str = A, *, tenant: str = "t", size: int = SIZE) -> OpenRegion:
    return OpenRegion(region, tenant, handle_of(path.name), size)


# On the driver's double.


def exported(driver: CudaDouble, number: int = 1, size: int = SIZE) -> bytes:
    """Memory of another process; its handle."""
    handle = bytes([number]) * 64
    driver.export(handle, size)
    return handle


@pytest.fixture
def cuda() -> Iterator[tuple[CudaDouble, CudaRegions]]:
    driver = CudaDouble()
    driver.cuInit(0)
    stream = driver.cuStreamCreateWithPriority(1, 0)[1]
    regions = CudaRegions(driver, 0, driver.cuDevicePrimaryCtxRetain(0)[1], stream)
    driver.calls.clear()
    yield driver, regions
    regions.stop()
    assert not +driver.opened, "everything that was opened is closed"
    assert driver.alive["streams"] == 1


def test_a_handle_is_opened_in_the_primary_context_and_its_device_and_size_are_asked_of_the_driver(
    cuda: tuple[CudaDouble, CudaRegions],
) -> None:
    driver, regions = cuda
    opened = regions.open(exported(driver))
    assert opened.size_bytes == SIZE
    assert driver.names() == ["cuCtxSetCurrent", "cuIpcOpenMemHandle", "cuPointerGetAttribute", "cuMemGetAddressRange"]
    assert driver.calls[0][1] is driver.primary
    driver.calls.clear()
    regions.close(opened)
    assert driver.names() == ["cuCtxSetCurrent", "cuStreamSynchronize", "cuIpcCloseMemHandle"], (
        "what the lane has launched may still read it"
    )


@pytest.mark.parametrize("name", ["cuPointerGetAttribute", "cuMemGetAddressRange"])
def test_what_cannot_be_looked_at_is_closed_again(cuda: tuple[CudaDouble, CudaRegions], name: str) -> None:
    driver, regions = cuda
    handle = exported(driver)
    driver.failing[name] = [CUresult.CUDA_ERROR_INVALID_VALUE]
    with pytest.raises(RegionRefused, match=ABSENT):
        regions.open(handle)
    assert driver.names()[-1] == "cuIpcCloseMemHandle"


def test_memory_of_another_device_is_as_if_it_were_not_there_and_is_closed_again(
    cuda: tuple[CudaDouble, CudaRegions],
) -> None:
    driver, regions = cuda
    handle = exported(driver)
    driver.ordinal_of_shared = 1
    with pytest.raises(RegionRefused, match=ABSENT):
        regions.open(handle)
    assert driver.names()[-1] == "cuIpcCloseMemHandle"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CUresult.CUDA_ERROR_INVALID_VALUE, "FIELD_INVALID"),
        (CUresult.CUDA_ERROR_INVALID_HANDLE, "FIELD_INVALID"),
        (CUresult.CUDA_ERROR_INVALID_CONTEXT, "FIELD_INVALID"),
        (CUresult.CUDA_ERROR_INVALID_DEVICE, "FIELD_INVALID"),
        (CUresult.CUDA_ERROR_ALREADY_MAPPED, "FIELD_INVALID"),
        (CUresult.CUDA_ERROR_UNKNOWN, "FIELD_INVALID"),
        (CUresult.CUDA_ERROR_NOT_SUPPORTED, "UNSUPPORTED"),
        (CUresult.CUDA_ERROR_OUT_OF_MEMORY, "OUT_OF_MEMORY"),
    ],
)
def test_whatever_the_driver_says_of_a_handle_the_worker_lives_and_the_caller_gets_a_reason(
    cuda: tuple[CudaDouble, CudaRegions], error: CUresult, reason: str
) -> None:
    driver, regions = cuda
    driver.failing["cuIpcOpenMemHandle"] = [error]
    with pytest.raises(RegionRefused) as caught:
        regions.open(exported(driver))
    assert caught.value.reason == reason
    assert (ABSENT in str(caught.value)) == (reason == "FIELD_INVALID")


def test_bytes_are_copied_on_a_stream_without_kernels_and_waited_for(cuda: tuple[CudaDouble, CudaRegions]) -> None:
    driver, regions = cuda
    opened = regions.open(exported(driver))
    content = np.arange(64, dtype=np.uint8)
    regions.write(opened, 128, content)
    back = np.zeros(64, np.uint8)
    driver.calls.clear()
    regions.read(opened, 128, back)
    assert (back == content).all()
    assert driver.names() == ["cuCtxSetCurrent", "cuMemcpyDtoHAsync", "cuStreamSynchronize"]
    assert driver.calls[1][-1] is driver.streams[-1]
    regions.close(opened)


# In the worker.


class Told:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.came = threading.Condition()

    def __call__(self, events: object) -> None:
        with self.came:
            self.events += events  # type: ignore[arg-type, operator]
            self.came.notify_all()

    def next(self) -> Event:
        with self.came:
            assert self.came.wait_for(lambda: self.events, 10)
            return self.events.pop(0)


@pytest.fixture
def regions() -> Iterator[tuple[Regions, Told]]:
    told = Told()
    made = Regions(HostRegions(), told)
    yield made, told
    made.stop()


def test_memory_that_one_tenant_has_registered_is_absent_for_every_other(
    regions: tuple[Regions, Told], memory: Path
) -> None:
    made, told = regions
    made.obey(wanted(memory))
    assert told.next() == RegionOpened(A, SIZE)
    made.obey(wanted(memory, B, tenant="other"))
    theirs = told.next()
    made.obey(OpenRegion("c" * 32, "other", handle_of("nothing_of_that_name"), SIZE))
    nobodys = told.next()
    assert isinstance(theirs, RegionFailed)
    assert isinstance(nobodys, RegionFailed)
    assert (theirs.reason, theirs.message) == (nobodys.reason, nobodys.message) == ("FIELD_INVALID", ABSENT)
    made.obey(wanted(memory, B))
    assert told.next() == RegionOpened(B, SIZE), "the same tenant may"


@pytest.mark.parametrize("size", [0, -1, SIZE + 1, 1 << 62])
def test_a_region_is_no_larger_than_the_memory_really_is(
    regions: tuple[Regions, Told], memory: Path, size: int
) -> None:
    made, told = regions
    before = len(os.listdir("/proc/self/fd"))
    made.obey(wanted(memory, size=size))
    failed = told.next()
    assert isinstance(failed, RegionFailed)
    assert f"{size} bytes are more than the {SIZE}" in failed.message
    assert len(os.listdir("/proc/self/fd")) == before, "it is closed again"


@given(
    offset=st.integers(-8, SIZE + 8) | st.integers(-(1 << 63), 1 << 63),
    length=st.integers(-8, SIZE + 8) | st.integers(-(1 << 63), 1 << 63),
    registered=st.integers(1, SIZE),
)
def test_no_part_reaches_beyond_what_was_registered(offset: int, length: int, registered: int) -> None:
    made = Regions(Nowhere(), lambda _: None)
    made._opened(OpenRegion(A, "t", bytes(64), registered))
    request = Submit(1, 1, 1, b"", (), (), 0, sinks=(RegionPart(0, A, offset, length),))
    if offset >= 0 and length >= 0 and offset + length <= registered:
        lease = made.borrow([request])
        assert lease is not None
        lease.end()
    else:
        with pytest.raises(RegionLost, match="reach beyond") as caught:
            made.borrow([request])
        assert caught.value.reason == "FIELD_INVALID"


class Nowhere(HostRegions):
    """Memory that is never touched."""

    def open(self, handle: bytes) -> Opened:
        return Opened(handle, None, SIZE)

    def close(self, opened: Opened) -> None:
        pass


# Through the loop.


@pytest.fixture(params=["processor", "launched ahead"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    lanes: CudaLanes | None = None
    seat = None
    if request.param != "processor":
        _, lanes, seat = seat_on_the_double()
    config = WorkerConfig(cores=(), queue_limit=8, memory_bytes=1 << 20, device_regions="host")
    world = World(seat, config)
    yield world
    world.send(Stop(grace_ns=200_000_000))
    world.thread.join(5)
    assert not world.thread.is_alive()
    world.outputs.check_invariants()
    if lanes is not None:
        lanes.close()


def in_region(
    call: int, *, source: tuple[int, int] | None = None, sink: tuple[int, int] | None = None, rows: int = 1
) -> Submit:
    """A request whose input or output lies in the region, at an offset, with a length."""
    sources = () if source is None else (RegionPart(0, A, *source),)
    sinks = () if sink is None else (RegionPart(0, A, *sink),)
    arrived = time.monotonic_ns()
    refs = (TensorRef(0, (rows, 2), 0, 0),)
    return Submit(call, 1, rows, b"", refs, (0,), arrived=arrived, sources=sources, sinks=sinks)


def floats(path: Path, offset: int, count: int) -> list[float]:
    return np.frombuffer(path.read_bytes(), np.float32, count, offset).tolist()


def put(path: Path, offset: int, *values: float) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(np.array(values, np.float32).tobytes())


def test_inputs_come_from_a_region_and_outputs_go_there_beside_those_in_the_arena(world: World, memory: Path) -> None:
    seen: list[np.ndarray] = []
    gate = Gate()

    def body(inputs):  # type: ignore[no-untyped-def]
        seen.append(inputs["x"].copy())
        return (yield from gate.body(inputs))

    world.host(1, body)
    world.send(wanted(memory))
    world.expect(RegionOpened)
    put(memory, 512, 3, 4)
    world.send(world.submit(1, 7))
    assert gate.entered.acquire(timeout=10)
    world.send(in_region(2, source=(512, 8), sink=(1024, 8)), world.submit(3, 9))
    for _ in range(3):
        gate.opened.release()
    assert world.value(world.expect(Done, 1)).tolist() == [[-7, -7]]
    second, third = world.expect(Done, 2), world.expect(Done, 3)
    assert [(ref.shape, ref.length_bytes) for ref in second.outputs] == [((1, 2), 0)]
    assert world.value(third).tolist() == [[-9, -9]]
    assert np.concatenate(seen).tolist() == [[7, 7], [3, 4], [9, 9]]
    assert floats(memory, 1024, 2) == [-3, -4]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (in_region(1, source=(SIZE - 4, 8)), "FIELD_INVALID"),
        (in_region(1, source=(0, 4)), "FIELD_INVALID"),
        (in_region(1, source=(0, 8), sink=(SIZE, 1)), "FIELD_INVALID"),
        (in_region(1, source=(0, 8), sink=(0, 7)), "FIELD_INVALID"),
        (replace(in_region(1), sources=(RegionPart(0, B, 0, 8),)), "REGION_NOT_FOUND"),
    ],
)
def test_the_worker_looks_again_at_what_its_executor_has_checked(
    world: World, memory: Path, request_: Submit, reason: str
) -> None:
    world.host(1, negated)
    world.send(wanted(memory))
    world.expect(RegionOpened)
    world.send(request_)
    assert world.expect(Failed, 1).reason == reason
    assert memory.read_bytes() == bytes(SIZE)
    world.send(in_region(2, source=(0, 8), sink=(8, 8)))
    world.expect(Done, 2)


def test_memory_that_is_cut_short_fails_its_request_and_nobody_falls(world: World, memory: Path) -> None:
    world.host(1, negated)
    world.send(wanted(memory))
    world.expect(RegionOpened)
    os.truncate(memory, 4)
    world.send(in_region(1, source=(0, 8)), replace(world.submit(2, 1), sinks=(RegionPart(0, A, 64, 8),)))
    for call in (1, 2):
        assert "too short" in world.expect(Failed, call).message
    world.send(world.submit(3, 5))
    assert world.value(world.expect(Done, 3)).tolist() == [[-5, -5]]


def test_a_region_is_closed_once_the_batch_that_uses_it_has_ended_and_for_new_requests_at_once(
    world: World, memory: Path
) -> None:
    gate = Gate()
    world.host(1, gate.body)
    world.send(wanted(memory))
    world.expect(RegionOpened)
    put(memory, 0, 1, 2)
    before = descriptors_of(memory)
    world.send(in_region(1, source=(0, 8), sink=(8, 8)))
    assert gate.entered.acquire(timeout=10)
    world.send(CloseRegion(A))
    until(lambda: world.loop._regions._open[A].closing)
    assert descriptors_of(memory) == before == 1
    world.send(in_region(2, source=(0, 8)))
    gate.opened.release()
    world.expect(Done, 1)
    assert floats(memory, 8, 2) == [-1, -2]
    assert world.expect(Failed, 2).reason == "REGION_NOT_FOUND"
    until(lambda: descriptors_of(memory) == 0)


@pytest.mark.parametrize("how", ["raises", "is cancelled"])
def test_a_batch_that_breaks_lets_go_of_its_regions(world: World, memory: Path, how: str) -> None:
    gate = Gate()

    def body(inputs):  # type: ignore[no-untyped-def]
        yield from gate.body(inputs)
        raise ValueError("broken")

    def endless(inputs):  # type: ignore[no-untyped-def]
        gate.entered.release()
        assert gate.opened.acquire(timeout=10)
        while True:
            yield

    world.host(1, body if how == "raises" else endless)
    world.send(wanted(memory))
    world.expect(RegionOpened)
    world.send(in_region(1, source=(0, 8)))
    assert gate.entered.acquire(timeout=10)
    if how == "is cancelled":
        world.send(Cancel(1))
    gate.opened.release()
    gate.opened.release()
    world.expect(Failed, 1)
    world.send(CloseRegion(A))
    until(lambda: descriptors_of(memory) == 0)


def test_a_worker_that_stops_closes_what_a_batch_had_left_open(regions: tuple[Regions, Told], memory: Path) -> None:
    made, told = regions
    made.obey(wanted(memory))
    told.next()
    assert made.borrow([in_region(1, sink=(0, 8))]) is not None
    made.stop()
    assert descriptors_of(memory) == 0


def test_regions_are_off_unless_they_are_switched_on(memory: Path) -> None:
    world = World()
    world.send(wanted(memory), CloseRegion(A))
    failed = world.expect(RegionFailed)
    assert (failed.region, failed.reason) == (A, "UNSUPPORTED")
    world.send(Stop(grace_ns=1))
    world.thread.join(5)


def test_a_model_on_the_device_is_lent_the_bytes_and_another_reads_them_on_the_host() -> None:
    driver = CudaDouble()
    driver.cuInit(0)
    opener = CudaRegions(driver, 0, driver.cuDevicePrimaryCtxRetain(0)[1], driver.cuStreamCreateWithPriority(1, 0)[1])
    told = Told()
    made = Regions(opener, told)
    made.obey(OpenRegion(A, "t", exported(driver), SIZE))
    assert told.next() == RegionOpened(A, SIZE)
    content = np.array([[1, 2], [3, 4]], np.float32)
    address = next(iter(driver.foreign))
    ctypes.memmove(ctypes.addressof(driver.foreign[address]) + 256, content.ctypes.data, content.nbytes)
    arena = memoryview(np.array([7, 8], np.float32).tobytes())
    plain = replace(in_region(3), inputs=(TensorRef(0, (1, 2), 0, 8),))
    requests = [in_region(1, source=(256, 16), rows=2), plain, in_region(2, source=(256, 8))]
    lease = made.borrow(requests)
    assert lease is not None

    class Borrows:
        takes_lent = True

    lent = lease.join(SIGNATURE, requests, arena, Borrows())
    assert isinstance(lent, LentInputs)
    assert lent["x"].shape == (4, 2)
    assert lent["x"][2].tolist() == [7, 8]
    assert not lent.is_whole("x")
    assert [(piece.at, piece.length_bytes) for piece in lent.lent["x"]] == [(0, 16), (24, 8)]
    assert lent.lent["x"][1].bytes.__cuda_array_interface__["data"] == (address + 256, False)  # type: ignore[attr-defined]
    assert "cuMemcpyDtoHAsync" not in driver.names()
    read = lease.join(SIGNATURE, requests, arena, object())
    assert read["x"].tolist() == [[1, 2], [3, 4], [7, 8], [1, 2]]
    lease.end()
    made.stop()
    assert not +driver.opened


def descriptors_of(path: Path) -> int:
    """How many of this process' files are that one."""
    mine = (os.path.join("/proc/self/fd", each) for each in os.listdir("/proc/self/fd"))
    return sum(os.path.exists(each) and os.readlink(each).startswith(str(path)) for each in mine)


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)
