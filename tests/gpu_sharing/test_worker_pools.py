"""A worker whose tenants have pools: one runs out, on a double of torch's CUDA, and the others are served; loads, failures, ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("llvmlite", reason="llvmlite is not installed")

from artefact_samples import exported, written
from cuda_double import CudaDouble
from pool_double import PooledBackend, PoolsOnDouble
from test_worker_loop import World, seat_on_the_double

from gpu_sharing.memory.accounts import Accounts
from gpu_sharing.memory.grants import Grants
from gpu_sharing.runtimes.base import LoadConfig, LoadedModel
from gpu_sharing.runtimes.torch_cuda import CudaExportRuntime, LaneGraphs
from gpu_sharing.units import GiB, MiB
from gpu_sharing.worker.config import WorkerConfig
from gpu_sharing.worker.messages import (
    Done,
    Failed,
    Load,
    Loaded,
    LoadFailed,
    Stop,
    Submit,
    TensorRef,
    Unload,
    Unloaded,
)
from gpu_sharing.worker.seat import Seat

WIDE = 2048


class Square(torch.nn.Module):
    """Takes memory by the square of its input's length."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x[:, :, None] * x[:, None, :]).sum(-1)


@pytest.fixture(scope="module")
def square() -> bytes:
    dims = {0: torch.export.Dim("batch", max=4), 1: torch.export.Dim("length", min=2, max=4096)}
    return exported(Square().eval(), (torch.randn(2, 16),), (dims,))


class Backend(PooledBackend):
    """Of a lane whose graphs cannot be captured."""

    device, pins = "cpu", False

    def __init__(self) -> None:
        super().__init__()
        self.lane = 0

    def enter_lane(self) -> None:
        self.lane = threading.get_ident()

    def on_lane(self) -> bool:
        return threading.get_ident() == self.lane

    def synchronize(self) -> None:
        pass

    def capture(self, pool: Any, work: Any) -> Any:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


class Pools(World):
    """A worker on the doubles; loads go through this project's runtime, and from there to tenants' pools."""

    def __init__(self) -> None:
        self.driver: CudaDouble
        self.driver, _, seat = seat_on_the_double()
        self.make, self.backend = PoolsOnDouble(), Backend()
        self.accounts = Accounts(self.make, Grants(64 * MiB))
        self.runtime = CudaExportRuntime(LaneGraphs(self.backend, self.accounts), "cpu")  # type: ignore[arg-type]
        made = Seat(seat.stream, enter_lane=self.backend.enter_lane, accounts=self.accounts)
        super().__init__(made, WorkerConfig(cores=(), queue_limit=64, memory_bytes=GiB))

    def load(self, path: Path, config: LoadConfig) -> LoadedModel:  # type: ignore[override]
        return self.runtime.load(path, config)

    def bring(self, replica: int, tenant: str, path: Path) -> Loaded | LoadFailed:
        self.send(Load(replica, tenant, "m", 1, f"digest {path.name}", str(path), "torch_export", 0, 1))
        while True:
            for event in self._events:
                if isinstance(event, Loaded | LoadFailed):
                    self._events.remove(event)
                    return event
            for events in self._decoder.feed(self.socket.recv(1 << 16)):
                self._events += events

    def ask(self, call: int, replica: int, length: int) -> Submit:
        offset = self.inputs.allocate(4 * length)
        np.frombuffer(self.inputs.view, np.float32, length, offset)[:] = 1
        ref = TensorRef(0, (1, length), offset, 4 * length)
        return Submit(call, replica, 1, f"{length}".encode(), (ref,), (0,), arrived=time.monotonic_ns())

    def check(self, path: Path | None = None) -> None:  # type: ignore[override]
        ledger = self.loop._ledger
        ledger.check_invariants()
        self.accounts.grants.check_invariants(ledger)
        assert self.accounts.used_bytes <= ledger.used_bytes


@pytest.fixture
def world() -> Iterator[Pools]:
    world = Pools()
    yield world
    if world.thread.is_alive():
        world.send(Stop(grace_ns=200_000_000))
        world.thread.join(5)


def numbers(world: Pools, tenant: str) -> tuple[int, int, int]:
    budget = world.accounts.of(tenant).budget
    return (budget.limit_bytes, budget.used_bytes, budget.refusals)


def test_a_tenant_that_runs_out_fails_alone_while_the_neighbours_and_its_own_requests_are_answered(
    world: Pools, square: bytes, tmp_path: Path
) -> None:
    path = written(tmp_path, "square.pt2", square)
    first, second = world.bring(1, "greedy", path), world.bring(2, "neighbour", path)
    assert isinstance(first, Loaded), first
    assert isinstance(second, Loaded), second
    assert first.memory_bytes == second.memory_bytes
    assert world.make.memory.given == {}, "what trying them drew has been given back"
    world.check()
    for replica in (1, 2):
        world.send(world.ask(replica, replica, 16))
        world.expect(Done, replica)
    before = numbers(world, "neighbour")
    asked = [(10 + at, (1, WIDE), (2, 16), (1, 16)) for at in range(0, 60, 3)]
    for call, *each in asked:
        world.send(*(world.ask(call + at, replica, length) for at, (replica, length) in enumerate(each)))
    for call, *_ in asked:
        failed = world.expect(Failed, call)
        assert failed.reason == "OUT_OF_MEMORY"
        assert "bytes that its batches may draw are drawn" in failed.message
        assert (world.value(world.expect(Done, call + 1)) == 16).all()
        assert (world.value(world.expect(Done, call + 2)) == 16).all()
    limit_bytes, used_bytes, refusals = numbers(world, "neighbour")
    assert (limit_bytes, refusals) == (before[0], before[2])
    assert used_bytes <= limit_bytes
    assert numbers(world, "greedy")[2] >= len(asked)
    world.check()


def test_what_a_replica_drew_goes_with_it_and_the_rest_serves_on(world: Pools, square: bytes, tmp_path: Path) -> None:
    path = written(tmp_path, "square.pt2", square)
    for replica, tenant in ((1, "a"), (2, "b")):
        assert isinstance(world.bring(replica, tenant, path), Loaded)
        world.send(world.ask(replica, replica, 16))
        world.expect(Done, replica)
    before = numbers(world, "b")
    world.send(Unload(1, drain_ns=0))
    world.expect(Unloaded)
    assert set(world.accounts._accounts) == {"b"}
    assert numbers(world, "b") == before
    assert world.loop._ledger.reserved(1) == 0
    assert sum(world.make.memory.given.values()) == before[1]
    world.send(world.ask(9, 2, 16))
    world.expect(Done, 9)
    world.check()


def test_a_load_that_runs_out_while_it_is_tried_says_so_and_leaves_nothing(
    world: Pools, square: bytes, tmp_path: Path
) -> None:
    path = written(tmp_path, "square.pt2", square)
    assert isinstance(world.bring(1, "a", path), Loaded)
    before, used = numbers(world, "a"), world.loop._ledger.used_bytes
    world.make.memory.refuses = True
    failed = world.bring(2, "b", written(tmp_path, "other.pt2", square))
    assert isinstance(failed, LoadFailed)
    assert not failed.refused
    assert "there is not enough memory to load it: PoolFull" in failed.message
    world.make.memory.refuses = False
    assert (numbers(world, "a"), world.loop._ledger.used_bytes) == (before, used)
    assert set(world.accounts._accounts) == {"a"}
    assert isinstance(world.bring(3, "b", path), Loaded)
    world.check()
