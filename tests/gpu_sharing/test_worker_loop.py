"""A worker's loop in this process, with a runtime that does what the test says."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cuda_double import CudaDouble

from gpu_sharing.devices.cpu import CpuDevice
from gpu_sharing.devices.cuda.device import CudaDevice
from gpu_sharing.devices.cuda.lanes import CudaLanes
from gpu_sharing.devices.cuda.stream import CudaStream
from gpu_sharing.devices.cuda.survey import choose, survey
from gpu_sharing.measurements import Profile, ProfilePoint
from gpu_sharing.memory.arena import Arena, ArenaView, read_only
from gpu_sharing.partitioning.partitions import parse_layouts
from gpu_sharing.runtimes.base import LoadConfig, Run, Tensors
from gpu_sharing.tensors import Signature, TensorSpec
from gpu_sharing.worker import wire
from gpu_sharing.worker.config import WorkerConfig
from gpu_sharing.worker.loop import WorkerLoop
from gpu_sharing.worker.messages import (
    Cancel,
    Done,
    Failed,
    Load,
    Loaded,
    Ready,
    Stop,
    Submit,
    TensorRef,
    Unload,
    Unloaded,
)
from gpu_sharing.worker.seat import Seat

MiB = 1 << 20
SPEC = TensorSpec("x", "FP32", (None, 2), batch_axis=0)
SIGNATURE = Signature((SPEC,), (TensorSpec("y", "FP32", (None, 2), batch_axis=0),), max_batch_size=4)
Body = Callable[[Tensors], Run]


class Model:
    signature = SIGNATURE
    weight_bytes = 100
    segments = ("one",)

    def __init__(self, body: Body) -> None:
        self.run = body
        self.closed = False

    def activation_bytes(self, inputs: Tensors) -> int:
        return 0

    def again(self, config: LoadConfig) -> Model:
        return self

    def close(self) -> None:
        self.closed = True


class World:
    """A runtime of scripted models, by path, and our end of the worker's socket."""

    def __init__(self, seat: Seat | None = None, config: WorkerConfig | None = None) -> None:
        self.name = "scripted"
        self.starts_threads = False
        self.ended = threading.Event()
        self.models: dict[str, Model] = {}
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(10)
        self._decoder = wire.events()
        self._events: list = []
        self.inputs = Arena.create(MiB)
        self.outputs = Arena.create(MiB)
        view = ArenaView(read_only(self.inputs.fd), MiB)
        config = config or WorkerConfig(cores=(), queue_limit=8, memory_bytes=MiB)
        self.loop = WorkerLoop(
            config,
            CpuDevice("test"),
            theirs,
            view,
            self.outputs,
            runtime_for=lambda name: self,
            end_worker=self.ended.set,
            seat=seat,
        )
        self.thread = threading.Thread(target=self._run, args=(theirs,), daemon=True)
        self.thread.start()
        self.expect(Ready)

    def _run(self, theirs: socket.socket) -> None:
        self.loop.run(1)
        theirs.close()

    def check(self, path: Path) -> None:
        pass

    def load(self, path: Path, config: LoadConfig) -> Model:
        return self.models[path.name]

    def host(self, replica: int, body: Body) -> Model:
        """Loads a model that runs `body`."""
        model = self.models[str(replica)] = Model(body)
        digest = f"digest {replica}"
        device = CpuDevice("")
        profile = Profile(digest, device.device_kind, 100, (ProfilePoint(1, "2", device.compute_units, 5, 5, 1, 10),))
        self.send(Load(replica, "t", "m", 1, digest, f"/{replica}", "scripted", 0, 1, profile=profile))
        loaded = self.expect(Loaded)
        assert loaded.memory_bytes == 120
        return model

    def send(self, *commands: object) -> None:
        self.socket.sendall(wire.encode(commands))

    def submit(self, call: int, value: float, *, replica: int = 1, rows: int = 1, **fields: object) -> Submit:
        """A request whose input holds `value`."""
        offset = self.inputs.allocate(8 * rows)
        np.frombuffer(self.inputs.view, np.float32, 2 * rows, offset)[:] = value
        ref = TensorRef(0, (rows, 2), offset, 8 * rows)
        return Submit(call, replica, rows, b"", (ref,), (0,), arrived=time.monotonic_ns(), **fields)

    def expect(self, kind: type, call: int | None = None):
        """The next event of that kind (and call), whatever else comes first; that is kept for later."""
        while True:
            for event in self._events:
                if isinstance(event, kind) and call in (None, getattr(event, "call", None)):
                    self._events.remove(event)
                    return event
            data = self.socket.recv(1 << 16)
            assert data, "the worker has closed its socket"
            for events in self._decoder.feed(data):
                self._events += events

    def value(self, done: Done) -> np.ndarray:
        (ref,) = done.outputs
        return np.frombuffer(self.outputs.view, np.float32, ref.length_bytes // 4, ref.offset).reshape(ref.shape)


def seat_on_the_double() -> tuple[CudaDouble, CudaLanes, Seat]:
    """A lane whose slices are launched ahead, on a device in virtual time: every segment is there at once."""
    driver = CudaDouble()
    facts = survey(driver)
    device = CudaDevice(facts, choose(facts))
    lanes = device.lanes(driver, device.fitted(parse_layouts("0-131", device.units())))
    return driver, lanes, Seat(CudaStream(driver, lanes.lanes[0].compute, lanes.primary))


@pytest.fixture(params=["processor", "launched ahead"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    driver, lanes, seat = (None, None, None) if request.param == "processor" else seat_on_the_double()
    world = World(seat)
    yield world
    if world.thread.is_alive():
        world.send(Stop(grace_ns=200_000_000))
        world.thread.join(5)
        assert not world.thread.is_alive()
    world.outputs.check_invariants()
    if seat is not None:
        assert seat.stream.out == 0
        lanes.close()
        assert not driver.alive["contexts"]
        assert not driver.alive["streams"]


def negated(inputs: Tensors) -> Run:
    yield
    return {"y": -inputs["x"]}


class Gate:
    """A body that says when it is in its first segment, and waits there."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Semaphore(0), threading.Semaphore(0)
        self.started = 0

    def body(self, inputs: Tensors) -> Run:
        self.started += 1
        self.entered.release()
        assert self.opened.acquire(timeout=10)
        yield
        return {"y": -inputs["x"]}


def test_a_request_alone_reads_where_the_executor_wrote(world: World) -> None:
    seen = []

    def body(inputs: Tensors) -> Run:
        yield
        seen.append(inputs["x"])
        return {"y": -inputs["x"]}

    world.host(1, body)
    request = world.submit(1, 3.0)
    world.send(request)
    assert (world.value(world.expect(Done)) == -3).all()
    (tensor,) = seen
    assert not tensor.flags.writeable
    assert not tensor.flags.owndata


def test_refusals_and_cancels_are_answered_while_a_slice_runs(world: World) -> None:
    gate = Gate()
    world.host(1, gate.body)
    world.send(world.submit(1, 1.0))
    assert gate.entered.acquire(timeout=10)
    world.send(*(world.submit(call, 1.0) for call in range(2, 11)))
    assert world.expect(Failed, 10).reason == "OVERLOADED"
    world.send(Cancel(2))
    assert world.expect(Failed, 2).reason == "CANCELLED"
    soon = time.monotonic_ns() + 30_000_000
    world.send(Cancel(3), world.submit(11, 1.0, deadline=soon))
    late = world.expect(Failed, 11)
    assert late.reason == "DEADLINE_EXCEEDED"
    assert time.monotonic_ns() >= soon
    for _ in range(8):
        gate.opened.release()
    assert world.expect(Done, 1).batch.requests == 1
    assert world.expect(Done, 9)


def test_a_cancelled_running_request_stops_at_its_boundary_and_is_answered_once(world: World) -> None:
    gate = Gate()
    world.host(1, gate.body)
    world.send(world.submit(1, 1.0))
    assert gate.entered.acquire(timeout=10)
    world.send(Cancel(1), world.submit(2, 5.0), world.submit(98, 0.0, replica=7))
    world.expect(Failed, 98)  # so the cancel has been taken
    gate.opened.release(2)
    failed = world.expect(Failed, 1)
    assert (failed.reason, len(failed.batch.segment_ends)) == ("CANCELLED", 1)
    assert (world.value(world.expect(Done, 2)) == -5).all()


def test_an_urgent_request_takes_the_lane_at_the_next_boundary(world: World) -> None:
    gate = Gate()
    world.host(1, gate.body)
    world.host(2, negated)
    now = time.monotonic_ns()
    world.send(world.submit(1, 1.0))
    assert gate.entered.acquire(timeout=10)
    world.send(world.submit(2, 2.0, replica=2, objective=now))
    world.send(Cancel(99), world.submit(98, 0.0, replica=7))
    world.expect(Failed, 98)
    gate.opened.release()
    first, second = world.expect(Done), world.expect(Done)
    assert (first.call, second.call) == (2, 1)
    assert (second.batch.preemptions, second.batch.preempted > 0) == (1, True)


@pytest.mark.parametrize(
    ("outputs", "problem"),
    [
        ({}, "output 'y' is missing"),
        ({"y": np.zeros((2, 2), np.float32)}, r"output 'y' has the shape \[2, 2\], not \[1, 2\]"),
        ({"y": np.zeros((1, 2))}, "output 'y' is float64, not FP32"),
        ({"y": [1.0]}, "output 'y' is list, not an array"),
        (None, "the model returned NoneType"),
    ],
)
def test_outputs_that_break_the_signature_fail_the_request(world: World, outputs: object, problem: str) -> None:
    def body(inputs: Tensors) -> Run:
        yield
        return outputs

    world.host(1, body)
    world.send(world.submit(1, 1.0))
    failed = world.expect(Failed)
    assert failed.reason == "MODEL_FAILED"
    assert "model 'm' version 1: OutputInvalid: " in failed.message
    assert re.search(problem, failed.message)


@pytest.mark.parametrize("error", [RuntimeError("boom"), SystemExit(3), MemoryError()])
def test_whatever_a_model_raises_its_neighbours_go_on(world: World, error: BaseException) -> None:
    def body(inputs: Tensors) -> Run:
        yield
        raise error

    world.host(1, body)
    world.host(2, negated)
    world.send(world.submit(1, 1.0), world.submit(2, 2.0, replica=2))
    assert type(error).__name__ in world.expect(Failed, 1).message
    assert (world.value(world.expect(Done, 2)) == -2).all()


def test_a_drain_that_takes_too_long_answers_everybody(world: World) -> None:
    gate = Gate()
    model = world.host(1, gate.body)
    world.send(*(world.submit(call, 1.0, rows=4) for call in (1, 2)))
    assert gate.entered.acquire(timeout=10)
    world.send(Unload(1, drain_ns=20_000_000))
    assert world.expect(Failed, 2).reason == "MODEL_NOT_READY"
    gate.opened.release()
    assert world.expect(Failed, 1).reason == "MODEL_NOT_READY"
    assert world.expect(Unloaded).replica == 1
    assert model.closed


def test_stopping_answers_what_runs_within_the_grace(world: World) -> None:
    gate = Gate()
    world.host(1, gate.body)
    world.send(world.submit(1, 1.0))
    assert gate.entered.acquire(timeout=10)
    world.send(Stop(grace_ns=10_000_000_000), world.submit(2, 1.0))
    assert world.expect(Failed, 2).reason == "MODEL_NOT_READY"
    gate.opened.release()
    assert world.expect(Done, 1)
    world.thread.join(5)
    assert not world.thread.is_alive()
