"""Models that cost what they are told to cost. PURE."""

from __future__ import annotations

import bisect
from typing import Protocol, TypeAlias

import msgspec
import numpy as np

from gpu_sharing.measurements import ProfilePoint
from gpu_sharing.units import Bytes, ComputeUnits, Nanoseconds


class Segment(msgspec.Struct, frozen=True):
    """One segment: fixed_ns whatever the rows, and row_ns for each of them."""

    fixed_ns: Nanoseconds
    row_ns: Nanoseconds = 0

    def cost(self, rows: int) -> Nanoseconds:
        """What it is estimated to take, alone on its lane."""
        return self.fixed_ns + rows * self.row_ns


class SimulatedModel(msgspec.Struct, frozen=True):
    """A model as the arbiter and a device see it.

    max_batch_size: rows a batch may hold; 0: requests run one at a time.
    memory_share: of a segment's time, the part that waits for the device's shared memory; 0 to 1.
    profile: what the arbiter is told beforehand; empty: the costs as they are.
    compute_units: those that the costs hold for. parallel_part: of a segment's time on one unit, what more units share (Amdahl).
    """

    segments: tuple[Segment, ...]
    max_batch_size: int = 0
    weight_bytes: Bytes = 0
    row_activation_bytes: Bytes = 0
    memory_share: float = 0.0
    profile: tuple[ProfilePoint, ...] = ()
    compute_units: ComputeUnits = 1
    parallel_part: float = 0.0

    def on(self, compute_units: ComputeUnits) -> SimulatedModel:
        """The same model as it is on a lane of so many compute units."""
        speed = self._time(compute_units) / self._time(self.compute_units)
        segments = tuple(Segment(round(each.fixed_ns * speed), round(each.row_ns * speed)) for each in self.segments)
        return msgspec.structs.replace(self, segments=segments, compute_units=compute_units)

    def _time(self, compute_units: ComputeUnits) -> float:
        return 1.0 - self.parallel_part + self.parallel_part / compute_units

    def cost(self, rows: int) -> Nanoseconds:
        """Device time of a whole batch, as estimated."""
        return sum(segment.cost(rows) for segment in self.segments)

    def longest_slice(self, rows: int) -> Nanoseconds:
        """Of its segments."""
        return max(segment.cost(rows) for segment in self.segments)

    @property
    def most_rows(self) -> int:
        """Of a batch that joins several requests."""
        return max(1, self.max_batch_size)

    def points(self) -> tuple[ProfilePoint, ...]:
        """Its profile: at 1, 2, 4 … rows and at the most."""
        rows = sorted({min(1 << power, self.most_rows) for power in range(self.most_rows.bit_length() + 1)})
        return self.profile or tuple(map(self._point, rows))

    def _point(self, rows: int) -> ProfilePoint:
        cost_ns = self.cost(rows)
        return ProfilePoint(
            rows=rows,
            shape_bucket="",
            compute_units=self.compute_units,
            p50_ns=cost_ns,
            p99_ns=cost_ns,
            runs=100,
            activation_bytes=rows * self.row_activation_bytes,
            segments_ns=tuple(segment.cost(rows) for segment in self.segments),
        )


class Error(Protocol):
    """How far real costs are from the estimate."""

    def draw(self, chance: np.random.Generator, now: Nanoseconds) -> float:
        """Real cost of a segment that begins now over its estimate."""
        ...

    @property
    def most(self) -> float:
        """No draw is larger."""
        ...


class Bounded(msgspec.Struct, frozen=True, tag=True):
    """Evenly between least and most. Both 1: estimates are exact."""

    least: float = 1.0
    most: float = 1.0

    def draw(self, chance: np.random.Generator, now: Nanoseconds) -> float:  # noqa: ARG002
        """See `Error`."""
        return self.least if self.least == self.most else float(chance.uniform(self.least, self.most))


class Lognormal(msgspec.Struct, frozen=True, tag=True):
    """Median 1, the logarithm's deviation sigma, cut off at `most`."""

    sigma: float
    most: float = 4.0

    def draw(self, chance: np.random.Generator, now: Nanoseconds) -> float:  # noqa: ARG002
        """See `Error`."""
        return min(self.most, float(chance.lognormal(0.0, self.sigma)))


class Recorded(msgspec.Struct, frozen=True, tag=True):
    """As it was measured: how slow the machine was, by moment. at: ascending, as many as factors, at least one."""

    at: tuple[Nanoseconds, ...]
    factors: tuple[float, ...]

    def draw(self, chance: np.random.Generator, now: Nanoseconds) -> float:  # noqa: ARG002
        """See `Error`. The last one measured by now, or the first."""
        return self.factors[max(0, bisect.bisect_right(self.at, now) - 1)]

    @property
    def most(self) -> float:
        """See `Error`."""
        return max(self.factors)


AnyError: TypeAlias = Bounded | Lognormal | Recorded

EXACT = Bounded()
