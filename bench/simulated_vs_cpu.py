"""The same workload in the simulator and on a real worker process: `python -m bench.simulated_vs_cpu`.

Three tenants with exported perceptrons, cut into segments, share one lane of one core at a load under which some requests meet
their objectives and some do not: it is found by trying, so that between 40 and 90 % are met. Rounds outside of that are told and
not counted. Each round runs the workload on the worker, measures before and after it what the models' segments take, and
simulates everything that the worker has seen since it began, so that both arbiters know the same: once with costs that stray as
they did when the models ran alone (a prediction), and once with the machine's speed as it was from slice to slice (how long each
took over its segment's median), which leaves only the sharing to be simulated. Attainment is the part of requests whose batch
ended by their objective, a refusal being none; the figure to read is how far real and simulated are apart. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
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
from gpu_sharing.simulation.run import is_met, simulate
from gpu_sharing.simulation.scenario import Arrive, Scenario, Tenant
from gpu_sharing.units import MS, SECOND, MiB, Nanoseconds
from gpu_sharing.worker.client import WorkerClient, WorkerConfig
from gpu_sharing.worker.messages import (
    Done,
    Failed,
    Load,
    Loaded,
    LoadFailed,
    Release,
    Statistics,
    Submit,
    TensorRef,
)

WIDTH = 256
CALIBRATION_RUNS = 60
SEEDS = 5
WANTED = (0.4, 0.9)
AIM = (0.55, 0.8)
PILOT_S = 3.0
PILOTS = 8
LEAST_FACTOR = 0.2
STANDSTILL = 1000.0
CALIBRATION_PATIENCE: Nanoseconds = SECOND


class Plan(NamedTuple):
    """One tenant: its model's blocks, its reservation, its part of the load, its objective over what a request takes alone."""

    blocks: int
    bandwidth: int
    part: float
    patience: float


PLANS = {1: Plan(8, 300, 0.4, 3.0), 2: Plan(24, 300, 0.4, 2.0), 3: Plan(64, 0, 0.4, 4.0)}


class Measured(NamedTuple):
    """Of one replica: median cost of each segment, how far a run's whole cost strays, and what was measured at its load."""

    segments_ns: tuple[Nanoseconds, ...]
    sigma: float
    profile: Any


class Books:
    """What the worker has said."""

    def __init__(self) -> None:
        self.loaded: dict[int, Any] = {}
        self.ended: dict[int, Done | Failed] = {}
        self.statistics: Statistics | None = None
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
            elif isinstance(event, Statistics):
                self.statistics = event
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

    async def calibrate(self) -> dict[int, list[int]]:
        """Runs each model while nothing else does: its calls by replica."""
        calls: dict[int, list[int]] = {replica: [] for replica in PLANS}
        for replica in PLANS:
            for _ in range(CALIBRATION_RUNS):
                call = self.send(replica, CALIBRATION_PATIENCE)
                calls[replica].append(call)
                await self.books.until(lambda call=call: call in self.books.ended)
        return calls

    def measured(self, calls: dict[int, list[int]], boundary_ns: Nanoseconds) -> dict[int, Measured]:
        """What these runs say of each replica."""
        found = {}
        for replica, each in calls.items():
            ends = [end.batch for call in each if isinstance(end := self.books.ended[call], Done)]
            table = np.array([np.diff([batch.started, *batch.segment_ends]) for batch in ends])
            # The end of a segment is told from the end of the one before, so all but the first hold a boundary.
            table[:, 1:] = np.maximum(1, table[:, 1:] - boundary_ns)
            whole = table.sum(axis=1)
            sigma = float(np.std(np.log(whole / np.median(whole))))
            medians = tuple(int(value) for value in np.median(table, axis=0))
            found[replica] = Measured(medians, sigma, self.books.loaded[replica].profile)
        return found

    async def device_ns(self) -> Nanoseconds:
        """By the lane's own meter, of all that has been answered."""
        batches = len({end.batch.number for end in self.books.ended.values() if isinstance(end, Done)})
        metered = lambda: (
            0 if self.books.statistics is None else sum(each.batches for each in self.books.statistics.used)
        )
        await self.books.until(lambda: metered() >= batches)
        return 0 if self.books.statistics is None else self.books.statistics.busy_ns

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

    def boundary_ns(self, device_ns: Nanoseconds) -> Nanoseconds:
        """Between two slices of one batch, on average. device_ns: what all slices took by the lane's own meter."""
        done = {end.batch.number: end.batch for end in self.books.ended.values() if isinstance(end, Done)}.values()
        within = sum(batch.ended - batch.started - batch.preempted for batch in done) - device_ns
        return max(1, within // max(1, sum(len(batch.segment_ends) - 1 - batch.preemptions for batch in done)))

    def pace(self, measured: dict[int, Measured], boundary_ns: Nanoseconds) -> list[tuple[Nanoseconds, float]]:
        """How slow the machine was since the first call: from when on, and how many times slower than at the median.

        While a slice ran: what it took over its segment's median. While a request waited on a lane that ran nothing: how long
        over a boundary's average, and where the lane had slept, at a standstill. Else as at the median.
        """
        start = min(end.received for end in self.books.ended.values())
        slices = [
            (moment, self.sent[call].replica, index, end)
            for call, end in self.books.ended.items()
            if isinstance(end, Done)
            for index, moment in enumerate(end.batch.segment_ends)
        ]
        slices.sort(key=lambda each: each[0])
        found: list[tuple[Nanoseconds, float]] = []
        before = 0
        for moment, replica, index, end in slices:
            idle, began = max(before, end.received), end.batch.started
            if index:
                # All but the first of a batch began once the slice before, of whichever batch, had been dealt with.
                idle, began = before, min(before + boundary_ns, moment - 1)
            if idle < began:
                # A lane that slept does nothing until it has woken up: the simulated one has no boundary there.
                woke = not index and end.received > before
                factor = STANDSTILL if woke else max(LEAST_FACTOR, (began - idle) / boundary_ns)
                found.append((idle - start, factor))
            factor = max(LEAST_FACTOR, (moment - began) / measured[replica].segments_ns[index])
            found += [(began - start, factor), (moment - start, 1.0)]
            before = moment
        return found


def simulated(
    worker: Worker, calls: list[int], measured: dict[int, Measured], error: dict[int, AnyError],
    objectives: dict[int, Nanoseconds], boundary_ns: Nanoseconds, seed: int = 0, boundary_error: AnyError = EXACT,
) -> dict[int, float]:  # fmt: skip
    """Attainment of these calls by replica in the simulator, for all that the worker has received until the last of them."""
    ended, last = worker.books.ended, max(calls)
    sent = sorted(
        (ended[submit.call].received, submit.call, submit) for submit in worker.sent.values() if submit.call <= last
    )
    start = sent[0][0]
    happenings = tuple(
        Arrive(received - start, each.replica, later_ns=(each.objective or 0) - received - objectives[each.replica])
        for received, _, each in sent
    )
    tenants = []
    for replica, plan in PLANS.items():
        found = measured[replica]
        points = tuple(msgspec.structs.replace(point, shape_bucket="") for point in found.profile.points)
        model = SimulatedModel(tuple(Segment(cost) for cost in found.segments_ns), 1, profile=points)
        tenants.append(Tenant(replica, model, plan.bandwidth, 1, objectives[replica], error=error[replica]))
    scenario = Scenario(tuple(tenants), happenings, seed=seed, boundary_ns=boundary_ns, boundary_error=boundary_error)
    counted = set(calls)
    met: dict[int, list[bool]] = {replica: [] for replica in PLANS}
    for answer in simulate(scenario, audit_every=1 << 20).answers:
        # Requests are numbered as they come.
        if sent[answer.request.call][1] in counted:
            met[answer.request.replica].append(is_met(answer))
    return {replica: sum(each) / len(each) for replica, each in met.items()}


def predicted(measured: dict[int, Measured]) -> dict[int, AnyError]:
    """Costs stray as they did when the models ran alone. Segments stray one by one: by more than their sum does."""
    return {replica: Lognormal(found.sigma * len(found.segments_ns) ** 0.5) for replica, found in measured.items()}


def recorded(pace: list[tuple[Nanoseconds, float]]) -> Recorded:
    """The machine is as slow as it was."""
    moments, factors = zip(*pace, strict=True)
    return Recorded(moments, factors)


def workload(alone: dict[int, Nanoseconds], load: float, seconds: float, seed: int) -> list[tuple[Nanoseconds, int]]:
    """Moments and replicas. alone: what a request takes then. load: of what the lane can do, all tenants' parts being 1.2."""
    chance = np.random.Generator(np.random.PCG64(seed))
    return sorted(
        (moment, replica)
        for replica, plan in PLANS.items()
        for moment in arrivals.gamma(chance, load * plan.part * SECOND / alone[replica], 1.5, 0, int(seconds * SECOND))
    )


def overall(worker: Worker, calls: list[int], by: Mapping[int, float]) -> float:
    """Attainment of all calls, from that by replica."""
    return sum(by[worker.sent[call].replica] for call in calls) / len(calls)


async def objectives_and_load(worker: Worker) -> tuple[dict[int, int], dict[int, int], float]:
    """What requests take alone, their objectives, and a load under which about two thirds of them are met: by trying."""
    calibrated = await worker.calibrate()
    alone = {}
    for replica, calls in calibrated.items():
        done = [end.batch for call in calls if isinstance(end := worker.books.ended[call], Done)]
        alone[replica] = int(statistics.median(batch.ended - batch.started for batch in done))
    objectives = {replica: int(plan.patience * alone[replica]) + 4 * MS for replica, plan in PLANS.items()}
    load = 0.45
    for pilot in range(PILOTS):
        calls = await worker.play(workload(alone, load, PILOT_S, 1000 + pilot), objectives)
        load, aimed = corrected(load, overall(worker, calls, worker.attainment(calls)))
        if aimed:
            break
    return alone, objectives, load


def corrected(load: float, attained: float) -> tuple[float, bool]:
    """The load to try next, and whether that is the same since attainment was as wanted."""
    if attained < AIM[0]:
        return load * 0.75, False
    return (load * 1.2, False) if attained > AIM[1] else (load, True)


async def one_round(
    worker: Worker, seed: int, seconds: float, load: float, alone: dict[int, int], objectives: dict[int, int]
) -> dict[str, Any]:
    """Calibrates, plays, calibrates, simulates."""
    before = await worker.calibrate()
    gc.collect()
    calls = await worker.play(workload(alone, load, seconds, seed), objectives)
    after = await worker.calibrate()
    boundary_ns = worker.boundary_ns(await worker.device_ns())
    measured = worker.measured({replica: before[replica] + after[replica] for replica in PLANS}, boundary_ns)
    given = (objectives, boundary_ns)
    runs = [simulated(worker, calls, measured, predicted(measured), *given, seed) for seed in range(SEEDS)]
    pace = recorded(worker.pace(measured, boundary_ns))
    again = simulated(worker, calls, measured, dict.fromkeys(PLANS, pace), *given, boundary_error=pace)
    mean = {replica: statistics.mean(run[replica] for run in runs) for replica in PLANS}
    real = worker.attainment(calls)
    total = lambda by: overall(worker, calls, by)
    return {"requests": len(calls), "load": round(load, 3), "boundary_us": boundary_ns / 1000,
            "alone_ms": [sum(found.segments_ns) / MS for found in measured.values()],
            "real": real, "predicted": mean, "simulated": again,
            "real_all": total(real), "predicted_all": total(mean), "simulated_all": total(again)}  # fmt: skip


async def main() -> int:
    """Prints both attainments of each round, and how far they are apart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        worker = await Worker.start(Path(folder), cores[-1])
        # Only now: the worker may use no core that we may not.
        os.sched_setaffinity(0, cores[:1])
        alone, objectives, load = await objectives_and_load(worker)
        rounds = []
        for seed in range(arguments.rounds):
            rounds.append(await one_round(worker, seed, arguments.seconds, load, alone, objectives))
            load, _ = corrected(load, rounds[-1]["real_all"])
        await worker.client.stop(1.0)
    tell(rounds)
    return 0


def tell(rounds: list[dict[str, Any]]) -> None:
    """Prints the rounds and what they come to."""
    for each in rounds:
        by = "  ".join(f"{each['real'][r]:6.1%} / {each['simulated'][r]:6.1%}" for r in PLANS)
        total = f"{each['real_all']:6.1%} / {each['simulated_all']:6.1%}, predicted {each['predicted_all']:6.1%}"
        print(f"{each['requests']:5} requests  real / simulated: {by}   all {total}")
    counted = [each for each in rounds if WANTED[0] <= each["real_all"] <= WANTED[1]]
    apart = {
        name: [100 * (each[name] - each["real_all"]) for each in counted] for name in ("simulated_all", "predicted_all")
    }
    middle = lambda values: round(statistics.median(values), 4) if values else None
    requests = sum(each["requests"] for each in counted)
    together = lambda name: sum(each[name] * each["requests"] for each in counted) / requests if requests else None
    told = {
        "benchmark": "simulated_vs_cpu",
        "counted_rounds": len(counted),
        "real": together("real_all"),
        "simulated": together("simulated_all"),
        "predicted": together("predicted_all"),
        "apart_points_median": middle(apart["simulated_all"]),
        "apart_points": [round(each, 1) for each in apart["simulated_all"]],
        "predicted_apart_points_median": middle(apart["predicted_all"]),
        "predicted_apart_points": [round(each, 1) for each in apart["predicted_all"]],
        "rounds": rounds,
    }
    if counted:
        print(
            f"of all requests: {told['real']:.1%} real, {told['simulated']:.1%} simulated, {told['predicted']:.1%} predicted"
        )
    print(f"apart by round: {told['apart_points']} points; {len(rounds) - len(counted)} rounds not counted")
    print(json.dumps(told))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
