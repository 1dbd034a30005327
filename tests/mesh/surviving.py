"""Steady traffic while parts of a mesh die, and what became of every request: for tests and for the benchmark."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services._proto.apportion.v1 import scheduler_pb2, scheduler_pb2_grpc
from services._proto.inference import grpc_service_pb2_grpc as stubs
from tests.mesh.calling import request
from tests.mesh.running import RunningMesh

DEADLINE_S = 5.0
SLACK_S = 0.25
"""What the caller's own event loop may add to what it measures."""
AFTER_KILL_S = 1.0
"""The time after a kill in which requests may fail, where there are two of everything."""
RETURN_S = 60.0
VICTIMS = ("worker", "executor", "scheduler", "registry", "frontend")
OK = "OK"
CHANNEL = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


@dataclass(frozen=True)
class Answer:
    """One request. at_s: when it was sent, on the monotonic clock; code: how it ended."""

    at_s: float
    took_s: float
    code: str
    message: str = ""


@dataclass
class Traffic:
    """Sends requests at a fixed rate, whatever becomes of them, over several connections. Use as a context."""

    address: str
    model: str
    rate: float = 50.0
    connections: int = 4
    metadata: tuple[tuple[str, str], ...] = ()
    answers: list[Answer] = field(default_factory=list)

    async def __aenter__(self) -> Traffic:
        self._channels = [grpc.aio.insecure_channel(self.address, options=CHANNEL) for _ in range(self.connections)]
        self._stubs = [stubs.GRPCInferenceServiceStub(channel) for channel in self._channels]
        self._sent: set[asyncio.Task[None]] = set()
        self._sender = asyncio.create_task(self._send())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._sender.cancel()
        await asyncio.gather(self._sender, *self._sent, return_exceptions=True)
        for channel in self._channels:
            await channel.close()

    async def _send(self) -> None:
        number, began = 0, time.monotonic()
        while True:
            await asyncio.sleep(max(0.0, began + number / self.rate - time.monotonic()))
            task = asyncio.create_task(self._ask(number))
            self._sent.add(task)
            task.add_done_callback(self._sent.discard)
            number += 1

    async def _ask(self, number: int) -> None:
        asked = request(self.model, {"x": np.full((1, 4), number, np.float32)})
        at_s = time.monotonic()
        code, message = OK, ""
        try:
            answer = await self._stubs[number % self.connections].ModelInfer(
                asked, timeout=DEADLINE_S, metadata=self.metadata
            )
            if np.frombuffer(answer.raw_output_contents[0], np.float32)[0] != number:
                code = "WRONG"
        except grpc.RpcError as error:
            code, message = error.code().name, error.details() or ""
        self.answers.append(Answer(at_s, time.monotonic() - at_s, code, message))

    async def all_well(self, count: int = 20, *, timeout_s: float = RETURN_S) -> None:
        """Waits until that many requests, sent from now on, were answered one after another."""
        start, ends = time.monotonic(), time.monotonic() + timeout_s
        while True:
            since = [each for each in self.answers if each.at_s >= start][-count:]
            if len(since) == count and all(each.code == OK for each in since):
                return
            assert time.monotonic() < ends, f"not well after {timeout_s} s: {Counter(each.code for each in since)}"
            await asyncio.sleep(0.05)


@dataclass
class Story:
    """What became of the requests of one part of a run. kills_s: when something was killed."""

    name: str
    answers: list[Answer]
    kills_s: list[float] = field(default_factory=list)
    returns_s: list[float] = field(default_factory=list)

    @property
    def codes(self) -> Counter[str]:
        return Counter(each.code for each in self.answers)

    @property
    def broken(self) -> list[Answer]:
        """Requests that were not answered within their deadline, with success or UNAVAILABLE."""
        return [
            each for each in self.answers if each.code not in (OK, "UNAVAILABLE") or each.took_s > DEADLINE_S + SLACK_S
        ]

    @property
    def outside(self) -> list[Answer]:
        """Requests that were not on their way at a kill, nor sent within the second after it."""
        return [
            each
            for each in self.answers
            if not any(each.at_s - AFTER_KILL_S < kill <= each.at_s + each.took_s for kill in self.kills_s)
        ]

    @property
    def outside_ratio(self) -> float:
        """The part of those that succeeded."""
        outside = self.outside
        return sum(each.code == OK for each in outside) / max(1, len(outside))

    @property
    def longest_gap_s(self) -> float:
        """The longest time after a kill until its last failure."""
        ends = [*self.kills_s, float("inf")][1:]
        gaps = [
            max(
                (
                    each.at_s - kill
                    for each in self.answers
                    if kill <= each.at_s < end - each.took_s and each.code != OK
                ),
                default=0.0,
            )
            for kill, end in zip(self.kills_s, ends, strict=True)
        ]
        return max(gaps, default=0.0)

    def told(self) -> str:
        """One line of a table."""
        others = {code: count for code, count in self.codes.items() if code not in (OK, "UNAVAILABLE")}
        back = sorted(self.returns_s)
        return (
            f"{self.name:<22} {len(self.kills_s):>5} {len(self.answers):>8} {self.codes[OK]:>8} "
            f"{self.codes['UNAVAILABLE']:>11} {len(self.broken):>6} {self.outside_ratio:>9.2%} {self.longest_gap_s:>7.2f} s "
            f"{back[len(back) // 2] if back else 0:>6.1f} s {back[-1] if back else 0:>6.1f} s"
            + (f"  {others}" if others else "")
        )


HEADER = (
    f"{'':<22} {'kills':>5} {'requests':>8} {'OK':>8} {'UNAVAILABLE':>11} {'broken':>6} {'outside 1s':>9} {'gap':>9} "
    f"{'back p50':>8} {'max':>8}"
)


def process(mesh: RunningMesh, victim: str, turn: int = 0) -> psutil.Process:
    """The victim's process; of several of a kind, another one each turn."""
    kind = "executor" if victim == "worker" else victim
    names = sorted(name for name in mesh.pids() if name.partition("-")[0] == kind)
    found = psutil.Process(mesh.pids()[names[turn % len(names)]])
    if victim == "worker":
        return next(one for one in found.children(recursive=True) if "gpu_sharing.worker" in one.cmdline())
    return found


async def killed(
    mesh: RunningMesh, traffic: Traffic, victim: str, times: int, *, replicas: int, steady_s: float = 1.0
) -> Story:
    """Kills the victim so many times under load, each time waiting until all is as it was, and tells what happened."""
    first, story = len(traffic.answers), Story(victim, [])
    for turn in range(times):
        found = process(mesh, victim, turn)
        before = pids_of(mesh, victim)
        story.kills_s.append(time.monotonic())
        os.kill(found.pid, signal.SIGKILL)
        await until(partial(_replaced, mesh, victim, before, found.pid), what=f"the return of {victim}")
        await until_whole(mesh, replicas)
        await traffic.all_well()
        story.returns_s.append(time.monotonic() - story.kills_s[-1])
        await asyncio.sleep(steady_s)
    story.answers = traffic.answers[first:]
    return story


async def stuck(mesh: RunningMesh, traffic: Traffic, *, replicas: int) -> Story:
    """Stops a worker as a debugger would, so that it lives and does nothing, until the watchdog has replaced it."""
    first, story = len(traffic.answers), Story("worker stuck", [])
    found, before = process(mesh, "worker"), pids_of(mesh, "worker")
    story.kills_s.append(time.monotonic())
    found.suspend()
    await until(lambda: _replaced(mesh, "worker", before, found.pid), what="the end of the worker that hangs")
    await until_whole(mesh, replicas)
    await traffic.all_well()
    story.returns_s.append(time.monotonic() - story.kills_s[0])
    story.answers = traffic.answers[first:]
    return story


async def restarted(mesh: RunningMesh, traffic: Traffic, *, replicas: int, steady_s: float = 1.0) -> Story:
    """Asks every process of the mesh to stop, one after another, each time waiting until all is as it was."""
    first, story = len(traffic.answers), Story("rolling restart", [])
    for name, pid in sorted(mesh.pids().items()):
        begun = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        await until(partial(_another, mesh, name, pid), what=f"the restart of {name}")
        await until_whole(mesh, replicas)
        await traffic.all_well(timeout_s=RETURN_S)
        story.returns_s.append(time.monotonic() - begun)
        await asyncio.sleep(steady_s)
    story.answers = traffic.answers[first:]
    return story


async def without_control(mesh: RunningMesh, traffic: Traffic, *, replicas: int, seconds: float) -> Story:
    """Scheduler and registry both dead for a while, and nobody there to start them again."""
    first, story = len(traffic.answers), Story("no control plane", [])
    up, before = psutil.Process(mesh.process.pid), mesh.pids()
    up.suspend()
    try:
        story.kills_s.append(time.monotonic())
        for name in ("scheduler", "registry"):
            os.kill(before[name], signal.SIGKILL)
        await asyncio.sleep(seconds)
        story.answers = traffic.answers[first:]
    finally:
        up.resume()
    await until(
        lambda: _replaced(mesh, "registry", {before["registry"]}, before["registry"]), what="the registry's return"
    )
    await until_whole(mesh, replicas)
    await traffic.all_well()
    story.returns_s.append(time.monotonic() - story.kills_s[0] - seconds)
    return story


def pids_of(mesh: RunningMesh, victim: str) -> set[int]:
    """Every process of the victim's kind."""
    if victim == "worker":
        executors = [psutil.Process(pid) for name, pid in mesh.pids().items() if name.startswith("executor")]
        return {
            one.pid
            for executor in executors
            for one in executor.children(recursive=True)
            if "gpu_sharing.worker" in one.cmdline()
        }
    return {pid for name, pid in mesh.pids().items() if name.partition("-")[0] == victim}


def _replaced(mesh: RunningMesh, victim: str, before: set[int], dead: int) -> bool:
    try:
        now = pids_of(mesh, victim)
    except psutil.NoSuchProcess:
        return False
    return dead not in now and len(now) == len(before)


def _another(mesh: RunningMesh, name: str, pid: int) -> bool:
    return mesh.pids().get(name) != pid


async def until(holds: Callable[[], Any], *, what: str, timeout_s: float = RETURN_S) -> None:
    """Waits until something holds, the traffic going on."""
    ends = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < ends, f"{what} took longer than {timeout_s} s"
        await asyncio.sleep(0.05)


async def until_whole(mesh: RunningMesh, replicas: int, *, timeout_s: float = RETURN_S) -> None:
    """Waits until every service says that it serves, and so many replicas do."""
    ends, why = time.monotonic() + timeout_s, "?"
    while True:
        try:
            why = await _missing(mesh, replicas)
        except grpc.RpcError as error:
            why = f"{error.code().name}: {error.details()}"
        if not why:
            return
        assert time.monotonic() < ends, f"not whole after {timeout_s} s: {why}"
        await asyncio.sleep(0.1)


async def _missing(mesh: RunningMesh, replicas: int) -> str:
    for name, address in mesh.addresses.items():
        if name.partition("-")[0] in ("frontend", "registry", "scheduler", "executor"):
            async with grpc.aio.insecure_channel(address, options=CHANNEL) as channel:
                answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
                if answer.status != health_pb2.HealthCheckResponse.SERVING:
                    return f"{name} does not serve"
    async with mesh.channel("scheduler") as channel:
        stub: Any = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        fleet = await stub.GetFleet(scheduler_pb2.GetFleetRequest(), timeout=2)
    ready = sum(
        replica.state == scheduler_pb2.REPLICA_STATE_READY
        for executor in fleet.executors
        if executor.attached
        for replica in executor.report.replicas
    )
    return "" if ready >= replicas else f"{ready} of {replicas} replicas are ready"
