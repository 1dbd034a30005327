"""Tenants of a mesh under load: processes that send for them, and what the mesh's books say of them.

A generator is a process of its own, so that what is measured is the mesh and not who measures. Open loops send at moments drawn
before, by Poisson, and count from when a request was due; closed loops keep so many requests outstanding. On a machine of two
cores one is the lane's and everything else shares the other.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import grpc
import numpy as np
import psutil

from services._proto.inference import grpc_service_pb2 as oip
from services._proto.inference import grpc_service_pb2_grpc as oip_grpc
from services.common.channel import connect
from services.common.status import from_rpc_error
from tests.mesh.running import RunningMesh

WIDTH = 256
BACKOFF_S, MOST_BACKOFF_S = 0.05, 0.8
"""How long a caller of a closed loop that was refused waits before it asks again: twice as long each time that it is refused once
more, give or take half. Callers that ask again at once would measure what refusals cost."""
SETTLE_S = 0.8
"""Workers tell what they have used every half second."""


@dataclass(frozen=True)
class Load:
    """What one tenant sends. rate_per_s: of an open loop; else `outstanding` callers in a closed one. objective_ms: None:
    the model's. stops_s: leaves then, counted from the begin of what is measured, and breaks off what is outstanding; None: stays."""

    tenant: str
    key: str
    model: str
    rate_per_s: float = 0.0
    outstanding: int = 0
    objective_ms: float | None = None
    deadline_s: float = 5.0
    stops_s: float | None = None


@dataclass
class Seen:
    """What became of one tenant's requests that were due while it was measured. ended_s: of each answered, since the begin of
    what is measured; latencies_s: how long it took. refused: the others, by reason; refused_s: how long that took."""

    ended_s: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    refused_s: list[float] = field(default_factory=list)

    @property
    def sent(self) -> int:
        return len(self.latencies_s) + sum(self.refused.values())

    def within(self, objective_s: float) -> int:
        """Requests answered within it."""
        return sum(took <= objective_s for took in self.latencies_s)

    def quantile_ms(self, q: float) -> float:
        """Of the answered; nan where none was."""
        return float(np.quantile(self.latencies_s, q)) * 1e3 if self.latencies_s else float("nan")


class Generator:
    """A process that sends. Use as a context; `start` and `result` once each a turn.

    began: when what is measured began, on the clock of time.monotonic, once there is a result.
    """

    def __init__(self, core: int | None) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.began = 0.0
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_generate, args=(theirs, core), daemon=True)

    def __enter__(self) -> Generator:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(None)
        self._process.join(10)

    def start(self, address: str, loads: Sequence[Load], seconds: float, *, warm_s: float, seed: int) -> None:
        """Sends for `warm_s` and then `seconds`; what is due in the latter is measured."""
        self._pipe.send((address, list(loads), seconds, warm_s, seed))

    def result(self) -> dict[str, Seen]:
        """By tenant, once it is over."""
        found = self._pipe.recv()
        if isinstance(found, str):
            raise RuntimeError(found)
        self.began, seen = found
        return seen  # type: ignore[no-any-return]


def _generate(pipe: Connection, core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    while (job := pipe.recv()) is not None:
        try:
            pipe.send(asyncio.run(_play(*job)))
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")


async def _play(
    address: str, loads: list[Load], seconds: float, warm_s: float, seed: int
) -> tuple[float, dict[str, Seen]]:
    seen = {load.tenant: Seen() for load in loads}
    async with connect(address) as channel:
        stub: Any = oip_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        begin = time.monotonic() + warm_s
        senders = [_Sender(stub, load, seen[load.tenant], begin, seconds) for load in loads]
        await asyncio.gather(*(sender.run(random.Random(f"{seed}/{sender.load.tenant}")) for sender in senders))
    return begin, seen


class _Sender:
    def __init__(self, stub: Any, load: Load, seen: Seen, begin: float, seconds: float) -> None:
        self.load, self._stub, self._seen = load, stub, seen
        self._begin = begin
        self._end = begin + (seconds if load.stops_s is None else min(seconds, load.stops_s))
        self._metadata = (("authorization", f"Bearer {load.key}"),)
        self._request = oip.ModelInferRequest(model_name=load.model)
        self._request.inputs.add(name="input", datatype="FP32", shape=[1, WIDTH])
        self._request.raw_input_contents.append(np.full(WIDTH, 0.5, np.float32).tobytes())
        if load.objective_ms is not None:
            self._request.parameters["slo_ms"].double_param = load.objective_ms

    async def run(self, chance: random.Random) -> None:
        """Until the end, and until everything is answered."""
        if self.load.rate_per_s:
            await self._open(chance)
            return
        callers = [asyncio.create_task(self._caller(chance.random())) for _ in range(self.load.outstanding)]
        if self.load.stops_s is not None:
            await asyncio.sleep(self._end - time.monotonic())
            for caller in callers:
                caller.cancel()
        await asyncio.gather(*callers, return_exceptions=self.load.stops_s is not None)

    async def _open(self, chance: random.Random) -> None:
        calls, due = [], time.monotonic()
        while (due := due + chance.expovariate(self.load.rate_per_s)) < self._end:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            calls.append(asyncio.create_task(self._call(due)))
        await asyncio.gather(*calls)

    async def _caller(self, offset: float) -> None:
        await asyncio.sleep(0.2 * offset)
        wait_s = BACKOFF_S
        while time.monotonic() < self._end:
            if await self._call(time.monotonic()):
                wait_s = BACKOFF_S
            else:
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))
                wait_s = min(2 * wait_s, MOST_BACKOFF_S)

    async def _call(self, due: float) -> bool:
        seen = self._seen
        try:
            await self._stub.ModelInfer(self._request, timeout=self.load.deadline_s, metadata=self._metadata)
        except grpc.RpcError as error:
            if due >= self._begin:
                refusal = from_rpc_error(error)
                reason = error.code().name if refusal is None else str(refusal.reason)
                seen.refused[reason] = seen.refused.get(reason, 0) + 1
                seen.refused_s.append(time.monotonic() - due)
            return False
        now = time.monotonic()
        # A closed loop is counted by when it was answered, an open one by what was asked.
        if (due if self.load.rate_per_s else now) >= self._begin and (self.load.rate_per_s or now <= self._end):
            seen.ended_s.append(now - self._begin)
            seen.latencies_s.append(now - due)
        return True


# The mesh.


def cores() -> tuple[int | None, int | None]:
    """(everything else's, the lane's); None twice where there is one core only."""
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[-1]) if len(usable) > 1 else (None, None)


def environment(**more: str) -> dict[str, str]:
    """For `running`: the lane on a core of its own."""
    lane = cores()[1]
    return more if lane is None else {"APPORTION_EXECUTOR_CORES": str(lane), **more}


def pin(mesh: RunningMesh) -> None:
    """Every thread of the mesh that is not a worker's goes where everything else is, and this process, too."""
    rest = cores()[0]
    if rest is None:
        return
    workers = {worker.pid for worker in mesh.workers()}
    for process in [*mesh.family(), psutil.Process()]:
        if process.pid not in workers:
            for thread in process.threads():
                os.sched_setaffinity(thread.id, {rest})


class Used(NamedTuple):
    """What one tenant has used so far, or in between. Its model runs one request a batch."""

    device_s: float = 0.0
    batches: float = 0.0

    def since(self, before: Used) -> Used:
        """What it has used since then."""
        return Used(self.device_s - before.device_s, self.batches - before.batches)

    @property
    def a_request_s(self) -> float:
        """Device time of one request."""
        return self.device_s / self.batches if self.batches else 0.0


def used(mesh: RunningMesh) -> dict[str, Used]:
    """By tenant, as executors count it."""
    counted: dict[str, dict[str, float]] = {}
    names = {"apportion_executor_device_seconds_total": "device_s", "apportion_executor_batches_total": "batches"}
    for name, labels, value in mesh.metrics(mesh.addresses["executor_metrics"]):
        if name in names:
            mine = counted.setdefault(labels["tenant"], {})
            mine[names[name]] = mine.get(names[name], 0.0) + value
    return {tenant: Used(**mine) for tenant, mine in counted.items()}


class Account(NamedTuple):
    """What one tenant has used of the lanes so far, in seconds."""

    guaranteed_s: float = 0.0
    surplus_s: float = 0.0
    gap_s: float = 0.0

    @property
    def device_s(self) -> float:
        """In all."""
        return sum(self)

    def since(self, before: Account) -> Account:
        """What it has used since then."""
        return Account(*(after - earlier for after, earlier in zip(self, before, strict=True)))


def accounts(mesh: RunningMesh) -> dict[str, Account]:
    """By tenant. Workers tell all of it at once, every half second."""
    found: dict[str, dict[str, float]] = {}
    for name, labels, value in mesh.metrics(mesh.addresses["executor_metrics"]):
        if name == "apportion_executor_account_seconds_total":
            mine = found.setdefault(labels["tenant"], {})
            mine[f"{labels['account']}_s"] = mine.get(f"{labels['account']}_s", 0.0) + value
    return {tenant: Account(**mine) for tenant, mine in found.items()}


def judged(checks: Mapping[str, bool]) -> int:
    """Prints what holds and what does not; the exit status."""
    print()
    for what, holds in checks.items():
        print(f"  {'holds ' if holds else 'FAILS '} {what}")
    return 0 if all(checks.values()) else 1


def interval(values: Sequence[float], digits: int = 2) -> str:
    """The median, and from where to where all of them go."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f} … {max(values):.{digits}f}]"
