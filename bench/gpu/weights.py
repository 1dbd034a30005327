"""Four tenants without reservations, weights 4:2:1:1, all with more to do than there is time for; then one of them stops."""

from __future__ import annotations

from typing import NamedTuple

from bench.gpu.bed import Bed, one_by_one, simulated_model, until
from bench.gpu.figures import Findings, median
from bench.one_worker import OneWorker, Placed, one_worker
from gpu_sharing.simulation.models import SimulatedModel
from gpu_sharing.simulation.run import simulate as run
from gpu_sharing.simulation.scenario import Clients, Scenario, Tenant
from gpu_sharing.units import SECOND, Nanoseconds

WEIGHTS = {1: 4, 2: 2, 3: 1, 4: 1}
LEAVES = 1
CALLERS = 2
PATIENCE: Nanoseconds = 60 * SECOND
WITHIN = 0.03

Used = dict[int, Nanoseconds]


class Round(NamedTuple):
    """Device time by replica, while all four ask, while one of them does not, and while all do again."""

    before: Used
    without: Used
    after: Used


class Samples(NamedTuple):
    """model: as measured when it was loaded."""

    rounds: list[Round]
    boundary_ns: Nanoseconds
    model: SimulatedModel
    span_ns: Nanoseconds


async def measure(bed: Bed) -> Samples:
    """On a real worker."""
    models = [Placed(replica, bed.artefact(16), 0, weight) for replica, weight in WEIGHTS.items()]
    everybody, others = set(WEIGHTS), set(WEIGHTS) - {LEAVES}
    async with one_worker(bed.device, models) as worker:
        batches = await one_by_one(worker, LEAVES, 100)
        rounds = []
        for _ in range(bed.rounds):
            parts = [await _part(bed, worker, who) for who in (everybody, others, everybody)]
            rounds.append(Round(*parts))
        model = simulated_model(worker.loaded[LEAVES].profile.points, 1)
        return Samples(rounds, batches.boundary_ns, model, bed.span_ns)


async def _part(bed: Bed, worker: OneWorker, who: set[int]) -> Used:
    before = await worker.metered()
    end = until(bed.span_ns)
    for replica in who:
        worker.keep_busy(replica, CALLERS, end, PATIENCE)
    # The last of each run while others have nothing to do any more: a few of hundreds.
    after = await worker.metered()
    return {
        replica: after[replica].device_ns - (before[replica].device_ns if replica in before else 0) for replica in who
    }


def simulate(samples: Samples) -> Samples:
    """The same on the simulated device."""
    everybody, others = set(WEIGHTS), set(WEIGHTS) - {LEAVES}
    rounds = [Round(*(_simulated(samples, who) for who in (everybody, others, everybody))) for _ in samples.rounds[:1]]
    return samples._replace(rounds=rounds)


def _simulated(samples: Samples, who: set[int]) -> Used:
    tenants = tuple(
        Tenant(replica, samples.model, 0, weight, objective_ns=PATIENCE)
        for replica, weight in WEIGHTS.items()
        if replica in who
    )
    happenings = tuple(Clients(0, replica, CALLERS, samples.span_ns, 1) for replica in sorted(who))
    outcome = run(Scenario(tenants, happenings, boundary_ns=samples.boundary_ns), audit_every=1 << 20)
    return outcome.used_ns


def off(used: Used) -> float:
    """By how much the part of whoever is furthest from its weight's differs from that, as a part of the latter."""
    total, weights = sum(used.values()), sum(WEIGHTS[replica] for replica in used)
    return max(abs(ns / total / (WEIGHTS[replica] / weights) - 1) for replica, ns in used.items())


def judge(samples: Samples) -> Findings:
    """Pure."""
    together = [part for each in samples.rounds for part in (each.before, each.after) if sum(part.values())]
    without = [each.without for each in samples.rounds if sum(each.without.values())]
    if not together or not without:
        return Findings({}, {}, {"weights": "no device time was used"})
    parts = {
        f"weight {weight}, tenant {replica}": median([part[replica] / sum(part.values()) for part in together])
        for replica, weight in WEIGHTS.items()
    }
    error, after = median([off(part) for part in together]), median([off(part) for part in without])
    figures = {"parts": parts, "off_by_at_most": error, "off_by_at_most_once_one_stopped": after}
    holds = {
        f"within {WITHIN:.0%} of the weights": error["median"] <= WITHIN,
        f"within {WITHIN:.0%} of the weights of those who stay": after["median"] <= WITHIN,
    }
    return Findings(figures, holds, {})
