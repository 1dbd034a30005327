"""One real worker process and the calls sent to it: what benchmarks of a single device stand on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpu_sharing.devices.base import Device
from gpu_sharing.units import SECOND, Bytes, MiB, Nanoseconds
from gpu_sharing.worker.client import WorkerClient, WorkerConfig
from gpu_sharing.worker.config import PolicyName
from gpu_sharing.worker.messages import (
    Done,
    Failed,
    Load,
    Loaded,
    LoadFailed,
    Moved,
    Release,
    Statistics,
    Submit,
    TensorRef,
    Unload,
    Unloaded,
    Used,
)
from gpu_sharing.worker.process import cuda_environment

WIDTH = 256
_ROW_BYTES = 4 * WIDTH
_ANSWERED_S = 120.0


class Placed(NamedTuple):
    """A model to load. digest: equal ones share their weights; None: nobody else's."""

    replica: int
    path: Path
    bandwidth: int = 0
    weight: int = 1
    most_rows: int = 1
    digest: str | None = None


class Call(NamedTuple):
    """What became of a request. batch: None where it was refused."""

    replica: int
    arrived: Nanoseconds
    objective: Nanoseconds | None
    answered: Nanoseconds
    received: Nanoseconds
    reason: str
    batch: Any

    @property
    def latency_ns(self) -> Nanoseconds:
        """From being sent to the end of its batch, or to its refusal."""
        return (self.batch.ended if self.reason == "OK" else self.answered) - self.arrived

    @property
    def is_met(self) -> bool:
        """Answered well and by its objective."""
        return self.reason == "OK" and (self.objective is None or self.batch.ended <= self.objective)


class OneWorker:
    """Belongs to the event loop. calls: what has ended, in order. loaded: by replica, what the worker said of it."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.loaded: dict[int, Loaded] = {}
        self.load_ns: dict[int, Nanoseconds] = {}
        self.moves: list[Moved] = []
        self.statistics: Statistics | None = None
        self._client: WorkerClient | None = None
        self._sent: dict[int, Submit] = {}
        self._then: dict[int, Callable[[], None]] = {}
        self._numbers = 0
        self._failed: dict[int, str] = {}
        self._changed = asyncio.Event()
        self._inputs: dict[int, TensorRef] = {}

    @property
    def client(self) -> WorkerClient:
        """The worker's. AssertionError before it was started."""
        assert self._client is not None, "not started"
        return self._client

    @property
    def open(self) -> int:
        """Requests that are not answered."""
        return len(self._sent)

    async def start(
        self,
        device: Device,
        policy: PolicyName = "reservations",
        memory_bytes: Bytes | None = None,
        host_bytes: Bytes = 0,
    ) -> None:
        """Starts it. On processor cores it gets the last, and the caller keeps to the others, where there are several.

        memory_bytes, host_bytes: see WorkerConfig.
        """
        units = tuple(device.units())
        mine = os.sched_getaffinity(0)
        is_cpu = device.backend == "cpu"
        config = WorkerConfig(
            units[-1:] if is_cpu else (), 64 * MiB, 64 * MiB, prewarm=("torch_export",), policy=policy,
            environment={} if is_cpu else cuda_environment(device.backend), memory_bytes=memory_bytes,
            host_bytes=host_bytes,
        )  # fmt: skip
        if is_cpu:
            # It may only have cores that its parent has.
            os.sched_setaffinity(0, units)
        try:
            self._client = await WorkerClient.start(config, on_events=self._on_events, timeout_s=120.0)
        finally:
            os.sched_setaffinity(0, (set(units[:-1]) or mine) if is_cpu else mine)

    async def load(self, models: Iterable[Placed]) -> None:
        """Loads them, one after another. RuntimeError for one that cannot be."""
        for each in models:
            began = time.monotonic_ns()
            digest = f"{each.path}" if each.digest is None else each.digest
            self.client.send(
                Load(
                    each.replica, f"t{each.replica}", "m", 1, digest, str(each.path), "torch_export", each.bandwidth,
                    each.weight, each.most_rows,
                )
            )  # fmt: skip
            await self.until(lambda each=each: each.replica in self.loaded or each.replica in self._failed, 600.0)
            if each.replica in self._failed:
                raise RuntimeError(self._failed[each.replica])
            self.load_ns[each.replica] = time.monotonic_ns() - began

    async def unload(self, replica: int) -> None:
        """Lets a model go."""
        self.client.send(Unload(replica, SECOND))
        await self.until(lambda: replica not in self.loaded)

    def send(
        self, replica: int, within: Nanoseconds | None, rows: int = 1, then: Callable[[], None] | None = None
    ) -> None:
        """Sends a request, to be answered within so long; None: class `batch`. then: called once it has ended."""
        self._numbers += 1
        number, now = self._numbers, time.monotonic_ns()
        due = None if within is None else now + within
        submit = Submit(number, replica, rows, b"", (self._input(rows),), (0,), arrived=now, objective=due)
        self._sent[number] = submit
        if then is not None:
            self._then[number] = then
        self.client.send(submit)

    def keep_busy(self, replica: int, callers: int, until: Nanoseconds, within: Nanoseconds | None = None) -> None:
        """So many callers ask again and again until that moment. One that is refused asks again a little later."""

        def ask() -> None:
            if time.monotonic_ns() < until:
                self.send(replica, within, then=again)

        def again() -> None:
            if self.calls[-1].reason == "OK":
                ask()
            else:
                asyncio.get_running_loop().call_later(0.01, ask)

        for _ in range(callers):
            ask()

    async def play(self, moments: Sequence[Nanoseconds], replica: int, within: Nanoseconds | None) -> None:
        """Sends requests at these moments from now, however long others take."""
        start = time.monotonic_ns()
        for moment in moments:
            if (wait := start + moment - time.monotonic_ns()) > 0:
                await asyncio.sleep(wait / SECOND)
            self.send(replica, within)

    async def drained(self) -> None:
        """Waits until everything has been answered."""
        await self.until(lambda: not self._sent)

    async def metered(self) -> dict[int, Used]:
        """What each replica has used, once the worker has told of everything that was answered."""
        await self.drained()
        answered: dict[int, int] = {}
        for call in self.calls:
            if call.batch is not None:
                answered[call.replica] = answered.get(call.replica, 0) + 1
        told = lambda: {each.replica: each for each in self.statistics.used} if self.statistics is not None else {}
        await self.until(
            lambda: all(
                replica not in self.loaded or ((used := told().get(replica)) is not None and used.requests >= count)
                for replica, count in answered.items()
            )
        )
        return told()

    async def until(self, holds: Callable[[], bool], timeout_s: float = _ANSWERED_S) -> None:
        """Waits until it holds. RuntimeError where the worker is lost, TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not holds():
                if self.client.lost.done():
                    raise RuntimeError(self.client.lost.result())
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 1.0)

    def _input(self, rows: int) -> TensorRef:
        if rows not in self._inputs:
            offset = self.client.inputs.allocate(rows * _ROW_BYTES)
            assert offset is not None, "the arena is full"
            np.frombuffer(self.client.inputs.view, np.float32, rows * WIDTH, offset)[:] = 0.5
            self._inputs[rows] = TensorRef(0, (rows, WIDTH), offset, rows * _ROW_BYTES)
        return self._inputs[rows]

    def _on_events(self, events: Any) -> None:
        for event in events:
            if isinstance(event, Done | Failed):
                self._end(event)
            elif isinstance(event, Loaded):
                self.loaded[event.replica] = event
            elif isinstance(event, LoadFailed):
                self._failed[event.replica] = event.message
            elif isinstance(event, Unloaded):
                self.loaded.pop(event.replica, None)
            elif isinstance(event, Statistics):
                self.statistics = event
            elif isinstance(event, Moved):
                self.moves.append(event)
        self._changed.set()

    def _end(self, event: Done | Failed) -> None:
        submit = self._sent.pop(event.call)
        reason = "OK" if isinstance(event, Done) else event.reason
        if isinstance(event, Done):
            self.client.send(Release(event.call))
        self.calls.append(
            Call(
                submit.replica, submit.arrived, submit.objective, time.monotonic_ns(), event.received, reason, event.batch
            )
        )  # fmt: skip
        then = self._then.pop(event.call, None)
        if then is not None:
            then()


@contextlib.asynccontextmanager
async def one_worker(
    device: Device,
    models: Iterable[Placed] = (),
    policy: PolicyName = "reservations",
    *,
    memory_bytes: Bytes | None = None,
    host_bytes: Bytes = 0,
) -> AsyncIterator[OneWorker]:
    """A worker with these models, stopped in the end."""
    worker = OneWorker()
    mine = os.sched_getaffinity(0)
    try:
        await worker.start(device, policy, memory_bytes, host_bytes)
        await worker.load(models)
        yield worker
    finally:
        os.sched_setaffinity(0, mine)
        if worker._client is not None:
            await worker.client.stop(1.0)
