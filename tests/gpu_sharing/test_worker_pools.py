"""A worker whose tenants have pools: one runs out, on a double of torch's CUDA, and the others are served; loads, failures, ends."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("llvmlite", reason="llvmlite is not installed")

from artefact_samples import exported, written
from cuda_double import CudaDouble
from pool_double import Memory, Pool, PooledBackend, PoolsOnDouble, allocator
from test_worker_loop import World, seat_on_the_double

from gpu_sharing.devices.cuda.device import CudaDevice
from gpu_sharing.devices.cuda.survey import choose, survey
from gpu_sharing.memory import capped
from gpu_sharing.memory.accounts import Accounts
from gpu_sharing.memory.berths import HostSpace
from gpu_sharing.memory.grants import Grant, Grants
from gpu_sharing.partitioning.partitions import parse_layouts
from gpu_sharing.runtimes.base import LoadConfig, LoadedModel
from gpu_sharing.runtimes.torch_cuda import CudaExportRuntime, LaneGraphs
from gpu_sharing.units import GiB, MiB
from gpu_sharing.worker.config import WorkerConfig
from gpu_sharing.worker.cuda_seats import CudaSeats
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

pytestmark = pytest.mark.slow

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

    def __init__(self, *, memory_bytes: int = GiB, host_bytes: int = 0) -> None:
        self.driver: CudaDouble
        self.driver, _, seat = seat_on_the_double()
        self.make, self.backend = PoolsOnDouble(), Backend()
        self.accounts = Accounts(self.make, Grants(64 * MiB))
        self.runtime = CudaExportRuntime(LaneGraphs(self.backend, self.accounts), "cpu")  # type: ignore[arg-type]
        made = Seat(seat.stream, enter_lane=self.backend.enter_lane, accounts=self.accounts, space=HostSpace)
        super().__init__(made, WorkerConfig(cores=(), queue_limit=64, memory_bytes=memory_bytes, host_bytes=host_bytes))

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
        """One row of so many ones."""
        offset = self.inputs.allocate(4 * length)
        np.frombuffer(self.inputs.view, np.float32, length, offset)[:] = 1
        ref = TensorRef(0, (1, length), offset, 4 * length)
        return Submit(call, replica, 1, f"{length}".encode(), (ref,), (0,), arrived=time.monotonic_ns())

    def check(self, path: Path | None = None) -> None:  # type: ignore[override]
        ledger = self.loop._ledger
        ledger.check_invariants()
        self.accounts.grants.check_invariants(ledger)
        assert self.accounts.used_bytes <= ledger.used_bytes
        moving = self.loop._mover.residency.residence.used_bytes if self.loop._mover is not None else 0
        assert ledger.used_bytes + moving <= ledger.capacity_bytes


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


@pytest.fixture(scope="module")
def heavy() -> bytes:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(512, 512) for _ in range(8)]
    return exported(
        torch.nn.Sequential(*layers).eval(), (torch.randn(2, 512),), ({0: torch.export.Dim("batch", max=4)},)
    )


@pytest.mark.slow
def test_weights_that_move_leave_what_tenants_may_draw_alone(heavy: bytes, tmp_path: Path) -> None:
    """Four models of 8 MiB, room for two beside what their tenants' pools may draw."""
    world = Pools(memory_bytes=4 * (10 + 2) * MiB + 8 * MiB, host_bytes=64 * MiB)
    try:
        for replica in range(1, 5):
            loaded = world.bring(replica, f"t{replica}", written(tmp_path, f"{replica}.pt2", heavy))
            assert isinstance(loaded, Loaded), loaded
            world.check()
        limits = [numbers(world, f"t{replica}")[0] for replica in range(1, 5)]
        assert limits == [limits[0]] * 4
        expected = None
        for turn in range(3):
            for replica in range(1, 5):
                call = 10 * turn + replica
                world.send(world.ask(call, replica, 512))
                done = world.expect(Done, call)
                (ref,) = done.outputs
                given = np.frombuffer(world.outputs.view, np.float32, 512, ref.offset).copy()
                expected = given if expected is None else expected
                np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)
                world.check()
        assert [numbers(world, f"t{replica}")[0] for replica in range(1, 5)] == limits
    finally:
        world.send(Stop(grace_ns=200_000_000))
        world.thread.join(5)


# What a real seat is made of.


class OnNothing(Backend):
    """Stands for torch's side of a lane."""

    def __init__(self, compute: int, loading: int, *, sms: int, ordinal: int = 0) -> None:
        super().__init__()
        self.streams = (compute, loading)

    def pool(self) -> Any:
        return Kept(7)

    def pool_bytes(self, pool: Any) -> int:
        return pool.size_bytes

    def enter_loading(self) -> None:
        pass

    def reclaim(self) -> None:
        pass


class Kept:
    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes


def seats(monkeypatch: pytest.MonkeyPatch) -> CudaSeats:
    monkeypatch.setattr("gpu_sharing.runtimes.torch_place.CudaBackend", OnNothing)
    driver = CudaDouble()
    facts = survey(driver)
    device = CudaDevice(facts, choose(facts))
    return CudaSeats(device, device.fitted(parse_layouts("0-63;64-131", device.units())), driver=driver, graph_bytes=9)


def test_where_pools_cannot_be_had_a_seat_says_so_and_torch_models_are_served_without_limits(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(torch._C, "_cuda_customAllocator", raising=False)
    seat = seats(monkeypatch).seat(1)
    assert "memory of tenants has no limits on this device: torch" in capfd.readouterr().err
    assert seat.accounts is not None
    assert seat.runtime_for is not None
    assert isinstance(seat.runtime_for("torch_export"), CudaExportRuntime)
    seat.accounts.try_out(1, "a", 5)
    budget = seat.accounts.of("a").budget
    pools = [budget.pool(), budget.pool()]
    assert (budget.used_bytes, budget.peak_bytes) == (14, 14)
    budget.give_back([pools.pop(0)])
    assert (budget.used_bytes, budget.peak_bytes) == (7, 14)


def test_on_a_device_a_seats_pools_call_the_driver_by_these_names_and_wipe_on_the_loading_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory, allocators = Memory(), []
    names = (
        "cuMemAlloc_v2", "cuMemFree_v2", "cuMemsetD8Async", "cuStreamIsCapturing", "cuStreamSynchronize",
        "cuThreadExchangeStreamCaptureMode",
    )  # fmt: skip
    library = SimpleNamespace(**dict(zip(names, memory.kept, strict=True)))
    monkeypatch.setattr(capped.ctypes, "CDLL", lambda name: {"libcuda.so.1": library}[name])
    monkeypatch.setattr(torch._C, "_cuda_customAllocator", allocator, raising=False)
    monkeypatch.setattr(torch.cuda, "MemPool", lambda given: allocators.append(given) or Pool(given))
    made = seats(monkeypatch)
    seat, lane = made.seat(1), made.lanes.lanes[1]
    assert seat.accounts is not None
    seat.accounts.try_out(1, "a", 100)
    pool = seat.accounts.of("a").trial_pool()
    memory.capturing.add(5)
    address, _ = pool.draw(60, stream=5)
    assert memory.wiped == [(address, 60, int(lane.loading))]
    with pytest.raises(torch.OutOfMemoryError):
        pool.draw(60)
    del pool
    seat.accounts.tried(1)
    gc.collect()
    assert memory.given == {}
    seat.accounts.settle(1, Grant(50))
    assert seat.accounts.of("a").pool().draw(50)
