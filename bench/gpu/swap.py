"""More models than memory: weights come when they are asked for, and whoever is needed least goes.

On a CUDA device 100 models of about 90 MB with memory for 20; elsewhere fewer and smaller ones, so that the same code runs. Beside
what was measured, the simulated device runs the same arrivals with the costs and the bus that were measured, and 100 models of 90
MB with memory for 20 with those that are stated in `STATED`, which nobody has measured.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, NamedTuple

from bench.gpu.bed import Bed, one_by_one, simulated_model
from bench.gpu.figures import Findings, quantile
from bench.gpu.workload import Arrivals, Window, arrivals, by_rank, counts_of
from bench.one_worker import OneWorker, Placed, one_worker
from gpu_sharing.simulation.models import Segment, SimulatedModel
from gpu_sharing.simulation.run import is_met
from gpu_sharing.simulation.swapping import simulate_swapping
from gpu_sharing.units import MS, SECOND, US, Bytes, GiB, MiB, Nanoseconds
from gpu_sharing.worker.messages import Moved

OBJECTIVE: Nanoseconds = 200 * MS
LEAST_MET = 0.99
MOST_LOAD = 0.3
"""Of the lane, on average, by what a request takes alone."""
A_MODEL_PER_S = 1.4
"""Requests of each model, on average: time is compressed, and rates with it."""
SLACK = 8
"""Parts of a model's weights, by one of which memory is larger than for so many models: for what their batches need."""


class Size(NamedTuple):
    """models, and memory for so many (room), each of so many blocks of 2 MiB."""

    models: int
    room: int
    blocks: int


REAL = {"cpu": Size(12, 4, 2)}
ON_GPU = Size(100, 20, 45)
STATED_MODEL = SimulatedModel((Segment(300_000, 50_000),) * 6, 8, 90_000_000)
STATED_BUSES = (25e9, 12e9, 4e9, 1e9)
STATED_SPAN: Nanoseconds = 120 * SECOND


class Part(NamedTuple):
    """Of one run: how long each request took, how many were in time, of how many; what was moved meanwhile."""

    latencies_ns: list[Nanoseconds]
    met: int
    asked: int
    fills: int
    evictions: int
    copying_ns: Nanoseconds
    span_ns: Nanoseconds


class Samples(NamedTuple):
    """parts: by what was run. size_bytes: of one model's weights; room_bytes: for weights. bytes_per_s: of fills, as measured.

    arrivals: that were played. stated: the trace's window, in words.
    """

    parts: dict[str, Part]
    arrivals: Arrivals
    model: SimulatedModel
    size_bytes: Bytes
    room_bytes: Bytes
    bytes_per_s: float
    boundary_ns: Nanoseconds
    models: int
    trace: Path | None
    stated: str


async def measure(bed: Bed) -> Samples:
    """On a real worker."""
    size = REAL.get(bed.device.backend, ON_GPU)
    path = bed.artefact(size.blocks)
    async with one_worker(bed.device, [Placed(1, path)]) as worker:
        batches = await one_by_one(worker, 1, 40)
        model = simulated_model(worker.loaded[1].profile.points, 1)
        weight_bytes = worker.loaded[1].profile.weight_bytes
        charged = worker.loaded[1].memory_bytes
    alone_ns = max(1, batches.wall_ns // max(1, batches.batches))
    per_s = round(min(MOST_LOAD * SECOND / alone_ns, A_MODEL_PER_S * size.models), 3)
    window = Window(size.models, bed.span_ns * bed.rounds, per_s)
    moments = arrivals(_counts(bed.trace, window), window)
    memory_bytes = size.room * weight_bytes + weight_bytes // SLACK + size.models * (charged - weight_bytes)
    host_bytes = -(-(size.models + 1) * (weight_bytes + 2 * MiB) // MiB) * MiB
    async with one_worker(bed.device, memory_bytes=memory_bytes, host_bytes=host_bytes) as worker:
        await worker.load(Placed(number + 1, path, digest=f"{number}") for number in range(size.models))
        part, moved = await _played(worker, moments, window.span_ns)
    fills = [each for each in moved if each.is_in]
    bytes_per_s = sum(each.size_bytes for each in fills) * SECOND / max(1, sum(each.took_ns for each in fills))
    name = f"{size.models} models of {weight_bytes / 1e6:.0f} MB with memory for {size.room}"
    return Samples(
        {name: part}, moments, model, weight_bytes, size.room * weight_bytes + weight_bytes // SLACK,
        bytes_per_s or STATED_BUSES[0], batches.boundary_ns, size.models, bed.trace, window.told(_source(bed.trace)),
    )  # fmt: skip


async def _played(worker: OneWorker, moments: Arrivals, span_ns: Nanoseconds) -> tuple[Part, list[Moved]]:
    first, moved_before, start = len(worker.calls), len(worker.moves), time.monotonic_ns()
    for moment, number in moments:
        if (wait := start + moment - time.monotonic_ns()) > 0:
            await asyncio.sleep(wait / SECOND)
        worker.send(number + 1, OBJECTIVE)
    await worker.drained()
    calls, moved = worker.calls[first:], worker.moves[moved_before:]
    fills = [each for each in moved if each.is_in]
    part = Part(
        [call.latency_ns for call in calls if call.reason == "OK"], sum(call.is_met for call in calls), len(calls),
        len(fills), len(moved) - len(fills), sum(each.took_ns for each in fills), span_ns,
    )  # fmt: skip
    return part, moved


def simulate(samples: Samples) -> Samples:
    """The same arrivals on the simulated device; and what is stated."""
    (name,) = samples.parts
    sizes = SimulatedModel(samples.model.segments, samples.model.max_batch_size, samples.size_bytes)
    parts = {
        name: _simulated(
            [sizes] * samples.models, samples.arrivals, samples.room_bytes, samples.bytes_per_s, samples.boundary_ns, 1
        )
    }
    window = Window(ON_GPU.models, STATED_SPAN, A_MODEL_PER_S * ON_GPU.models)
    moments = arrivals(_counts(samples.trace, window), window)
    for bus in STATED_BUSES:
        told = (
            f"stated: 100 models of 90 MB with memory for 20, {bus / 1e9:g} GB/s, {window.told(_source(samples.trace))}"
        )
        models, room = [STATED_MODEL] * ON_GPU.models, ON_GPU.room * STATED_MODEL.weight_bytes
        parts[told] = _simulated(models, moments, room, bus, 50_000, 2)
    return samples._replace(parts=parts)


def _simulated(
    models: list[SimulatedModel], moments: Arrivals, room: Bytes, bus: float, boundary_ns: Nanoseconds, ahead: int
) -> Part:
    told = simulate_swapping(
        models, moments, objective_ns=OBJECTIVE, room_bytes=room, bytes_per_s=bus, memory_bytes=64 * GiB,
        boundary_ns=boundary_ns, ahead=ahead,
    )  # fmt: skip
    took = [answer.moment - answer.request.arrived for answer in told.answers if answer.reason == "OK"]
    met = sum(map(is_met, told.answers))
    return Part(took, met, len(moments), told.fills, told.evictions, told.copying_ns, told.ended)


def judge(samples: Samples) -> Findings:
    """Pure."""
    figures: dict[str, Any] = {"arrivals": samples.stated}
    holds, missing = {}, {}
    for name, part in samples.parts.items():
        if not part.latencies_ns:
            missing[name] = "nobody was answered"
            continue
        figures[name] = {
            "requests": part.asked,
            "within_objective": round(part.met / part.asked, 5),
            "p50_us": round(quantile(part.latencies_ns, 0.5) / US, 1),
            "latency_p99_us": round(quantile(part.latencies_ns, 0.99) / US, 1),
            "fills": part.fills,
            "evictions": part.evictions,
            "requests_a_fill": round(part.asked / max(1, part.fills), 2),
            "mean_fill_ms": round(part.copying_ns / max(1, part.fills) / MS, 3),
            "bus_busy": round(part.copying_ns / max(1, part.span_ns), 4),
        }
        told = name.split(", minutes")[0]
        holds[f"{told}: {LEAST_MET:.0%} within {OBJECTIVE // MS} ms"] = part.met >= LEAST_MET * part.asked
    return Findings(figures, holds, missing)


def _counts(trace: Path | None, window: Window) -> Any:
    return by_rank(window) if trace is None else counts_of(trace, window)


def _source(trace: Path | None) -> str:
    return "no trace: rates by one over the rank" if trace is None else trace.name
