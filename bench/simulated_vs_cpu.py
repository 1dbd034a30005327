"""The same workload in the simulator and on a real worker process: `python -m bench.simulated_vs_cpu`.

Three tenants with exported perceptrons, cut into segments, share one lane of one core at a load under which some requests meet
their objectives and some do not. Each round runs the workload on the worker, measures before and after it what the models'
segments take, and simulates the arrivals that the worker saw: once with costs as measured before and after (a prediction), and
once with the machine's speed as it was while the workload ran (how long each batch took there over its model's median), which
leaves only the sharing to be simulated. Attainment is the part of requests whose batch ended by their objective; the figure to
read is how far real and simulated are apart. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from bench.models import exported_perceptron
from gpu_sharing.simulation import arrivals
from gpu_sharing.simulation.models import EXACT, AnyError, Lognormal, Recorded, Segment, SimulatedModel
from gpu_sharing.simulation.run import simulate
from gpu_sharing.simulation.scenario import Arrive, Scenario, Tenant
from gpu_sharing.units import MS, SECOND, MiB, Nanoseconds
from gpu_sharing.worker.client import WorkerClient, WorkerConfig
from gpu_sharing.worker.messages import Done, Failed, Load, Loaded, LoadFailed, Release, Submit, TensorRef

WIDTH = 256
CALIBRATION_RUNS = 60
SEEDS = 5


class Plan(NamedTuple):
    """One tenant: its model's blocks, its reservation, its part of the load, its objective over what a request takes alone."""

    blocks: int
    bandwidth: int
    part: float
    patience: float


PLANS = {1: Plan(8, 300, 0.4, 3.0), 2: Plan(24, 300, 0.4, 2.0), 3: Plan(64, 0, 0.4, 4.0)}


class Measured(NamedTuple):
    """Of one replica: median cost of each segment, how far a run's whole cost strays, and between two batches."""

    segments_ns: tuple[Nanoseconds, ...]
    sigma: float
    profile: Any


class Books:
    """What the worker has said."""

    def __init__(self) -> None:
        self.loaded: dict[int, Any] = {}
        self.ended: dict[int, Done | Failed] = {}
        self.changed = asyncio.Event()
        self.client: WorkerClient | None = None

    def on_events(self, events: Any) -> None:
        """Called by the client."""
        for event in events:
            if isinstance(event, Loaded | LoadFailed):
                self.loaded[event.replica] = event
            elif isinstance(event, Done | Failed):
                self.ended[event.call] = event
                if isinstance(event, Done) and self.client is not None:
                    self.client.send(Release(event.call))
        self.changed.set()

    async def until(self, holds: Any, timeout_s: float = 120.0) -> None:
        """Waits until it holds."""
        async with asyncio.timeout(timeout_s):
            while not holds():
                self.changed.clear()
                await self.changed.wait()


class Worker:
    """A real worker with the plans' models, and the calls sent to it."""

    def __init__(self, client: WorkerClient, books: Books) -> None:
        self.client = client
        self.books = books
        self.sent: dict[int, Submit] = {}
        offset = client.inputs.allocate(4 * WIDTH)
        assert offset is not None
        np.frombuffer(client.inputs.view, np.float32, WIDTH, offset)[:] = 0.5
        self._row = TensorRef(0, (1, WIDTH), offset, 4 * WIDTH)

    @classmethod
    async def start(cls, folder: Path, core: int) -> Worker:
        """Starts it and loads the models."""
        books = Books()
        config = WorkerConfig((core,), 64 * MiB, 64 * MiB, prewarm=("torch_export",))
        client = books.client = await WorkerClient.start(config, on_events=books.on_events)
        worker = cls(client, books)
        for replica, plan in PLANS.items():
            path = exported_perceptron(folder / f"{replica}.pt2", WIDTH, 1024, plan.blocks)
            load = Load(replica, f"t{replica}", "m", 1, f"{replica}", str(path), "torch_export", plan.bandwidth, 1, 1)
            client.send(load)
        await books.until(lambda: len(books.loaded) == len(PLANS))
        for event in books.loaded.values():
            assert isinstance(event, Loaded), event
        return worker

    def send(self, replica: int, objective_ns: Nanoseconds | None) -> int:
        """Sends a request of one row, now."""
        call, now = len(self.sent) + 1, time.monotonic_ns()
        due = None if objective_ns is None else now + objective_ns
        submit = Submit(call, replica, 1, b"", (self._row,), (0,), arrived=now, objective=due)
        self.sent[call] = submit
        self.client.send(submit)
        return call

    async def calibrate(self) -> dict[int, list[Any]]:
        """What each model's segments take when nothing else runs: by replica, a row for each run."""
        measured = {}
        for replica in PLANS:
            runs: list[Any] = []
            for _ in range(CALIBRATION_RUNS):
                call = self.send(replica, SECOND)
                await self.books.until(lambda call=call: call in self.books.ended)
                done = self.books.ended[call]
                assert isinstance(done, Done), done
                runs.append(np.diff([done.batch.started, *done.batch.segment_ends]))
            measured[replica] = runs
        return measured

    def measured(self, runs: dict[int, list[Any]], boundary_ns: Nanoseconds) -> dict[int, Measured]:
        """What these runs say of each replica."""
        found = {}
        for replica, each in runs.items():
            table = np.array(each)
            # The end of a segment is told from the end of the one before, so all but the first hold a boundary.
            table[:, 1:] = np.maximum(1, table[:, 1:] - boundary_ns)
            whole = table.sum(axis=1)
            sigma = float(np.std(np.log(whole / np.median(whole))))
            medians = tuple(int(value) for value in np.median(table, axis=0))
            found[replica] = Measured(medians, sigma, self.books.loaded[replica].profile)
        return found

    async def play(
        self, moments: list[tuple[Nanoseconds, int]], objectives: Mapping[int, Nanoseconds | None]
    ) -> list[int]:
        """Sends requests at these moments from now; the calls, all answered."""
        start, calls = time.monotonic_ns(), []
        for moment, replica in moments:
            if (wait := start + moment - time.monotonic_ns()) > 0:
                await asyncio.sleep(wait / SECOND)
            calls.append(self.send(replica, objectives[replica]))
        await self.books.until(lambda: all(call in self.books.ended for call in calls))
        return calls

    def attainment(self, calls: list[int]) -> dict[int, float]:
        """By replica: the part whose batch ended by their objective."""
        met: dict[int, list[bool]] = {replica: [] for replica in PLANS}
        for call in calls:
            submit, end = self.sent[call], self.books.ended[call]
            met[submit.replica].append(isinstance(end, Done) and end.batch.ended <= (submit.objective or 0))
        return {replica: sum(each) / len(each) for replica, each in met.items()}

    def waits(self, calls: list[int]) -> list[tuple[int, Done, Nanoseconds]]:
        """Each batch that ran, by one of its calls, and how long after the slice before it it began, if it was waiting then."""
        done = [(call, end) for call in calls if isinstance(end := self.books.ended[call], Done)]
        ends = sorted(moment for _, end in done for moment in end.batch.segment_ends)
        found = []
        for call, end in done:
            place = bisect.bisect_right(ends, end.batch.started)
            before = ends[place - 1] if place else 0
            found.append((call, end, end.batch.started - before if end.received <= before else 0))
        return found

    def boundary_ns(self, calls: list[int]) -> Nanoseconds:
        """Between the end of one slice and the start of the next, where that was waiting: the median."""
        gaps = [gap for _, _, gap in self.waits(calls) if gap]
        return int(statistics.median(gaps)) if gaps else 0


def simulated(
    worker: Worker, calls: list[int], measured: dict[int, Measured], errors: dict[int, AnyError],
    objectives: dict[int, Nanoseconds], boundary_ns: Nanoseconds, seed: int = 0,
) -> dict[int, float]:  # fmt: skip
    """Attainment by replica in the simulator, for the arrivals that the worker saw."""
    start = min(worker.sent[call].arrived for call in calls)
    happenings = tuple(Arrive(worker.sent[call].arrived - start, worker.sent[call].replica) for call in calls)
    tenants = []
    for replica, plan in PLANS.items():
        found = measured[replica]
        points = tuple(msgspec.structs.replace(point, shape_bucket="") for point in found.profile.points)
        model = SimulatedModel(tuple(Segment(cost) for cost in found.segments_ns), 1, profile=points)
        tenants.append(Tenant(replica, model, plan.bandwidth, 1, objectives[replica], error=errors[replica]))
    scenario = Scenario(tuple(tenants), happenings, seed=seed, boundary_ns=boundary_ns)
    outcome = simulate(scenario)
    return {replica: outcome.attainment(replica) for replica in PLANS}


def predicted(measured: dict[int, Measured]) -> dict[int, AnyError]:
    """Costs stray as they did when the models ran alone. Segments stray one by one: by more than their sum does."""
    return {replica: Lognormal(found.sigma * len(found.segments_ns) ** 0.5) for replica, found in measured.items()}


def recorded(worker: Worker, calls: list[int], measured: dict[int, Measured]) -> dict[int, AnyError]:
    """Costs stray as they did in this very run. Boundaries are in them: within a batch, and before it if it had to wait."""
    start = min(worker.sent[call].arrived for call in calls)
    seen: dict[int, dict[int, float]] = {replica: {} for replica in PLANS}
    for call, end, gap in worker.waits(calls):
        replica, batch = worker.sent[call].replica, end.batch
        took = gap + batch.ended - batch.started - batch.preempted
        seen[replica][batch.started - start] = took / sum(measured[replica].segments_ns)
    return {
        replica: Recorded(tuple(sorted(factors)), tuple(factors[at] for at in sorted(factors))) if factors else EXACT
        for replica, factors in seen.items()
    }


async def one_round(worker: Worker, seed: int, seconds: float, load: float) -> dict[str, Any]:
    """Calibrates, plays, calibrates, simulates."""
    before = await worker.calibrate()
    alone = {replica: int(np.median(np.sum(runs, axis=1))) for replica, runs in before.items()}
    objectives = {replica: int(plan.patience * alone[replica]) + 4 * MS for replica, plan in PLANS.items()}
    chance = np.random.Generator(np.random.PCG64(seed))
    end = int(seconds * SECOND)
    moments = sorted(
        (moment, replica)
        for replica, plan in PLANS.items()
        for moment in arrivals.gamma(chance, load * plan.part * SECOND / alone[replica], 1.5, 0, end)
    )
    gc.collect()
    calls = await worker.play(moments, objectives)
    real = worker.attainment(calls)
    boundary_ns = worker.boundary_ns(calls)
    after = await worker.calibrate()
    measured = worker.measured({replica: before[replica] + after[replica] for replica in PLANS}, boundary_ns)
    given = (objectives, boundary_ns)
    runs = [simulated(worker, calls, measured, predicted(measured), *given, seed) for seed in range(SEEDS)]
    again = simulated(worker, calls, measured, recorded(worker, calls, measured), objectives, 0)
    count = {replica: sum(worker.sent[call].replica == replica for call in calls) for replica in PLANS}
    mean = {replica: statistics.mean(run[replica] for run in runs) for replica in PLANS}
    total = lambda by: sum(by[replica] * count[replica] for replica in PLANS) / len(calls)
    return {"requests": len(calls), "boundary_us": boundary_ns / 1000, "alone_ms": [cost / MS for cost in alone.values()],
            "real": real, "predicted": mean, "simulated": again,
            "real_all": total(real), "predicted_all": total(mean), "simulated_all": total(again)}  # fmt: skip


async def main() -> int:
    """Prints both attainments of each round, and how far they are apart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--load", type=float, default=0.45)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        worker = await Worker.start(Path(folder), cores[-1])
        # Only now: the worker may use no core that we may not.
        os.sched_setaffinity(0, cores[:1])
        rounds = [await one_round(worker, seed, arguments.seconds, arguments.load) for seed in range(arguments.rounds)]
        await worker.client.stop(1.0)
    for each in rounds:
        by = "  ".join(f"{each['real'][r]:6.1%} / {each['simulated'][r]:6.1%}" for r in PLANS)
        total = f"{each['real_all']:6.1%} / {each['simulated_all']:6.1%}, predicted {each['predicted_all']:6.1%}"
        print(f"{each['requests']:5} requests  real / simulated: {by}   all {total}")
    apart = [100 * (each["simulated_all"] - each["real_all"]) for each in rounds]
    told = {
        "real": statistics.median(each["real_all"] for each in rounds),
        "simulated": statistics.median(each["simulated_all"] for each in rounds),
        "apart_points_median": round(statistics.median(apart), 2),
        "apart_points": [round(each, 1) for each in apart],
        "predicted_apart_points": [round(100 * (each["predicted_all"] - each["real_all"]), 1) for each in rounds],
        "rounds": rounds,
    }
    print(f"attainment {told['real']:.1%} real, {told['simulated']:.1%} simulated; apart {told['apart_points']} points")
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
