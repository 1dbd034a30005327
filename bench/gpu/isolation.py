"""A small model within its reservation beside one that floods: alone, beside it, alone; and beside it in order of arrival."""

from __future__ import annotations

from typing import Any, NamedTuple

from bench.gpu.bed import Bed, of, one_by_one, simulated_model, until
from bench.gpu.figures import Findings, median, quantile, ratios, summary_us
from bench.one_worker import OneWorker, Placed, one_worker
from gpu_sharing.simulation.models import SimulatedModel
from gpu_sharing.simulation.run import simulate as run
from gpu_sharing.simulation.scenario import Arrive, Clients, Scenario, Tenant
from gpu_sharing.units import MS, SECOND, US, Nanoseconds

SMALL, FLOOD = 1, 2
RESERVED = 300
PART = 0.15
CALLERS = 4
FLOOD_PATIENCE: Nanoseconds = 60 * SECOND
MOST_RATIO = 1.25
LEAST_MET = 0.995


class Part(NamedTuple):
    """Of a round: latencies of the small model's requests, how many of them there were and were in time; the flood's batches."""

    latencies_ns: list[int]
    asked: int
    met: int
    flood: int


class Round(NamedTuple):
    """before, after: alone. beside: the flood. arrival_order: beside it, on a lane that promises nothing."""

    before: Part
    beside: Part
    after: Part
    arrival_order: Part


class Samples(NamedTuple):
    """models: as measured when they were loaded. moments: of the arrivals, by round."""

    rounds: list[Round]
    objective_ns: Nanoseconds
    boundary_ns: Nanoseconds
    models: tuple[SimulatedModel, SimulatedModel]
    moments: list[list[Nanoseconds]]
    span_ns: Nanoseconds


async def measure(bed: Bed) -> Samples:
    """On real workers."""
    models = [Placed(SMALL, bed.artefact(8), RESERVED), Placed(FLOOD, bed.artefact(64))]
    async with one_worker(bed.device, models) as worker, one_worker(bed.device, models, "arrival_order") as other:
        batches = await one_by_one(worker, SMALL, 100)
        small, flood = (simulated_model(worker.loaded[each].profile.points, 1) for each in (SMALL, FLOOD))
        alone_ns = max(1, batches.wall_ns // max(1, batches.batches))
        # What the promise asks for: the burst at the reservation's pace, and two longest slices; twice that for chance.
        objective_ns = 2 * (alone_ns * 1000 // RESERVED + 2 * flood.longest_slice(1)) + 4 * MS
        moments = [bed.moments(PART * SECOND / alone_ns, seed) for seed in range(bed.rounds)]
        rounds = []
        for each in moments:
            before = await _part(bed, worker, each, objective_ns, flood=False)
            beside = await _part(bed, worker, each, objective_ns, flood=True)
            after = await _part(bed, worker, each, objective_ns, flood=False)
            rounds.append(Round(before, beside, after, await _part(bed, other, each, objective_ns, flood=True)))
        return Samples(rounds, objective_ns, batches.boundary_ns, (small, flood), moments, bed.span_ns)


async def _part(
    bed: Bed, worker: OneWorker, moments: list[Nanoseconds], objective_ns: Nanoseconds, *, flood: bool
) -> Part:
    first = len(worker.calls)
    if flood:
        worker.keep_busy(FLOOD, CALLERS, until(bed.span_ns), FLOOD_PATIENCE)
    await worker.play(moments, SMALL, objective_ns)
    await worker.drained()
    calls = worker.calls[first:]
    mine = of(calls, SMALL)
    ran = [call.latency_ns for call in mine if call.reason == "OK"]
    return Part(
        ran, len(mine), sum(call.is_met for call in mine), sum(call.reason == "OK" for call in of(calls, FLOOD))
    )


def simulate(samples: Samples) -> Samples:
    """The same arrivals on the simulated device."""
    rounds = [
        Round(
            _simulated(samples, each, flood=False), _simulated(samples, each, flood=True),
            _simulated(samples, each, flood=False), Part([], 0, 0, 0),
        )
        for each in samples.moments
    ]  # fmt: skip
    return samples._replace(rounds=rounds)


def _simulated(samples: Samples, moments: list[Nanoseconds], *, flood: bool) -> Part:
    small, large = samples.models
    tenants = (
        Tenant(SMALL, small, RESERVED, objective_ns=samples.objective_ns),
        Tenant(FLOOD, large, objective_ns=FLOOD_PATIENCE),
    )
    arrive = tuple(Arrive(moment, SMALL) for moment in moments)
    clients = (Clients(0, FLOOD, CALLERS, samples.span_ns, 1),) if flood else ()
    outcome = run(Scenario(tenants, (*arrive, *clients), boundary_ns=samples.boundary_ns), audit_every=1 << 20)
    mine = [answer for answer in outcome.of(SMALL) if answer.reason == "OK"]
    met = sum(answer.moment <= (answer.request.objective or 0) for answer in mine)
    latencies = [answer.moment - answer.request.arrived for answer in mine]
    flooded = sum(answer.reason == "OK" for answer in outcome.of(FLOOD))
    return Part(latencies, len(moments), met, flooded)


def judge(samples: Samples) -> Findings:
    """Pure."""
    rounds = [each for each in samples.rounds if all(part.latencies_ns for part in each[:3])]
    not_measured = {} if rounds else {"isolation": "no round had requests of the small model that were answered"}
    p99 = {name: [quantile(getattr(each, name).latencies_ns, 0.99) for each in rounds] for name in Round._fields[:3]}
    slower = ratios(p99["beside"], list(zip(p99["before"], p99["after"], strict=True)))
    asked, met = (sum(getattr(each.beside, name) for each in samples.rounds) for name in ("asked", "met"))
    figures: dict[str, Any] = {
        "objective_us": samples.objective_ns / US,
        "boundary_us": samples.boundary_ns / US,
        "p99_beside_over_alone": median(slower),
        "met_beside_flood": met / asked if asked else None,
        "alone": summary_us([ns for each in rounds for ns in (*each.before.latencies_ns, *each.after.latencies_ns)]),
        "beside_flood": summary_us([ns for each in rounds for ns in each.beside.latencies_ns]),
        "flood_answers_a_round": median([each.beside.flood for each in rounds]),
    }
    order = [each.arrival_order for each in samples.rounds if each.arrival_order.asked]
    if order:
        figures["beside_flood_in_arrival_order"] = summary_us([ns for each in order for ns in each.latencies_ns])
        figures["met_in_arrival_order"] = sum(each.met for each in order) / sum(each.asked for each in order)
    holds = {f"within its objective in {LEAST_MET:.1%} beside the flood": bool(asked) and met >= LEAST_MET * asked}
    return Findings(figures, holds, not_measured)
