"""Draws who ran when on a lane, as SVG: `python -m bench.timeline [simulated|measured] > docs/images/NAME.svg`.

simulated: a tenant within its reservation beside one that floods and a batch job, on the simulated device. measured: the same
on a real worker process of this machine, drawn from the slices that its answers tell of.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from gpu_sharing.simulation.models import Segment, SimulatedModel
from gpu_sharing.simulation.run import simulate
from gpu_sharing.simulation.scenario import Arrive, Scenario, Tenant
from gpu_sharing.units import MS, Nanoseconds

SPAN_NS: Nanoseconds = 120 * MS
COLOURS = ("#2a78d6", "#eb6834", "#4a9a62", "#8e6bbf")
ROW, LEFT, WIDTH, TOP = 44, 150, 1000, 40


class Ran(NamedTuple):
    """A slice."""

    row: int
    started: Nanoseconds
    ended: Nanoseconds


class Asked(NamedTuple):
    """A request: from its arrival to its answer. by: its objective; None: class `batch`. met: None where it was refused."""

    row: int
    arrived: Nanoseconds
    answered: Nanoseconds
    by: Nanoseconds | None
    met: bool | None


def draw(title: str, names: Sequence[str], slices: Iterable[Ran], requests: Iterable[Asked], span: Nanoseconds) -> str:
    """The picture: a row for each tenant, a box for each slice, a line for each request from arrival to answer."""
    height = TOP + ROW * len(names) + 34
    x = lambda moment: LEFT + (WIDTH - LEFT - 20) * min(max(moment, 0), span) / span
    y = lambda row: TOP + ROW * row
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fcfcfb"/>',
        f'<text x="12" y="20" fill="#222">{title}</text>',
    ]
    for row, name in enumerate(names):
        parts.append(f'<text x="12" y="{y(row) + 26}" fill="#222">{name}</text>')
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 20}" y1="{y(row) + 34}" y2="{y(row) + 34}" stroke="#ddd"/>')
    for ran in slices:
        if ran.started < span:
            width = max(0.6, x(ran.ended) - x(ran.started) - 0.6)
            parts.append(
                f'<rect x="{x(ran.started):.1f}" y="{y(ran.row) + 14}" width="{width:.1f}" height="20" '
                f'fill="{COLOURS[ran.row % len(COLOURS)]}"/>'
            )
    for asked in requests:
        if asked.arrived < span:
            parts += _request(asked, x, y(asked.row) + 8)
    for tick in range(0, span // MS + 1, 20):
        parts.append(
            f'<text x="{x(tick * MS):.0f}" y="{height - 12}" text-anchor="middle" fill="#777">{tick} ms</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _request(asked: Asked, place: Callable[[Nanoseconds], float], at: int) -> list[str]:
    colour = {True: "#222", False: "#c0392b", None: "#c0392b"}[asked.met]
    first, last = place(asked.arrived), place(asked.answered)
    parts = [
        f'<line x1="{first:.1f}" x2="{last:.1f}" y1="{at}" y2="{at}" stroke="{colour}" stroke-width="1"/>',
        f'<circle cx="{first:.1f}" cy="{at}" r="2.2" fill="{colour}"/>',
    ]
    if asked.met is None:
        parts.append(f'<text x="{first + 3:.1f}" y="{at + 3}" fill="{colour}" font-size="9">×</text>')
    elif asked.by is not None:
        due = place(asked.by)
        parts.append(f'<line x1="{due:.1f}" x2="{due:.1f}" y1="{at - 4}" y2="{at + 4}" stroke="{colour}"/>')
    return parts


def simulated() -> str:
    """From a simulated run."""
    small, large = SimulatedModel((Segment(MS),) * 4), SimulatedModel((Segment(2 * MS),) * 8)
    tenants = (
        Tenant(1, small, 400, objective_ns=20 * MS),
        Tenant(2, large, 300, objective_ns=90 * MS),
        Tenant(3, large),
    )
    happenings = (
        *(Arrive(10 * MS + each * 25 * MS, 1) for each in range(5)),
        *(Arrive(each // 4 * 40 * MS, 2) for each in range(12)),
        *(Arrive(0, 3) for _ in range(3)),
    )
    outcome = simulate(Scenario(tenants, happenings))
    slices = [Ran(ran.replica - 1, ran.started, ran.ended) for ran in outcome.slices]
    requests = [
        Asked(
            answer.request.replica - 1,
            answer.request.arrived,
            answer.moment,
            answer.request.objective,
            None
            if answer.reason != "OK"
            else answer.request.objective is None or answer.moment <= answer.request.objective,
        )
        for answer in outcome.answers
    ]
    title = "Simulated: a tenant with 0.4 of the lane, one that floods beyond its 0.3, and a batch job"
    return draw(title, ("reserved 0.4", "floods, reserved 0.3", "batch"), slices, requests, SPAN_NS)


async def measured() -> str:
    """From a real worker process: the second tenant floods, the third is a batch job."""
    from bench.simulated_vs_cpu import PLANS, Worker
    from gpu_sharing.worker.messages import Done

    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        worker = await Worker.start(Path(folder), cores[-1])
        os.sched_setaffinity(0, cores[:1])
        moments = sorted(
            [(10 * MS + each * 25 * MS, 1) for each in range(5)]
            + [(each // 6 * 40 * MS, 2) for each in range(18)]
            + [(0, 3)] * 3
        )
        objectives: dict[int, Nanoseconds | None] = {1: 20 * MS, 2: 90 * MS, 3: None}
        calls = await worker.play(moments, objectives)
        await worker.client.stop(1.0)
    start = min(worker.sent[call].arrived for call in calls)
    slices: list[Ran] = []
    requests: list[Asked] = []
    ends = sorted(
        {moment for end in worker.books.ended.values() if isinstance(end, Done) for moment in end.batch.segment_ends}
    )
    for call in calls:
        submit, end = worker.sent[call], worker.books.ended[call]
        row, due = submit.replica - 1, submit.objective
        by = None if due is None else due - start
        if not isinstance(end, Done):
            requests.append(Asked(row, submit.arrived - start, end.received - start, by, None))
            continue
        met = due is None or end.batch.ended <= due
        requests.append(Asked(row, submit.arrived - start, end.batch.ended - start, by, met))
        for moment in end.batch.segment_ends:
            # A slice began no earlier than the last one on the lane ended.
            before = max((each for each in ends if each < moment), default=end.batch.started)
            slices.append(Ran(row, max(before, end.batch.started) - start, moment - start))
    blocks = ", ".join(str(plan.blocks) for plan in PLANS.values())
    title = f"Measured on one processor core: perceptrons of {blocks} blocks; reserved 0.3, flooding beyond 0.3, batch"
    return draw(title, ("reserved 0.3", "floods, reserved 0.3", "batch"), slices, requests, 2 * SPAN_NS)


def main() -> int:
    """Writes the picture to standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("simulated", "measured"), nargs="?", default="simulated")
    arguments = parser.parse_args()
    sys.stdout.write(simulated() if arguments.what == "simulated" else asyncio.run(measured()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
