"""Are violations and kept traces the same? Many requests, few of them sampled, one in twenty in violation; one by one.

    python -m bench.trace_match [--requests 50000] [--rate 600] [--json FILE]

Every request is a trace of its own whose id the caller knows, and is told by the frontend what it took and the verdict. Who breaks
its promise is arranged, so that it is one in twenty however fast the machine is:

    usual       94 in 100: a minute, which none of them takes
    impossible   2 in 100: 50 µs, which nobody could meet
    held         2 in 100: 4 ms, of a model whose inputs take 5 ms longer to be put together (slow_copies_ms, for tests alone)
    near         2 in 100: an objective that follows what they take, up by a twentieth after each violation and down after each
                 that was in time, so that half of them miss it, by little: some are late for their caller and in time here

Never more than so many are on their way at once: on a slow machine the rate falls, and nothing piles up. Afterwards, of three sources:

    counted    the frontend's counter of violations
    told       requests whose caller was told of a violation
    kept       traces in the store whose server span bears one, recomputed from its own timestamps

The three must match one to one, each kept trace must be whole (every stage of both services) and no span may lack its parent. The
caller's own verdict, by its own clock, may differ only where the way between caller and frontend explains it: where the frontend's
time is on the other side of the objective, which are counted. Ends with a line of JSON, and with status 1 where anything differs, or
where violators are not one in twenty, give or take a half in a hundred.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import services.common.attributes as names
from bench.models import elementwise
from bench.tracing import (
    EXECUTOR_STAGES,
    FRONTEND_STAGES,
    Asked,
    Callers,
    kept,
    orphans,
    quantile,
    server_spans,
)
from services.tracestore.core.spans import SpanView
from tests.mesh.calling import request
from tests.mesh.running import RunningMesh, running

REFUSED_STAGES = frozenset({names.STAGE_DECODE})
"""What an executor tells at least of a request that it refused."""
TENANT, MODEL, HELD_MODEL = "matched", "identity", "held"
SAMPLE = 0.01
USUAL, IMPOSSIBLE, HELD, NEAR = "usual", "impossible", "held", "near"
EVERY = 50
PLACES = {0: IMPOSSIBLE, EVERY // 4: NEAR, EVERY // 2: HELD}
"""Of every so many requests, which are not usual."""
USUAL_MS, IMPOSSIBLE_MS, HELD_MS, HOLD_MS = 60_000.0, 0.05, 4.0, 5.0
VIOLATORS, GIVE_OR_TAKE = 0.05, 0.005
WARM = 3_000
"""Requests before it begins, in which the near ones' objective finds its place."""
MOST_AT_ONCE = 64
SETTLE_S = 4.0
VALUES = np.ones((1, 16), np.float32)


@dataclass
class Sent:
    """One request, which of the four it is, and its objective."""

    asked: Asked
    objective_us: float
    kind: str

    @property
    def late_for_caller(self) -> bool:
        return self.asked.latency_s * 1e6 > self.objective_us


@dataclass
class Matched:
    """The comparison. violated: of each kind. wrong: what does not match, by what it is, with an example each."""

    counted: int
    told: int
    kept: int
    sampled: int
    within: int
    gap_explains: int
    gaps_us: list[float]
    violated: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def amiss(self, what: str, example: object) -> None:
        self.wrong[what] += 1
        self.examples.setdefault(what, str(example))


class Near:
    """An objective that half of the requests miss: whatever they take, it follows, and goes up as often as down."""

    STEP, LEAST_MS, MOST_MS = 1.05, 0.1, 10_000.0

    def __init__(self) -> None:
        self.slo_ms = 5.0

    def judged(self, violated: bool) -> None:
        """The next one's is longer after a violation, else shorter."""
        moved = self.slo_ms * self.STEP if violated else self.slo_ms / self.STEP
        self.slo_ms = min(self.MOST_MS, max(self.LEAST_MS, moved))


class Load:
    """Requests at a fixed rate, or as fast as they are answered."""

    def __init__(self, callers: Callers, rate: float) -> None:
        self._callers, self._rate, self._near = callers, rate, Near()
        self._room = asyncio.Semaphore(MOST_AT_ONCE)

    async def run(self, count: int, every: int = EVERY) -> list[Sent]:
        """So many, of which one in `every` is each of those that are not usual."""
        sent: list[Sent] = []
        begun, tasks = time.perf_counter(), set[asyncio.Task[None]]()
        for number in range(count):
            wait_s = begun + number / self._rate - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            await self._room.acquire()
            kind = PLACES.get(number % every, USUAL)
            task = asyncio.ensure_future(self._one(kind, sent))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        return sent

    async def _one(self, kind: str, sent: list[Sent]) -> None:
        slo_ms = {USUAL: USUAL_MS, IMPOSSIBLE: IMPOSSIBLE_MS, HELD: HELD_MS, NEAR: round(self._near.slo_ms, 2)}[kind]
        model = HELD_MODEL if kind == HELD else MODEL
        try:
            asked = await self._callers.ask(request(model, {"x": VALUES}, slo_ms=slo_ms))
        finally:
            self._room.release()
        sent.append(Sent(asked, slo_ms * 1e3, kind))
        if kind == NEAR and asked.violated is not None:
            self._near.judged(asked.violated)


async def measured(mesh: RunningMesh, count: int, rate: float, warm: int = WARM) -> tuple[Matched, dict[str, Any]]:
    """Loads the mesh and compares."""
    callers = Callers(mesh.addresses["frontend"], mesh.metadata(TENANT), connections=4)
    try:
        load = Load(callers, rate)
        await load.run(warm, EVERY // 2 + 1)
        await asyncio.sleep(1.0)
        before, since_ns = violations(mesh), time.time_ns()
        begun = time.monotonic()
        sent = await load.run(count)
        took_s = time.monotonic() - begun
    finally:
        await callers.close()
    await asyncio.sleep(SETTLE_S)
    counted = int(violations(mesh) - before)
    traces = await kept(mesh.addresses["query"], TENANT, since_ns)
    lost = {where: spans_lost(mesh, where) for where in ("metrics", "executor_metrics")}
    facts = {
        "requests": len(sent),
        "per_second": round(len(sent) / took_s),
        "spans_lost": lost,
    }
    return compared(sent, traces, counted), facts


def violations(mesh: RunningMesh) -> float:
    return mesh.total("apportion_frontend_violations_total", tenant=TENANT)


def spans_lost(mesh: RunningMesh, where: str) -> float:
    """Spans that one process could not get rid of, by its own count."""
    return mesh.total("apportion_telemetry_spans_total", mesh.addresses[where], outcome="dropped")


def compared(sent: list[Sent], traces: dict[str, list[SpanView]], counted: int) -> Matched:
    """Three sources, one by one."""
    by_id = {each.asked.trace_id: each for each in sent}
    told = {trace_id for trace_id, each in by_id.items() if each.asked.violated}
    verdicts = {trace_id: server_spans(trace) for trace_id, trace in traces.items()}
    violated = {
        i for i, spans in verdicts.items() if any(span.attributes[names.SLO_VIOLATED] is True for span in spans)
    }
    matched = Matched(counted, len(told), len(violated), len(traces) - len(violated), 0, 0, [])
    for trace_id in told - violated:
        matched.amiss("told of a violation, and no such trace", by_id[trace_id])
    for trace_id in violated - told:
        matched.amiss("a violator's trace whose caller was told of none", by_id.get(trace_id, trace_id))
    if not counted == len(told) == len(violated):
        matched.amiss("counters", (counted, len(told), len(violated)))
    for trace_id, trace in traces.items():
        _whole(matched, trace_id, trace, verdicts[trace_id], by_id.get(trace_id))
    for each in sent:
        matched.violated[each.kind] += bool(each.asked.violated)
        _callers_word(matched, each)
    return matched


def _whole(matched: Matched, trace_id: str, trace: list[SpanView], servers: list[SpanView], sent: Sent | None) -> None:
    """One kept trace: whole, without orphans, its verdict the one that its timestamps give, its time the one that was told."""
    if len(servers) != 1 or sent is None:
        matched.amiss("not one request of ours", trace_id)
        return
    stages = {str(span.attributes.get(names.SLO_STAGE)) for span in trace}
    due = FRONTEND_STAGES | (EXECUTOR_STAGES if sent.asked.code == "OK" else REFUSED_STAGES)
    if not stages >= due:
        matched.amiss("a stage is missing", (trace_id, sent.asked, sorted(due - stages)))
    for span in orphans(trace):
        matched.amiss("an orphan span", (trace_id, span.name))
    duration_us = servers[0].duration_ns / 1e3
    over = duration_us > float(servers[0].attributes[names.SLO_OBJECTIVE_US])
    if (over or sent.asked.code != "OK") != servers[0].attributes[names.SLO_VIOLATED]:
        matched.amiss("the verdict is not what the timestamps say", trace_id)
    if sent.asked.took_us is None or abs(duration_us - sent.asked.took_us) > 1:
        matched.amiss("the span's time is not the one that was told", (trace_id, duration_us, sent.asked.took_us))


def _callers_word(matched: Matched, sent: Sent) -> None:
    """The caller's own verdict, and whether the way between explains that it is another."""
    asked = sent.asked
    if asked.took_us is None:
        matched.amiss("told nothing", asked)
        return
    if asked.code != "OK":
        matched.refused[asked.outcome] += 1
        if not asked.violated:
            matched.amiss("refused, and no violation", asked)
        return
    gap_us = asked.latency_s * 1e6 - asked.took_us
    matched.gaps_us.append(gap_us)
    if not asked.violated:
        matched.within += 1
    if sent.late_for_caller == asked.violated:
        return
    if sent.late_for_caller and asked.took_us <= sent.objective_us < asked.took_us + gap_us:
        matched.gap_explains += 1
    else:
        matched.amiss("the caller's verdict differs and no gap explains it", sent)


def prepare(mesh: RunningMesh, folder: Path) -> None:
    """The tenant and its two models."""
    mesh.create_tenant(TENANT)
    identity = elementwise(folder / "identity.onnx", "Identity")
    for model in (MODEL, HELD_MODEL):
        mesh.push(model, identity, tenant=TENANT)


def run(data: Path, count: int, rate: float) -> tuple[Matched, dict[str, Any]]:
    """Starts a mesh for it, and ends it."""
    environment = {"APPORTION_EXECUTOR_SLOW_COPIES_MS": json.dumps({f"{TENANT}/{HELD_MODEL}": HOLD_MS})}
    with running(data, "--trace-sample", f"{SAMPLE:g}", environment=environment) as mesh:
        prepare(mesh, data)
        return asyncio.run(measured(mesh, count, rate))


def part_of(matched: Matched, facts: dict[str, Any]) -> float:
    """Violators among requests."""
    return matched.told / max(1, int(facts["requests"]))


def show(matched: Matched, facts: dict[str, Any]) -> dict[str, Any]:
    """Prints what was found; what the last line says."""
    told = {
        **facts,
        "violations": {"counted": matched.counted, "told": matched.told, "kept": matched.kept},
        "violators_part": round(part_of(matched, facts), 4),
        "violators": dict(matched.violated),
        "sampled": matched.sampled,
        "sampled_part": round(matched.sampled / max(1, matched.within), 4),
        "refused": dict(matched.refused),
        "late_only_for_caller": matched.gap_explains,
        "gap_us": {"p50": round(quantile(matched.gaps_us, 0.5)), "p99": round(quantile(matched.gaps_us, 0.99))},
        "wrong": dict(matched.wrong),
    }
    for name, value in told.items():
        print(f"{name:<22} {value}")
    for what, example in matched.examples.items():
        print(f"  WRONG: {what}, {matched.wrong[what]} times; as {example}")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--rate", type=float, default=600.0, help="requests a second")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        matched, facts = run(Path(folder) / "data", chosen.requests, chosen.rate)
    told = show(matched, facts)
    if chosen.json:
        chosen.json.write_text(json.dumps(told, indent=2))
    print(json.dumps(told))
    arranged = abs(part_of(matched, facts) - VIOLATORS) <= GIVE_OR_TAKE
    sys.exit(0 if arranged and not matched.wrong else 1)


if __name__ == "__main__":
    main()
