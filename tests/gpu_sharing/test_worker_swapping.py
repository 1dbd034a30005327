"""A worker's loop over the driver's double: models whose weights come from a pinned arena, by segment, beside a lane that goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_double import CudaDouble, CUresult
from test_worker_loop import Model, World

from gpu_sharing.devices.cpu import CpuDevice
from gpu_sharing.devices.cuda.device import CudaDevice
from gpu_sharing.devices.cuda.space import CudaSpace
from gpu_sharing.devices.cuda.stream import CudaStream
from gpu_sharing.devices.cuda.survey import choose, survey
from gpu_sharing.measurements import Profile, ProfilePoint
from gpu_sharing.memory.streaming import Layout
from gpu_sharing.partitioning.partitions import parse_layouts
from gpu_sharing.runtimes.base import LoadConfig, Run, Tensors
from gpu_sharing.runtimes.movable import Gate, gated
from gpu_sharing.worker.config import WorkerConfig
from gpu_sharing.worker.messages import Done, Failed, Load, Loaded, Moved, Stop
from gpu_sharing.worker.seat import Seat

MiB = 1 << 20
SIZE = 4 * MiB
LAYOUT = Layout(SIZE, (2 * MiB, SIZE))


class Scripted:
    """Weights that are all one byte. address: where they lie now."""

    layout = LAYOUT

    def __init__(self, value: int) -> None:
        self.value, self.addresses = value, []

    def save(self, host: memoryview) -> None:
        host[:SIZE] = bytes([self.value]) * SIZE

    def drop(self) -> None:
        pass

    def lie_over(self, memory: Any) -> None:
        self.addresses.append(memory.__cuda_array_interface__["data"][0])


class Moving(Model):
    """Answers with what lies where its weights should, in each of two segments; faults where nothing does."""

    weight_bytes = SIZE
    segments = ("one", "two")

    def __init__(self, driver: CudaDouble, value: int) -> None:
        self.driver, self.held, self.gate = driver, Scripted(value), None
        self.closed = False

    gate: Gate | None

    def weights(self) -> Scripted:
        return self.held

    def run(self, inputs: Tensors) -> Run:  # type: ignore[override]
        return gated(self._run(inputs), self.gate) if self.gate is not None else self._run(inputs)

    def _run(self, inputs: Tensors) -> Run:
        (address,) = self.held.addresses
        first = self.driver.content[address][0]
        yield
        assert self.driver.content[address + 2 * MiB][0] == first
        return {"y": np.full_like(inputs["x"], first)}

    def again(self, config: LoadConfig) -> Moving:
        raise AssertionError("nobody shares it")


class Swapping(World):
    """Memory for two models and a half."""

    def __init__(self) -> None:
        self.driver = CudaDouble()
        facts = survey(self.driver)
        device = CudaDevice(facts, choose(facts))
        self.lanes = device.lanes(self.driver, device.fitted(parse_layouts("0-131", device.units())))
        lane = self.lanes.lanes[0]
        self.spaces: list[CudaSpace] = []

        def space(host_bytes: int) -> CudaSpace:
            self.spaces.append(CudaSpace(self.driver, 0, self.lanes, lane.compute, host_bytes))
            return self.spaces[0]

        seat = Seat(CudaStream(self.driver, lane.compute, self.lanes.primary), space=space)
        super().__init__(seat, WorkerConfig((), queue_limit=8, memory_bytes=5 * SIZE // 2, host_bytes=4 * SIZE))

    def place(self, replica: int) -> Moving:
        model = self.models[str(replica)] = Moving(self.driver, 10 + replica)
        device, digest = CpuDevice(""), f"digest {replica}"
        point = ProfilePoint(1, "2", device.compute_units, 5, 5, 1, 10, segments_ns=(5, 5))
        profile = Profile(digest, device.device_kind, SIZE, (point,))
        self.send(Load(replica, "t", "m", 1, digest, f"/{replica}", "scripted", 0, 1, profile=profile))
        assert self.expect(Loaded).memory_bytes == SIZE + 20
        return model

    def check(self, path: Path) -> None:
        pass


@pytest.fixture
def world() -> Iterator[Swapping]:
    world = Swapping()
    yield world
    world.send(Stop(grace_ns=200_000_000))
    world.thread.join(5)
    assert not world.thread.is_alive()


def test_models_answer_with_their_own_weights_at_the_address_where_they_always_were(world: Swapping) -> None:
    models = [world.place(replica) for replica in (1, 2, 3)]
    for call in range(1, 13):
        replica = 1 + call % 3
        world.send(world.submit(call, 0.0, replica=replica))
        assert world.value(world.expect(Done, call)).tolist() == [[10.0 + replica] * 2]
    assert [len(model.held.addresses) for model in models] == [1, 1, 1]
    assert sum(world.driver.handles.values()) <= 5 * SIZE // 2
    assert "cuMemUnmap" in world.driver.names()


def test_a_fill_that_the_device_refuses_is_told_and_tried_again(world: Swapping) -> None:
    for replica in (1, 2, 3):
        world.place(replica)
    gone = next(move for move in iter(lambda: world.expect(Moved), None) if not move.is_in).replicas[0]
    world.driver.failing["cuMemCreate"] = [CUresult.CUDA_ERROR_OUT_OF_MEMORY]
    world.send(world.submit(1, 0.0, replica=gone))
    assert world.value(world.expect(Done, 1)).tolist() == [[10.0 + gone] * 2]
    broken = next(move for move in iter(lambda: world.expect(Moved), None) if "could not be brought in" in move.why)
    assert "cuMemCreate" in broken.why


def test_a_deadline_before_the_end_of_the_copy_is_refused_with_its_length(world: Swapping) -> None:
    for replica in (1, 2, 3):
        world.place(replica)
    gone = next(move for move in iter(lambda: world.expect(Moved), None) if not move.is_in).replicas[0]
    request = world.submit(1, 0.0, replica=gone)
    world.send(
        type(request)(*[getattr(request, name) for name in request.__struct_fields__[:7]], request.arrived + 250_000)
    )
    failed = world.expect(Failed, 1)
    assert failed.reason in ("OVERLOADED", "DEADLINE_EXCEEDED")
    assert failed.reason == "DEADLINE_EXCEEDED" or int(failed.facts["swap_in_us"]) >= 200
