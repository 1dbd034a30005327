"""What every scenario stands on: the device, artefacts, how long and how often; and the simulated device with measured costs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.gpu.figures import Batches
from bench.models import exported_perceptron
from bench.one_worker import WIDTH, Call, OneWorker
from gpu_sharing.devices.base import Device
from gpu_sharing.measurements import ProfilePoint
from gpu_sharing.simulation import arrivals
from gpu_sharing.simulation.models import Segment, SimulatedModel
from gpu_sharing.units import SECOND, Nanoseconds


@dataclass
class Bed:
    """folder: for artefacts. rounds: off/on/off so often. seconds: of each part of a round. trace: calls of functions by minute."""

    device: Device
    folder: Path
    rounds: int
    seconds: float
    trace: Path | None = None
    _artefacts: dict[tuple[int, int], Path] = field(default_factory=dict)

    @property
    def span_ns(self) -> Nanoseconds:
        """Of each part of a round."""
        return int(self.seconds * SECOND)

    def artefact(self, blocks: int, seed: int = 0) -> Path:
        """A perceptron of so many blocks of Linear 256 → 1024 → 256."""
        if (blocks, seed) not in self._artefacts:
            path = self.folder / f"{blocks}_{seed}.pt2"
            self._artefacts[blocks, seed] = exported_perceptron(path, WIDTH, 1024, blocks, seed)
        return self._artefacts[blocks, seed]

    def moments(self, rate: float, seed: int) -> list[Nanoseconds]:
        """Of requests that come at this rate, as chance has it, during one part of a round."""
        chance = np.random.Generator(np.random.PCG64(seed))
        return list(arrivals.gamma(chance, rate, 1.0, 0, self.span_ns))


async def one_by_one(worker: OneWorker, replica: int, runs: int) -> Batches:
    """Runs requests one after another: what their batches took, by the lane's clock and by its meter."""
    before = (await worker.metered()).get(replica)
    first = len(worker.calls)
    for _ in range(runs):
        worker.send(replica, 10 * SECOND)
        await worker.drained()
    after = (await worker.metered())[replica]
    batches = [call.batch for call in worker.calls[first:] if call.reason == "OK"]
    return Batches(
        sum(batch.ended - batch.started for batch in batches),
        after.device_ns - (0 if before is None else before.device_ns),
        len(batches),
        sum(len(batch.segment_ends) for batch in batches),
    )


def simulated_model(points: Sequence[ProfilePoint], most_rows: int) -> SimulatedModel:
    """A model that costs what the worker measured when it loaded one: a line through the first and the last of its points."""
    found = sorted((point for point in points if point.segments_ns), key=lambda point: point.rows)
    first, last = found[0], found[-1]
    more = max(1, last.rows - first.rows)
    segments = []
    for one, many in zip(first.segments_ns, last.segments_ns, strict=True):
        row_ns = max(0, many - one) // more if last.rows > first.rows else 0
        segments.append(Segment(max(1, one - first.rows * row_ns), row_ns))
    return SimulatedModel(tuple(segments), most_rows)


def of(calls: Iterable[Call], replica: int) -> list[Call]:
    """A replica's."""
    return [call for call in calls if call.replica == replica]


def until(span_ns: Nanoseconds) -> Nanoseconds:
    """So long from now."""
    return time.monotonic_ns() + span_ns
