"""Up to twice the load that a lane can serve, on a real worker process: `python -m bench.overload [--quick]`.

Three tenants with exported perceptrons on one core: one stays within its reservation, two without one send the rest, all by
Poisson. Loads from 0.7 to 2 lanes take turns, several times, each measured against the costs of the moment. Told are: goodput
(answers within their objectives, in lanes' worth of device time), requests of the reserved tenant that were late or refused, the
time from a request's arrival at the worker until its refusal, and until that had come back here, through this process's own turn
on a core that both share, and how long the reserved tenant waited for the slice that was running. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import simulated_vs_cpu
from bench.simulated_vs_cpu import Plan, Worker
from bench.tenants import judged
from gpu_sharing.simulation import arrivals
from gpu_sharing.units import MS, SECOND, Nanoseconds
from gpu_sharing.worker.messages import Done, Failed

PLANS = {1: Plan(16, 500, 0.25, 0.0), 2: Plan(48, 0, 0.0, 0.0), 3: Plan(48, 0, 0.0, 0.0)}
"""Of the first: the part of the lane that it asks for, half of what it has reserved."""
LOADS = (0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
PATIENCE = {1: 12.0, 2: 12.0, 3: 12.0}
"""Objectives, in times of what a request takes alone."""


class Timed(simulated_vs_cpu.Books):
    """Books that know when each refusal came."""

    def __init__(self) -> None:
        super().__init__()
        self.came: dict[int, Nanoseconds] = {}

    def on_events(self, events: Any) -> None:
        """See `Books`."""
        now = time.monotonic_ns()
        self.came.update((event.call, now) for event in events if isinstance(event, Failed))
        super().on_events(events)


class Found(NamedTuple):
    """Of one turn. goodput: in lanes. refusals_us (until decided, until back here), waits: one a request; waits in slices."""

    load: float
    goodput: float
    sure: int
    sure_late: int
    refusals_us: list[tuple[float, float]]
    waits: list[float]


async def costs(worker: Worker) -> dict[int, Nanoseconds]:
    """What each model takes alone, now."""
    ended = worker.books.ended
    return {
        replica: int(
            statistics.median(
                end.batch.ended - end.batch.started for each in calls if isinstance(end := ended[each], Done)
            )
        )
        for replica, calls in (await worker.calibrate()).items()
    }


async def turn(worker: Worker, load: float, seconds: float, seed: int) -> Found:
    """Plays one load."""
    alone = await costs(worker)
    objectives: dict[int, Nanoseconds | None] = {
        each: int(PATIENCE[each] * cost) + 10 * MS for each, cost in alone.items()
    }
    draw = np.random.Generator(np.random.PCG64(seed))
    sure = PLANS[1].part
    asked = {1: sure, 2: (load - sure) / 2, 3: (load - sure) / 2}
    moments = sorted(
        (moment, replica)
        for replica, part in asked.items()
        for moment in arrivals.poisson(draw, part * SECOND / alone[replica], 0, int(seconds * SECOND))
    )
    calls = await worker.play(moments, objectives)
    ended = worker.books.ended
    good = [call for call in calls if _met(worker, call)]
    mine = [call for call in calls if worker.sent[call].replica == 1]
    refusals = [
        ((end.decided - end.received) / 1000, (worker.books.came[call] - end.received) / 1000)  # type: ignore[attr-defined]
        for call in calls
        if isinstance(end := ended[call], Failed) and end.reason == "OVERLOADED" and "revoked" not in end.facts
    ]
    goodput = sum(alone[worker.sent[call].replica] for call in good) / (seconds * SECOND)
    return Found(
        load, goodput, len(mine), len(mine) - sum(_met(worker, call) for call in mine), refusals, _waits(worker, calls)
    )


def _met(worker: Worker, call: int) -> bool:
    end = worker.books.ended[call]
    return isinstance(end, Done) and end.batch.ended <= (worker.sent[call].objective or 0)


def _waits(worker: Worker, calls: list[int]) -> list[float]:
    """How long the slice that ran when a request of the reserved tenant came went on, in typical slices of the lane."""
    batches = {end.batch.number: end.batch for call in calls if isinstance(end := worker.books.ended[call], Done)}
    slices = sorted(
        (start, stop)
        for batch in batches.values()
        for start, stop in zip((batch.started, *batch.segment_ends), batch.segment_ends, strict=False)
        # Where others ran in between, it is not known when the slice began.
        if not batch.preemptions or start == batch.started
    )
    typical = statistics.median(stop - start for start, stop in slices)
    stops = sorted(stop for batch in batches.values() for stop in batch.segment_ends)
    begun = sorted(batch.started for batch in batches.values())
    waits = []
    for call in calls:
        end = worker.books.ended[call]
        if worker.sent[call].replica != 1 or not isinstance(end, Done):
            continue
        place = bisect.bisect_left(stops, end.received)
        # A lane that was idle has no boundary to wait for: the next slice to end had not begun.
        idle = end.batch.started == begun[min(bisect.bisect_left(begun, end.received), len(begun) - 1)]
        if place < len(stops) and not (idle and end.batch.started < stops[place]):
            waits.append((stops[place] - end.received) / typical)
    return waits


async def run(rounds: int, seconds: float) -> list[Found]:
    """All loads, in turns."""
    usable = sorted(os.sched_getaffinity(0))
    # Before every turn: enough to know what the machine is worth now.
    simulated_vs_cpu.CALIBRATION_RUNS = 15
    simulated_vs_cpu.PLANS.clear()
    simulated_vs_cpu.PLANS.update(PLANS)
    simulated_vs_cpu.Books = Timed  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        worker = await Worker.start(Path(folder), usable[-1])
        os.sched_setaffinity(0, usable[:1])
        found = []
        for number in range(rounds):
            for load in LOADS:
                print(f"round {number + 1}, load {load:.2f}", file=sys.stderr, flush=True)
                found.append(await turn(worker, load, seconds, number))
        await worker.client.stop(1.0)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn")
    parser.add_argument("--quick", action="store_true", help="one short round")
    chosen = parser.parse_args()
    found = asyncio.run(run(1, 2.0) if chosen.quick else run(chosen.rounds, chosen.seconds))
    goodput = {}
    for load in LOADS:
        each = [turn.goodput for turn in found if turn.load == load]
        goodput[load] = statistics.median(each)
        print(f"load {load:4.2f}: goodput {goodput[load]:.3f} lanes [{min(each):.3f} … {max(each):.3f}]")
    refusals = [took for turn in found for took in turn.refusals_us]
    waits = [wait for turn in found for wait in turn.waits]
    sure, late = sum(turn.sure for turn in found), sum(turn.sure_late for turn in found)
    kept = goodput[LOADS[-1]] / max(goodput.values())
    refusal_us, back_us = np.quantile(refusals or [(0.0, 0.0)], (0.5, 0.99), axis=0).T.tolist()
    wait = np.quantile(waits, (0.5, 0.99)).tolist() if waits else [0.0, 0.0]
    print(f"at twice the load {kept:.1%} of the peak; of {sure} within the reservation {late} late or refused")
    print(
        f"{len(refusals)} refusals: p50 {refusal_us[0]:.0f} us, p99 {refusal_us[1]:.0f} us after the arrival", end="; "
    )
    print(f"back here: p50 {back_us[0]:.0f} us, p99 {back_us[1]:.0f} us")
    print(f"{len(waits)} waits for a boundary: p50 {wait[0]:.2f}, p99 {wait[1]:.2f} slices")
    status = judged({
        "goodput at twice the load at least 95 % of its peak": kept >= 0.95,
        "within the reservation at most 0.5 % late": late <= 0.005 * sure,
        "refused within 1 ms, p99": refusal_us[1] <= 1000.0,
        "a boundary within two slices, p99": wait[1] <= 2.0,
    })  # fmt: skip
    print(
        json.dumps(
            {
                "goodput": goodput,
                "kept": kept,
                "sure": sure,
                "late": late,
                "refusal_us": refusal_us,
                "refusal_back_us": back_us,
                "wait_slices": wait,
            }
        )
    )
    return status


if __name__ == "__main__":
    raise SystemExit(main())
