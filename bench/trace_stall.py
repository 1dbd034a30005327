"""What requests notice of a trace backend that hangs: nothing. The store is stopped (SIGSTOP) under load, and goes on later.

    python -m bench.trace_stall [--seconds 60] [--at-once 16] [--json FILE]

Three phases of the same load: the store works, hangs, works again. One request in ten has an objective that nobody could meet, so
that there are many more traces than usual. Throughput while it hangs is held against the mean of the phases around it; every
failed request counts; and what was lost must have been counted by the processes that lost it. Ends with a line of JSON, and with
status 1 where a request failed, the ratio is below 0.97, nothing was lost and nothing waited, or spans do not arrive again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from bench.models import elementwise
from bench.tracing import Callers, quantile
from tests.mesh.calling import request
from tests.mesh.running import RunningMesh, running

TENANT, MODEL = "stalled", "identity"
IMPOSSIBLE_MS, EVERY = 0.05, 10
ENOUGH = 0.97
WARM_S, SETTLE_S = 3.0, 8.0
VALUES = np.ones((1, 16), np.float32)


class Phase(NamedTuple):
    """What one phase of the load came to. rss_mib: of frontend and executor at its end."""

    answered: int
    failed: dict[str, int]
    seconds: float
    p50_ms: float
    p99_ms: float
    rss_mib: dict[str, float]

    @property
    def per_second(self) -> float:
        return self.answered / self.seconds


async def load(address: str, metadata: tuple[tuple[str, str], ...], at_once: int, seconds: float) -> tuple[Any, ...]:
    """Callers that each send the next request when they have an answer: (answered, failed, seconds, latencies in ms)."""
    callers, outcomes, latencies = Callers(address, metadata, max(1, at_once // 4)), Counter[str](), []
    begun = time.perf_counter()
    ends = begun + seconds

    async def caller(number: int) -> None:
        while time.perf_counter() < ends:
            number += 1
            slo_ms = IMPOSSIBLE_MS if number % EVERY == 0 else 60_000.0
            asked = await callers.ask(request(MODEL, {"x": VALUES}, slo_ms=slo_ms))
            outcomes[asked.code] += 1
            latencies.append(asked.latency_s * 1e3)

    await asyncio.gather(*(caller(number) for number in range(at_once)))
    took_s = time.perf_counter() - begun
    await callers.close()
    answered = outcomes.pop("OK", 0)
    return answered, dict(outcomes), took_s, quantile(latencies, 0.5), quantile(latencies, 0.99)


def load_as_told(told: Connection) -> None:
    """A process of its own, so that what callers take is not the mesh's."""
    while (order := told.recv()) is not None:
        told.send(asyncio.run(load(*order)))


class Stall:
    """The mesh, its callers, and the store that can be stopped."""

    def __init__(self, mesh: RunningMesh, callers: Connection, at_once: int) -> None:
        self.mesh, self._callers, self._at_once = mesh, callers, at_once
        self._pids = mesh.pids()

    def phase(self, seconds: float, *, stopped: bool = False) -> Phase:
        store = self._pids["tracestore"]
        if stopped:
            os.kill(store, signal.SIGSTOP)
        try:
            order = (self.mesh.addresses["frontend"], self.mesh.metadata(TENANT), self._at_once, seconds)
            self._callers.send(order)
            told = self._callers.recv()
        finally:
            if stopped:
                os.kill(store, signal.SIGCONT)
        rss = {name: psutil.Process(self._pids[name]).memory_info().rss / 2**20 for name in ("frontend", "executor")}
        return Phase(*told, rss)

    def spans(self, outcome: str) -> dict[str, int]:
        """Spans by process, by its own count."""
        where = {"frontend": "metrics", "executor": "executor_metrics"}
        name = "apportion_telemetry_spans_total"
        return {
            service: int(self.mesh.total(name, self.mesh.addresses[address], outcome=outcome))
            for service, address in where.items()
        }


def measured(mesh: RunningMesh, callers: Connection, at_once: int, seconds: float) -> dict[str, Any]:
    """Three phases, and what was counted."""
    stall = Stall(mesh, callers, at_once)
    stall.phase(WARM_S)
    lost_before = stall.spans("dropped")
    phases = {"before": stall.phase(seconds)}
    lost_working = stall.spans("dropped")
    phases["hung"] = stall.phase(seconds, stopped=True)
    time.sleep(SETTLE_S)
    lost, exported = stall.spans("dropped"), stall.spans("exported")
    phases["after"] = stall.phase(seconds)
    time.sleep(1.0)
    around = (phases["before"].per_second + phases["after"].per_second) / 2
    again = {name: count - exported[name] for name, count in stall.spans("exported").items()}
    return {
        "phases": {name: each._asdict() | {"per_second": round(each.per_second, 1)} for name, each in phases.items()},
        "ratio": round(phases["hung"].per_second / around, 4),
        "failed": sum(sum(each.failed.values()) for each in phases.values()),
        "spans_lost_working": {name: lost_working[name] - lost_before[name] for name in lost},
        "spans_lost_hung": {name: lost[name] - lost_working[name] for name in lost},
        "spans_exported_after": again,
    }


def run(data: Path, at_once: int, seconds: float) -> dict[str, Any]:
    """Starts a mesh and callers for it, and ends them."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=load_as_told, args=(theirs,), daemon=True)
    process.start()
    try:
        with running(data) as mesh:
            mesh.create_tenant(TENANT)
            mesh.push(MODEL, elementwise(data / "identity.onnx", "Identity"), tenant=TENANT)
            return measured(mesh, ours, at_once, seconds)
    finally:
        ours.send(None)
        process.join(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each phase")
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = run(Path(folder) / "data", chosen.at_once, chosen.seconds)
    print(f"{'store':<8} {'req/s':>8} {'p50 ms':>8} {'p99 ms':>8}  failed  MiB")
    for name, each in told["phases"].items():
        rss = ", ".join(f"{service} {mib:.0f}" for service, mib in each["rss_mib"].items())
        print(
            f"{name:<8} {each['per_second']:8.0f} {each['p50_ms']:8.2f} {each['p99_ms']:8.2f}  {each['failed']}  {rss}"
        )
    for name in ("ratio", "failed", "spans_lost_working", "spans_lost_hung", "spans_exported_after"):
        print(f"{name:<22} {told[name]}")
    if chosen.json:
        chosen.json.write_text(json.dumps(told, indent=2))
    print(json.dumps(told))
    counted = all(told["spans_lost_hung"].values()) and all(told["spans_exported_after"].values())
    sys.exit(0 if not told["failed"] and told["ratio"] >= ENOUGH and counted else 1)


if __name__ == "__main__":
    main()
