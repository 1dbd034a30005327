"""Batch against latency: 1 to 16 callers of one model that may batch, and of the same model that may not."""

from __future__ import annotations

from typing import Any, NamedTuple

from bench.gpu.bed import Bed, of, one_by_one, simulated_model, until
from bench.gpu.figures import Findings, median, ratios, summary_us
from bench.one_worker import OneWorker, Placed, one_worker
from gpu_sharing.simulation.models import SimulatedModel
from gpu_sharing.simulation.run import simulate as run
from gpu_sharing.simulation.scenario import Clients, Scenario, Tenant
from gpu_sharing.units import SECOND, Nanoseconds

SINGLE, BATCHED = 1, 2
MOST_ROWS = 16
CALLERS = (1, 4, 16)
PATIENCE: Nanoseconds = 60 * SECOND


class Part(NamedTuple):
    """Answers, what they took, and in how many batches they came."""

    latencies_ns: list[Nanoseconds]
    batches: int


class Round(NamedTuple):
    """callers: who asked at once. before, after: without batches."""

    callers: int
    before: Part
    batched: Part
    after: Part


class Samples(NamedTuple):
    """models: as measured when they were loaded, without batches and with."""

    rounds: list[Round]
    boundary_ns: Nanoseconds
    models: dict[int, SimulatedModel]
    span_ns: Nanoseconds


async def measure(bed: Bed) -> Samples:
    """On a real worker."""
    path = bed.artefact(16)
    models = [Placed(SINGLE, path, digest="single"), Placed(BATCHED, path, most_rows=MOST_ROWS, digest="batched")]
    async with one_worker(bed.device, models) as worker:
        batches = await one_by_one(worker, SINGLE, 60)
        rounds = []
        for _ in range(bed.rounds):
            for callers in CALLERS:
                parts = [await _part(bed, worker, who, callers) for who in (SINGLE, BATCHED, SINGLE)]
                rounds.append(Round(callers, *parts))
        found = {
            replica: simulated_model(worker.loaded[replica].profile.points, most)
            for replica, most in ((SINGLE, 1), (BATCHED, MOST_ROWS))
        }
        return Samples(rounds, batches.boundary_ns, found, bed.span_ns)


async def _part(bed: Bed, worker: OneWorker, replica: int, callers: int) -> Part:
    first = len(worker.calls)
    worker.keep_busy(replica, callers, until(bed.span_ns), PATIENCE)
    await worker.drained()
    ran = [call for call in of(worker.calls[first:], replica) if call.reason == "OK"]
    return Part([call.latency_ns for call in ran], len({call.batch.number for call in ran}))


def simulate(samples: Samples) -> Samples:
    """The same callers on the simulated device."""
    rounds = [
        Round(callers, *(_simulated(samples, who, callers) for who in (SINGLE, BATCHED, SINGLE))) for callers in CALLERS
    ]
    return samples._replace(rounds=rounds)


def _simulated(samples: Samples, replica: int, callers: int) -> Part:
    tenant = Tenant(replica, samples.models[replica], objective_ns=PATIENCE)
    clients = Clients(0, replica, callers, samples.span_ns, 1)
    outcome = run(Scenario((tenant,), (clients,), boundary_ns=samples.boundary_ns), audit_every=1 << 20)
    answers = [answer for answer in outcome.answers if answer.reason == "OK"]
    latencies = [answer.moment - answer.request.arrived for answer in answers]
    return Part(latencies, len({ran.batch for ran in outcome.slices}))


def judge(samples: Samples) -> Findings:
    """Pure."""
    figures: dict[str, Any] = {}
    not_measured = {}
    for callers in CALLERS:
        rounds = [
            each for each in samples.rounds if each.callers == callers and all(part.latencies_ns for part in each[1:])
        ]
        if not rounds:
            not_measured[f"{callers} callers"] = "nobody was answered"
            continue
        more = ratios(
            [len(each.batched.latencies_ns) for each in rounds],
            [(len(each.before.latencies_ns), len(each.after.latencies_ns)) for each in rounds],
        )
        figures[f"{callers} callers"] = {
            "throughput_over_unbatched": median(more),
            "requests_a_batch": median([len(each.batched.latencies_ns) / each.batched.batches for each in rounds]),
            "latency_batched": summary_us([ns for each in rounds for ns in each.batched.latencies_ns]),
            "latency_unbatched": summary_us(
                [ns for each in rounds for ns in (*each.before.latencies_ns, *each.after.latencies_ns)]
            ),
        }
    return Findings(figures, {}, not_measured)
