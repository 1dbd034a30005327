"""What a boundary between two slices costs: within a batch, between batches of one model, and where another one cuts in."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bench.gpu.bed import Bed, of, one_by_one, simulated_model, until
from bench.gpu.figures import Findings, median, quantile, summary_us
from bench.one_worker import Call, OneWorker, Placed, one_worker
from gpu_sharing.simulation.models import SimulatedModel
from gpu_sharing.simulation.run import simulate as run
from gpu_sharing.simulation.scenario import Arrive, Clients, Scenario, Tenant
from gpu_sharing.units import MS, SECOND, US, Nanoseconds

URGENT, LONG = 1, 2
RESERVED = 500
RATE = 50.0
PATIENCE: Nanoseconds = 60 * SECOND
MOST_SLICES = 2


class Part(NamedTuple):
    """lost_ns: of the time the lane had work, what was in no slice. switches: of batch, between two slices.

    waits_ns: of urgent requests that found the lane in the middle of a slice, and no other before them, until they began.
    """

    lost_ns: Nanoseconds
    slices: int
    switches: int
    waits_ns: list[Nanoseconds]


class Round(NamedTuple):
    """before, after: the long model alone. beside: urgent requests cut into its batches."""

    before: Part
    beside: Part
    after: Part


class Samples(NamedTuple):
    """inner_ns: a boundary within a batch, with nobody waiting. longest_slice_ns: that anybody ran, by the profile."""

    rounds: list[Round]
    inner_ns: Nanoseconds
    longest_slice_ns: Nanoseconds
    models: tuple[SimulatedModel, SimulatedModel]
    span_ns: Nanoseconds
    moments: list[list[Nanoseconds]]


async def measure(bed: Bed) -> Samples:
    """On a real worker."""
    models = [Placed(URGENT, bed.artefact(4), RESERVED), Placed(LONG, bed.artefact(64))]
    async with one_worker(bed.device, models) as worker:
        inner = await one_by_one(worker, LONG, 60)
        urgent, long = (simulated_model(worker.loaded[each].profile.points, 1) for each in (URGENT, LONG))
        moments = [bed.moments(RATE, seed) for seed in range(bed.rounds)]
        rounds = []
        for each in moments:
            parts = [await _part(bed, worker, each if cut else []) for cut in (False, True, False)]
            rounds.append(Round(*parts))
        longest = max(urgent.longest_slice(1), long.longest_slice(1))
        return Samples(rounds, inner.boundary_ns, longest, (urgent, long), bed.span_ns, moments)


async def _part(bed: Bed, worker: OneWorker, moments: list[Nanoseconds]) -> Part:
    first, before = len(worker.calls), await worker.metered()
    worker.keep_busy(LONG, 2, until(bed.span_ns), PATIENCE)
    await worker.play(moments, URGENT, 100 * MS)
    after = await worker.metered()
    used = sum(each.device_ns - (before[number].device_ns if number in before else 0) for number, each in after.items())
    return part_of(worker.calls[first:], used)


def part_of(calls: list[Call], used_ns: Nanoseconds) -> Part:
    """Pure. used_ns: by the lane's meter."""
    ran = [call.batch for call in calls if call.reason == "OK"]
    ends = sorted((end, batch.number) for batch in ran for end in batch.segment_ends)
    if not ends:
        return Part(0, 0, 0, [])
    busy_ns = ends[-1][0] - min(batch.started for batch in ran)
    switches = sum(one[1] != two[1] for one, two in itertools.pairwise(ends))
    urgent = [
        (call.received, call.batch.started, call.batch.ended) for call in of(calls, URGENT) if call.reason == "OK"
    ]
    return Part(max(0, busy_ns - used_ns), len(ends), switches, waits_of(urgent, [end for end, _ in ends]))


def waits_of(urgent: Iterable[tuple[Nanoseconds, Nanoseconds, Nanoseconds]], ends: Sequence[Nanoseconds]) -> list[int]:
    """Pure. urgent: when each request came, began and ended. ends: of all slices, ascending.

    How long those waited that had nobody but the running slice before them.
    """
    waits, done = [], 0
    for came, began, ended in sorted(urgent):
        place = bisect.bisect_right(ends, came)
        if came >= done and place < len(ends) and ends[place] <= began:
            waits.append(began - came)
        done = max(done, ended)
    return waits


def simulate(samples: Samples) -> Samples:
    """The same arrivals on the simulated device, where every boundary costs the same."""
    rounds = [
        Round(*(_simulated(samples, each if cut else []) for cut in (False, True, False))) for each in samples.moments
    ]
    return samples._replace(rounds=rounds)


def _simulated(samples: Samples, moments: list[Nanoseconds]) -> Part:
    urgent, long = samples.models
    tenants = (Tenant(URGENT, urgent, RESERVED, objective_ns=100 * MS), Tenant(LONG, long, objective_ns=PATIENCE))
    happenings = (*(Arrive(moment, URGENT) for moment in moments), Clients(0, LONG, 2, samples.span_ns, 1))
    outcome = run(Scenario(tenants, happenings, boundary_ns=samples.inner_ns), audit_every=1 << 20)
    slices = sorted(outcome.slices, key=lambda ran: ran.started)
    busy = slices[-1].ended - slices[0].started
    switches = sum(one.batch != two.batch for one, two in itertools.pairwise(slices))
    urgent = [
        (answer.request.arrived, answer.started, answer.moment)
        for answer in outcome.of(URGENT)
        if answer.started is not None
    ]
    waits = waits_of(urgent, [ran.ended for ran in slices])
    return Part(busy - sum(outcome.busy_ns), len(slices), switches, waits)


def judge(samples: Samples) -> Findings:
    """Pure."""
    rounds = [each for each in samples.rounds if all(part.slices for part in each)]
    if not rounds:
        return Findings({}, {}, {"switching": "no slice ran"})
    waits = [wait for each in rounds for wait in each.beside.waits_ns]
    figures: dict[str, Any] = {
        "within_a_batch_us": samples.inner_ns / US,
        "between_slices_alone_us": median(
            [part.lost_ns / part.slices / US for each in rounds for part in (each.before, each.after)]
        ),
        "between_slices_with_switches_us": median([each.beside.lost_ns / each.beside.slices / US for each in rounds]),
        "switches_of_all_boundaries": median([each.beside.switches / each.beside.slices for each in rounds]),
        "longest_slice_us": samples.longest_slice_ns / US,
        "wait_for_a_boundary": summary_us(waits),
    }
    if not waits:
        return Findings(
            figures, {}, {"wait for a boundary": "no urgent request found the lane in the middle of a slice"}
        )
    slices = quantile(waits, 0.99) / samples.longest_slice_ns
    figures["wait_p99_in_longest_slices"] = round(slices, 2)
    return Findings(
        figures, {f"a wait for a boundary, p99, is {MOST_SLICES} slices at most": slices <= MOST_SLICES}, {}
    )
