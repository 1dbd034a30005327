"""A lane that launches ahead, on the driver's double: what is out, what it is charged, and how the device's errors end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cuda_double import CudaDouble, CUresult
from test_worker_loop import World, seat_on_the_double

from gpu_sharing.devices.cuda.stream import CudaStream
from gpu_sharing.runtimes.base import Run, Tensors
from gpu_sharing.units import MS
from gpu_sharing.worker.messages import Done, Failed, Statistics, Stop


class Device:
    """A world on the double, and bodies whose segments take what they are told to."""

    def __init__(self) -> None:
        self.driver, self.lanes, self.seat = seat_on_the_double()
        self.stream: CudaStream = self.seat.stream
        self.world = World(self.seat)
        self.out: list[int] = []
        self.order: list[str] = []

    def body(self, *took_ms: float, name: str = "") -> object:
        def run(inputs: Tensors) -> Run:
            for index, each in enumerate(took_ms):
                self.out.append(self.stream.out)
                self.order.append(f"{name}{index}")
                self.driver.launch(self.stream.stream, each)
                if index + 1 < len(took_ms):
                    yield
            return {"y": -inputs["x"]}

        return run


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device()
    yield device
    if device.world.thread.is_alive() and not device.world.ended.is_set():
        device.world.send(Stop(grace_ns=200_000_000))
        device.world.thread.join(5)


def test_two_segments_are_out_at_most_and_a_second_one_is_whenever_there_is_one(device: Device) -> None:
    device.world.host(1, device.body(1, 1, 1, 1, 1, 1))
    device.world.send(device.world.submit(1, 3.0))
    done = device.world.expect(Done)
    assert (device.world.value(done) == -3).all()
    assert device.out == [0, 1, 1, 1, 1, 1]
    names = [name for name in device.driver.names() if name in ("cuEventRecord", "cuEventSynchronize")]
    # Two records a segment: the third segment is begun once the first has ended, and not before.
    assert names[:7] == ["cuEventRecord"] * 4 + ["cuEventSynchronize"] + ["cuEventRecord"] * 2


def test_what_the_device_took_is_what_is_charged_and_told(device: Device) -> None:
    device.world.host(1, device.body(1.5, 0.5, 2.0))
    device.world.send(device.world.submit(1, 3.0))
    batch = device.world.expect(Done).batch
    first, second, third = batch.segment_ends
    assert first - batch.started == round(1.5 * MS)
    assert (second - first, third - second) == (round(0.5 * MS), 2 * MS)
    told = device.world.expect(Statistics)
    while not told.used or told.used[0].device_ns < 4 * MS:
        told = device.world.expect(Statistics)
    assert (told.busy_ns, told.used[0].device_ns, told.used[0].batches) == (4 * MS, 4 * MS, 1)


def test_an_urgent_request_waits_for_no_more_than_what_is_out(device: Device) -> None:
    sent = []

    def flood(inputs: Tensors) -> Run:
        for index in range(8):
            if index == 3:
                sent.append(device.world.submit(2, 5.0, replica=2, objective=0))
                device.world.loop._requests.take(sent)
            device.order.append(f"flood{index}")
            device.driver.launch(device.stream.stream, 1.0)
            yield
        return {"y": -inputs["x"]}

    device.world.host(1, flood)
    device.world.host(2, device.body(1.0, name="urgent"))
    device.world.send(device.world.submit(1, 1.0))
    assert device.world.expect(Done, 2)
    assert device.world.expect(Done, 1)
    assert device.order.index("urgent0") == 4, device.order


@pytest.mark.parametrize("error", [CUresult.CUDA_ERROR_ILLEGAL_ADDRESS, CUresult.CUDA_ERROR_UNKNOWN])
def test_a_lost_device_is_told_to_all_that_are_out_and_ends_the_worker(device: Device, error: CUresult) -> None:
    device.world.host(1, device.body(1, 1))
    device.driver.failing["cuEventSynchronize"] = [error]
    device.world.send(device.world.submit(1, 1.0))
    failed = device.world.expect(Failed, 1)
    assert failed.reason == "MODEL_FAILED"
    assert f"the device was lost: CudaError: cuEventSynchronize: {error.name}" in failed.message
    assert device.world.ended.wait(5)


def test_a_lost_device_that_a_library_tells_of_ends_the_worker_too(device: Device) -> None:
    def body(inputs: Tensors) -> Run:
        yield
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    device.world.host(1, body)
    device.world.send(device.world.submit(1, 1.0))
    assert "the device was lost" in device.world.expect(Failed, 1).message
    assert device.world.ended.wait(5)


def test_out_of_memory_breaks_its_own_batch_alone(device: Device) -> None:
    def body(inputs: Tensors) -> Run:
        device.driver.launch(device.stream.stream, 1.0)
        yield
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    device.world.host(1, body)
    device.world.host(2, device.body(1, 1))
    device.world.send(device.world.submit(1, 1.0), device.world.submit(2, 2.0, replica=2))
    assert device.world.expect(Failed, 1).reason == "OUT_OF_MEMORY"
    assert (device.world.value(device.world.expect(Done, 2)) == -2).all()
    assert not device.world.ended.is_set()


def test_the_double_ends_with_nothing_left() -> None:
    device = Device()
    device.world.host(1, device.body(1, 1, 1))
    device.world.send(*(device.world.submit(call, 1.0) for call in range(1, 6)))
    for call in range(1, 6):
        assert device.world.expect(Done, call)
    device.world.send(Stop(grace_ns=200_000_000))
    device.world.thread.join(5)
    assert device.stream.out == 0
    device.driver.current.setdefault(0, None)
    device.stream.close()
    device.lanes.close()
    assert isinstance(device.driver, CudaDouble)
    assert device.driver.alive == {"contexts": 0, "streams": 0, "events": 0, "primary": 0}
