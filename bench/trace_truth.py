"""Do traces name the stage that was really to blame? Delays are put into every stage, under load, and the traces are asked.

    python -m bench.trace_truth [--each 60] [--rounds 3] [--json FILE]

Victims have an objective of 50 ms and are, one after another, held up for about 120 ms in one known way:

    transport   the line between frontend and executor lets nothing pass for so long: it goes through this process
    queue       another model of the same tenant has the lane, in one segment that cannot be interrupted
    batch       an earlier request of the same model has it
    neighbour   another tenant's model has it
    compute     the model itself takes that long this time
    copy        the worker takes so long to put the inputs together (the executor's setting for tests, slow_copies_ms)
    cold start  the worker has been killed and the model is not loaded again yet
    refused     the deadline is so short that the arbiter knows it cannot be met, or the queue is full

Beside them a tenant without objectives keeps the lane busy. How long each was held up is taken by this process' clock: where the
rest of its time is more than half of that, something else held it up as well, which on a machine that others use happens, and what
its trace should say is not known; these are counted apart. Each violated victim is then read back through the query API, and
`services.common.blame` says what is to blame. Of every kept trace: how much time no span explains, those apart that say themselves
what is missing, since their worker died. Ends with a line of JSON, and
with status 1 where fewer than 99 % are right, or the p99 of what is unaccounted exceeds 100 µs and 1 % of the request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

import services.common.attributes as names
from bench.models import elementwise
from bench.tracing import Asked, Callers, Line, kept, quantile, server_spans
from services.common.blame import Blame, blame
from services.tracestore.core.spans import SpanView
from tests.mesh.calling import request
from tests.mesh.running import RunningMesh, running
from tests.mesh.tiny import slow

OBJECTIVE_MS = 50.0
DELAY_S = 0.12
MOST_BESIDE = 0.5
HEAD_START_S = 0.015
LOAD_PER_S = 60.0
REST_S = 0.02
SETTLE_S = 3.0
SHOWN = 10
RELOAD_S = 60.0
VICTIM, NEIGHBOUR, LOAD = "victim", "neighbour", "load"
RIGHT, UNACCOUNTED_US, UNACCOUNTED_PART = 0.99, 100.0, 0.01
QUICK = np.ones((1, 16), np.float32)


class Held(NamedTuple):
    """A request and how long it was held up, by this process' clock; None: not for long, it was refused."""

    asked: Asked
    seconds: float | None

    @property
    def disturbed(self) -> bool:
        """Something else held it up, too."""
        if self.seconds is None:
            return False
        return self.asked.latency_s - self.seconds > MOST_BESIDE * self.seconds


@dataclass
class Found:
    """What came of it. confused: what it was and what the trace said, by how often. unaccounted: µs, and of how long a request.

    lossy: traces that say themselves what is missing, since a worker died; these are not in `unaccounted`.
    """

    violations: Counter[str] = field(default_factory=Counter)
    disturbed: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    confused: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)
    unaccounted: list[tuple[float, float]] = field(default_factory=list)
    worst: tuple[float, str] = (0.0, "")
    lossy: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def share_right(self) -> float:
        return sum(self.right.values()) / max(1, sum(self.violations.values()))

    def over(self) -> float:
        """The p99 of what is unaccounted, as a multiple of what is allowed: 100 µs or 1 %, whichever is more."""
        return quantile([us / max(UNACCOUNTED_US, UNACCOUNTED_PART * took) for us, took in self.unaccounted], 0.99)


class Truth:
    """A mesh whose requests can be held up. delay_turns: of the slow model, which take about DELAY_S."""

    def __init__(self, mesh: RunningMesh, line: Line) -> None:
        self.mesh, self.line = mesh, line
        address = mesh.addresses["frontend"]
        self.victim, self.neighbour, self.load = (
            Callers(address, mesh.metadata(tenant)) for tenant in (VICTIM, NEIGHBOUR, LOAD)
        )
        self.held: dict[str, list[Held]] = {}
        self.delay_turns = 1000
        self.kinds: dict[str, Callable[[], Awaitable[list[Held]]]] = {
            names.CAUSE_TRANSPORT: self.transport,
            names.CAUSE_QUEUE: lambda: self.behind(self.victim, "blocker", "quick"),
            names.CAUSE_BATCH: lambda: self.behind(self.victim, "slow", "slow"),
            names.CAUSE_NEIGHBOUR: lambda: self.behind(self.neighbour, "slow", "quick"),
            names.CAUSE_COMPUTE: self.compute,
            names.CAUSE_COPY: self.copy,
            names.CAUSE_REFUSED: self.refused,
        }

    async def calibrate(self) -> None:
        """Finds out how many turns take DELAY_S here, at the least."""
        asked = [await self.victim.ask(turns("slow", self.delay_turns)) for _ in range(5)]
        assert all(each.code == "OK" for each in asked), asked
        fastest_s = min(each.latency_s for each in asked)
        self.delay_turns = max(100, int(self.delay_turns * DELAY_S / fastest_s))

    async def run(self, each: int, rounds: int) -> None:
        """So many victims of every kind, in rounds; a cold start a round."""
        for number in range(rounds):
            for kind, hold_up in self.kinds.items():
                for _ in range(each // rounds):
                    self.held.setdefault(kind, []).extend(await hold_up())
                    await asyncio.sleep(REST_S)
            self.held.setdefault(names.CAUSE_COLD_START, []).extend(await self.cold())
            print(f"round {number + 1} of {rounds} done", flush=True)

    async def transport(self) -> list[Held]:
        """Nothing passes, on the way there and back."""
        held = asyncio.ensure_future(self.line.hold(DELAY_S))
        await asyncio.sleep(0)
        asked = await self.victim.ask(quick("quick"))
        await held
        return [Held(asked, DELAY_S)]

    async def behind(self, whose: Callers, ahead: str, model: str) -> list[Held]:
        """A victim that comes while something else has the lane."""
        first = asyncio.ensure_future(whose.ask(turns(ahead, self.delay_turns)))
        ended_s: list[float] = []
        first.add_done_callback(lambda _: ended_s.append(time.perf_counter()))
        await asyncio.sleep(HEAD_START_S)
        begun_s = time.perf_counter()
        asked = await self.victim.ask(turns(model, 20, OBJECTIVE_MS) if model == "slow" else quick(model))
        await first
        await asyncio.sleep(0)
        return [Held(asked, max(0.0, ended_s[0] - begun_s))]

    async def compute(self) -> list[Held]:
        """One that takes long itself, and a few that do not, so that it is the exception."""
        usual = [await self.victim.ask(turns("slow", 20, OBJECTIVE_MS)) for _ in range(3)]
        assert all(each.code == "OK" for each in usual), usual
        return [Held(await self.victim.ask(turns("slow", self.delay_turns, OBJECTIVE_MS)), DELAY_S)]

    async def copy(self) -> list[Held]:
        return [Held(await self.victim.ask(quick("copied")), DELAY_S)]

    async def refused(self) -> list[Held]:
        """Its model's queue is full: one runs, one waits, and a third may not. One that came too late for that is not counted."""
        first = asyncio.ensure_future(self.victim.ask(turns("narrow", self.delay_turns)))
        await asyncio.sleep(HEAD_START_S)
        second = asyncio.ensure_future(self.victim.ask(turns("narrow", 20)))
        await asyncio.sleep(HEAD_START_S)
        asked = await self.victim.ask(turns("narrow", 20, OBJECTIVE_MS))
        await asyncio.gather(first, second)
        return [Held(asked, None)] if asked.code == "RESOURCE_EXHAUSTED" else []

    async def cold(self) -> list[Held]:
        """The worker is killed; asked again and again until its models are back. Those that it took with it are not counted."""
        for worker in self.mesh.workers():
            with suppress(psutil.Error):
                os.kill(worker.pid, signal.SIGKILL)
        cold: list[Held] = []
        ends = time.monotonic() + RELOAD_S
        while time.monotonic() < ends:
            asked = await self.victim.ask(quick("quick"))
            if asked.code == "OK":
                break
            if asked.outcome == "MODEL_NOT_READY":
                cold.append(Held(asked, None))
            await asyncio.sleep(REST_S)
        await self._until_all_serve()
        return cold

    async def _until_all_serve(self) -> None:
        checks = [
            (self.victim, quick("copied")), (self.victim, turns("slow", 20)), (self.victim, turns("blocker", 20)),
            (self.victim, turns("narrow", 20)), (self.neighbour, turns("slow", 20)), (self.load, quick("load")),
        ]  # fmt: skip
        ends = time.monotonic() + RELOAD_S
        for callers, made in checks:
            while (await callers.ask(made)).code != "OK":
                assert time.monotonic() < ends, "the models did not come back"
                await asyncio.sleep(0.1)

    async def busy(self) -> None:
        """The load: requests at a fixed rate without an objective, until cancelled."""
        sent: set[asyncio.Task[Asked]] = set()
        try:
            while True:
                task = asyncio.ensure_future(self.load.ask(request("load", {"x": QUICK})))
                sent.add(task)
                task.add_done_callback(sent.discard)
                await asyncio.sleep(1 / LOAD_PER_S)
        finally:
            await asyncio.gather(*sent, return_exceptions=True)

    async def close(self) -> None:
        for each in (self.victim, self.neighbour, self.load):
            await each.close()


def quick(model: str) -> Any:
    return request(model, {"x": QUICK}, slo_ms=OBJECTIVE_MS)


def turns(model: str, count: int, slo_ms: float | None = None) -> Any:
    made = request(model, {"turns": np.array([count], np.int64)})
    if slo_ms is not None:
        made.parameters["slo_ms"].double_param = slo_ms
    return made


def prepare(mesh: RunningMesh, folder: Path) -> None:
    """Three tenants and their models."""
    for tenant in (VICTIM, NEIGHBOUR, LOAD):
        mesh.create_tenant(tenant)
    looping, identity = slow(folder / "slow.onnx"), elementwise(folder / "identity.onnx", "Identity")
    narrow = folder / "narrow"
    (narrow / "1").mkdir(parents=True)
    (narrow / "1" / "model.onnx").write_bytes(looping.read_bytes())
    (narrow / "config.pbtxt").write_text(NARROW)
    for name, path in (("quick", identity), ("copied", identity), ("slow", looping), ("blocker", looping)):
        mesh.push(name, path, tenant=VICTIM)
    mesh.push("narrow", narrow, tenant=VICTIM)
    mesh.push("slow", looping, tenant=NEIGHBOUR)
    mesh.push("load", identity, tenant=LOAD)


NARROW = """
platform: "onnxruntime_onnx"
max_batch_size: 0
dynamic_batching { default_queue_policy { max_queue_size: 1 } }
"""


def environment(advertised: str) -> dict[str, str]:
    """What the mesh is told: frontends reach the executor through the line; one model's copies are slow; one lane."""
    slow_copies = {f"{VICTIM}/copied": DELAY_S * 1000}
    return {
        "APPORTION_EXECUTOR_ADVERTISE": advertised,
        "APPORTION_EXECUTOR_SLOW_COPIES_MS": json.dumps(slow_copies),
        "APPORTION_EXECUTOR_CORES": str(max(os.sched_getaffinity(0))),
    }


def free_address() -> str:
    """An address that nobody listens on at this moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


async def measured(mesh: RunningMesh, line: Line, each: int, rounds: int) -> tuple[Found, dict[str, int]]:
    """Holds requests up, then asks their traces; and how many were held up, by kind."""
    truth = Truth(mesh, line)
    since_ns = time.time_ns()
    await truth.calibrate()
    busy = asyncio.ensure_future(truth.busy())
    try:
        await truth.run(each, rounds)
    finally:
        busy.cancel()
        await asyncio.gather(busy, return_exceptions=True)
        await truth.close()
    await asyncio.sleep(SETTLE_S)
    traces = await kept(mesh.addresses["query"], VICTIM, since_ns)
    return compared(truth.held, traces), {kind: len(members) for kind, members in truth.held.items()}


def compared(held: dict[str, list[Held]], traces: dict[str, list[SpanView]]) -> Found:
    """What traces say of requests whose kind is known."""
    found = Found()
    for kind, members in held.items():
        for each, disturbed in ((member.asked, member.disturbed) for member in members):
            if not each.violated:
                continue
            if disturbed:
                found.disturbed[kind] += 1
                continue
            found.violations[kind] += 1
            verdict = judged(traces.get(each.trace_id, []))
            if verdict is None:
                found.missing.append(each.trace_id)
            elif verdict.cause == kind:
                found.right[kind] += 1
            else:
                found.confused[f"{kind}, told {verdict.cause}"] += 1
                (server,) = server_spans(traces[each.trace_id])
                found.examples.append(f"{kind}: {described(server, traces[each.trace_id])}")
    for trace in traces.values():
        for span in server_spans(trace):
            verdict = blame(span, trace)
            if verdict.missing:
                found.lossy += 1
                continue
            unaccounted_us = verdict.unaccounted_ns / 1e3
            found.unaccounted.append((unaccounted_us, span.duration_ns / 1e3))
            found.worst = max(found.worst, (unaccounted_us, described(span, trace)))
    return found


def described(span: SpanView, trace: list[SpanView]) -> str:
    """One request in a line."""
    stages = ", ".join(f"{each.name} {each.duration_ns / 1e3:.0f}{_inside(each)}" for each in trace if each is not span)
    outcome = span.attributes.get(names.SLO_OUTCOME)
    return f"{span.trace_id}: {span.attributes.get(names.MODEL_NAME)}, {outcome}, {span.duration_ns / 1e3:.0f} µs: {stages}"


def _inside(span: SpanView) -> str:
    """What a stage says of its own time."""
    told = (names.SLO_COPY_US, names.SLO_NEIGHBOUR_US, names.BATCH_EXPECTED_US, names.BATCH_PREEMPTED_US)
    inside = [f"{name} {span.attributes[name]}" for name in told if span.attributes.get(name)]
    return f" ({', '.join(inside)})" if inside else ""


def judged(trace: list[SpanView]) -> Blame | None:
    """What is to blame, by a trace that was read back; None: it has no verdict."""
    servers = server_spans(trace)
    return blame(servers[0], trace) if servers else None


def show(found: Found, sent: dict[str, int]) -> dict[str, Any]:
    """Prints a table; what the last line says."""
    print(f"\n{'held up in':<12} {'requests':>9} {'disturbed':>9} {'violated':>9} {'right':>7}")
    for kind, count in sent.items():
        print(f"{kind:<12} {count:>9} {found.disturbed[kind]:>9} {found.violations[kind]:>9} {found.right[kind]:>7}")
    for what, count in sorted(found.confused.items()):
        print(f"  wrong: {what}: {count}")
    for example in found.examples[:SHOWN]:
        print(f"    {example}")
    us = [each for each, _ in found.unaccounted]
    told = {
        "violations": sum(found.violations.values()),
        "right": round(found.share_right, 5),
        "by_kind": {kind: [found.right[kind], found.violations[kind]] for kind in sent},
        "confused": dict(found.confused),
        "disturbed": sum(found.disturbed.values()),
        "without_trace": len(found.missing),
        "traces": len(us),
        "traces_that_say_what_is_missing": found.lossy,
        "unaccounted_us": {"p50": round(quantile(us, 0.5), 1), "p99": round(quantile(us, 0.99), 1)},
        "unaccounted_p99_of_allowed": round(found.over(), 3),
    }
    print(
        f"\n{told['violations']} violations, {found.share_right:.2%} named right, {len(found.missing)} without a trace\n"
        f"unaccounted in {len(us)} traces: p50 {told['unaccounted_us']['p50']} µs, p99 {told['unaccounted_us']['p99']} µs; "
        f"{told['unaccounted_p99_of_allowed']} of what is allowed; the most is in\n  {found.worst[1]}"
    )
    return told


async def through(mesh: RunningMesh, executor: str, advertised: str, each: int, rounds: int) -> tuple[Found, Any]:
    """`measured`, with the line between frontend and executor."""
    line = Line(executor)
    await line.start(advertised)
    try:
        await asyncio.to_thread(prepare, mesh, mesh.data)
        return await measured(mesh, line, each, rounds)
    finally:
        await line.close()


def run(data: Path, each: int, rounds: int) -> tuple[Found, dict[str, int]]:
    """Starts a mesh for it, and ends it."""
    executor, advertised = free_address(), free_address()
    with running(data, "--executor", executor, environment=environment(advertised)) as mesh:
        return asyncio.run(through(mesh, executor, advertised, each, rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=60, help="requests of each kind")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found, sent = run(Path(folder) / "data", chosen.each, chosen.rounds)
    told = show(found, sent)
    if chosen.json:
        chosen.json.write_text(json.dumps(told, indent=2))
    print(json.dumps(told))
    kinds = all(found.violations[kind] for kind in sent)
    sys.exit(0 if kinds and not found.missing and found.share_right >= RIGHT and found.over() <= 1 else 1)


if __name__ == "__main__":
    main()
