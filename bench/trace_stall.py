"""What requests notice of a trace backend that hangs: nothing. The store is stopped (SIGSTOP) under load, and goes on later.

    python -m bench.trace_stall [--seconds 60] [--at-once 8] [--json FILE]

Two meshes stand beside each other, alike, each with its own callers, and are loaded at the same time for all of it: what else the
machine does meets both. First both stores work; then the first mesh's hangs; then, once that has caught up, the second's, so that
what makes the two differ cancels. The ratio is the geometric mean of what a mesh answers while its store hangs over what the other
one answers meanwhile, once each way; the same of windows of four seconds says how much of it is chance. One request in ten has an
objective that nobody could meet, so that there are many more traces than usual. The ratio of processor time a request, which
chance moves less, says whether a store that hangs costs anything at all.

Every failed request counts; and what was lost must have been counted by the processes that lost it: spans, at least as many as the
violators' traces that the store has not got would have had. Ends with a line of JSON, and with status 1 where a request failed, the
ratio is below 0.97, nothing was lost, more was lost than counted, or spans do not arrive again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from bench.models import elementwise
from bench.tracing import FRONTEND_STAGES, Callers, cpu_ns, kept, middle, quantile
from tests.mesh.calling import request
from tests.mesh.running import RunningMesh, running

TENANT, MODEL = "stalled", "identity"
IMPOSSIBLE_MS, EVERY = 0.05, 10
ENOUGH = 0.97
WARM_S, BOTH_S, SETTLE_S = 3.0, 16.0, 8.0
WINDOW_S, START_S = 4.0, 0.3
SPANS_AT_FRONTEND = 1 + len(FRONTEND_STAGES)
VALUES = np.ones((1, 16), np.float32)
WHERE = {"frontend": "metrics", "executor": "executor_metrics"}


class Phase(NamedTuple):
    """What one phase of the load came to for one mesh. windows: requests answered in each, whole ones alone. cpu_us: processor time
    of a request at the frontend, its executor and its worker."""

    windows: list[int]
    answered: int
    failed: dict[str, int]
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu_us: float = 0.0

    def told(self) -> dict[str, Any]:
        """Without the windows."""
        return {**self._asdict(), "windows": len(self.windows), "per_second": round(self.answered / self.seconds, 1)}


async def load(
    address: str, metadata: tuple[tuple[str, str], ...], at_once: int, begin_s: float, seconds: float
) -> Phase:
    """Callers that each send the next request when they have an answer. begin_s: on the monotonic clock, which processes share."""
    callers, outcomes, latencies = Callers(address, metadata, max(1, at_once // 4)), Counter[str](), []
    windows = [0] * int(seconds / WINDOW_S)
    await asyncio.sleep(begin_s - time.monotonic())
    ends = begin_s + seconds

    async def caller(number: int) -> None:
        while time.monotonic() < ends:
            number += 1
            slo_ms = IMPOSSIBLE_MS if number % EVERY == 0 else 60_000.0
            asked = await callers.ask(request(MODEL, {"x": VALUES}, slo_ms=slo_ms))
            outcomes[asked.code] += 1
            latencies.append(asked.latency_s * 1e3)
            window = int((time.monotonic() - begin_s) / WINDOW_S)
            if asked.code == "OK" and window < len(windows):
                windows[window] += 1

    await asyncio.gather(*(caller(number) for number in range(at_once)))
    took_s = time.monotonic() - begin_s
    await callers.close()
    answered = outcomes.pop("OK", 0)
    return Phase(
        windows,
        answered,
        dict(outcomes),
        took_s,
        round(quantile(latencies, 0.5), 2),
        round(quantile(latencies, 0.99), 2),
    )


def load_as_told(told: Connection) -> None:
    """A process of its own, so that what callers take is not the mesh's."""
    while (order := told.recv()) is not None:
        told.send(asyncio.run(load(*order)))


class Side:
    """A mesh, its callers, and its store that can be stopped."""

    def __init__(self, mesh: RunningMesh, callers: Connection, at_once: int) -> None:
        self.mesh, self._callers, self._at_once = mesh, callers, at_once
        self._pids = mesh.pids()
        self._path = [self._pids[name] for name in WHERE] + [worker.pid for worker in mesh.workers()]
        self._before_ns = 0

    def begin(self, begin_s: float, seconds: float) -> None:
        """Loads it; `end` has what came of it."""
        self._before_ns = sum(map(cpu_ns, self._path))
        self._callers.send(
            (self.mesh.addresses["frontend"], self.mesh.metadata(TENANT), self._at_once, begin_s, seconds)
        )

    def end(self) -> Phase:
        """Waits for the end of the load."""
        told: Phase = self._callers.recv()
        used_us = (sum(map(cpu_ns, self._path)) - self._before_ns) / 1e3
        return told._replace(cpu_us=round(used_us / max(1, told.answered), 1))

    def signal(self, number: int) -> None:
        """Stops the store, or has it go on."""
        os.kill(self._pids["tracestore"], number)

    def spans(self, outcome: str) -> dict[str, int]:
        """Spans by process, by its own count."""
        name = "apportion_telemetry_spans_total"
        return {
            service: int(self.mesh.total(name, self.mesh.addresses[address], outcome=outcome))
            for service, address in WHERE.items()
        }

    def rss_mib(self) -> dict[str, int]:
        """Memory of the processes that hold spans."""
        return {name: psutil.Process(self._pids[name]).memory_info().rss >> 20 for name in WHERE}

    def violations(self) -> int:
        """Requests that broke a promise, by the frontend's count."""
        return int(self.mesh.total("apportion_frontend_violations_total", tenant=TENANT))


def together(sides: Sequence[Side], seconds: float) -> list[Phase]:
    """The same load on all of them at the same time."""
    begin_s = time.monotonic() + START_S
    for side in sides:
        side.begin(begin_s, seconds)
    return [side.end() for side in sides]


def hung(side: Side, other: Side, seconds: float) -> dict[str, Any]:
    """One store hangs while both meshes are loaded; what came of it, once that store has caught up."""
    lost, exported, since_ns, violations = (
        side.spans("dropped"),
        side.spans("exported"),
        time.time_ns(),
        side.violations(),
    )
    beside = other.spans("dropped")
    side.signal(signal.SIGSTOP)
    try:
        phases = together((side, other), seconds)
    finally:
        side.signal(signal.SIGCONT)
    rss = side.rss_mib()
    time.sleep(SETTLE_S)
    lost = {name: count - lost[name] for name, count in side.spans("dropped").items()}
    traces = asyncio.run(kept(side.mesh.addresses["query"], TENANT, since_ns, violated=True))
    missing = side.violations() - violations - len(traces)
    return {
        "hung": phases[0].told(),
        "working": phases[1].told(),
        "ratios": [own / whole for own, whole in zip(phases[0].windows, phases[1].windows, strict=True)],
        "failed": sum(sum(phase.failed.values()) for phase in phases),
        "spans_lost": lost,
        "spans_lost_beside": {name: count - beside[name] for name, count in other.spans("dropped").items()},
        "spans_exported_since": {name: count - exported[name] for name, count in side.spans("exported").items()},
        "violators_without_trace": missing,
        "rss_mib": rss,
    }


def measured(sides: Sequence[Side], seconds: float) -> dict[str, Any]:
    """The phases, and what was counted."""
    first, second = sides
    together(sides, WARM_S)
    both = together(sides, BOTH_S)
    rss = {str(number): side.rss_mib() for number, side in enumerate(sides, 1)}
    turns = [hung(first, second, seconds), hung(second, first, seconds)]
    whole = math.prod(turn["hung"]["answered"] / turn["working"]["answered"] for turn in turns) ** 0.5
    again = []
    for side in sides:
        before = side.spans("exported")
        together((side,), WARM_S)
        time.sleep(1.0)
        again.append({name: count - before[name] for name, count in side.spans("exported").items()})
    # The nth window of the one against the nth of the other: whatever makes the two meshes differ is in both, once each way.
    ratios = [math.sqrt(one * other) for one, other in zip(turns[0].pop("ratios"), turns[1].pop("ratios"), strict=True)]
    return {
        "both_work": [phase.told() for phase in both],
        "both_work_ratio": middle([one / other for one, other in zip(both[0].windows, both[1].windows, strict=True)]),
        "rss_mib_before": rss,
        "turns": turns,
        "ratio": round(whole, 4),
        "cpu_ratio": round(math.prod(turn["hung"]["cpu_us"] / turn["working"]["cpu_us"] for turn in turns) ** 0.5, 4),
        "ratio_of_windows": middle(ratios),
        "failed": sum(turn["failed"] for turn in turns) + sum(sum(phase.failed.values()) for phase in both),
        "spans_exported_after": again,
    }


@contextmanager
def calling() -> Iterator[Connection]:
    """Callers in a process of their own."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=load_as_told, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours
    finally:
        ours.send(None)
        process.join(10)


def stand(stack: ExitStack, data: Path, at_once: int) -> Side:
    """One of the two meshes."""
    callers = stack.enter_context(calling())
    mesh = stack.enter_context(running(data))
    mesh.create_tenant(TENANT)
    mesh.push(MODEL, elementwise(data / "identity.onnx", "Identity"), tenant=TENANT)
    return Side(mesh, callers, at_once)


def counted(turn: dict[str, Any]) -> bool:
    """Whether something was lost, and all that was lost has been counted."""
    lost = turn["spans_lost"]
    return all(lost.values()) and turn["violators_without_trace"] * SPANS_AT_FRONTEND <= lost["frontend"]


def show(told: dict[str, Any]) -> None:
    print(f"{'store':<8} {'req/s':>8} {'p50 ms':>8} {'p99 ms':>8} {'CPU µs':>8}  failed")
    rows = [("working", each) for each in told["both_work"]]
    rows += [(name, turn[name]) for turn in told["turns"] for name in ("hung", "working")]
    for name, each in rows:
        print(
            f"{name:<8} {each['per_second']:8.0f} {each['p50_ms']:8.2f} {each['p99_ms']:8.2f} {each['cpu_us']:8.0f}  {each['failed']}"
        )
    for turn in told["turns"]:
        print({name: value for name, value in turn.items() if name not in ("hung", "working")})
    for name in (
        "both_work_ratio",
        "ratio_of_windows",
        "ratio",
        "cpu_ratio",
        "failed",
        "spans_exported_after",
        "rss_mib_before",
    ):
        print(f"{name:<22} {told[name]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="that each store hangs")
    parser.add_argument("--at-once", type=int, default=8, help="callers of each mesh")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = [stand(stack, folder / name, chosen.at_once) for name in ("first", "second")]
        told = measured(sides, chosen.seconds)
    show(told)
    if chosen.json:
        chosen.json.write_text(json.dumps(told, indent=2))
    print(json.dumps(told))
    arrives = all(all(each.values()) for each in told["spans_exported_after"])
    good = not told["failed"] and told["ratio"] >= ENOUGH and all(map(counted, told["turns"]))
    sys.exit(0 if good and arrives else 1)


if __name__ == "__main__":
    main()
