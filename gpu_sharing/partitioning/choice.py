"""Which layout fits which demand. PURE.

A layout is judged by laying the models out on its lanes, the most demanding first, and counting what is then amiss: models
that have no place (memory, their tenant's share, a wall they asked for), models on fewer units than their knee-size, those of
tenants with a reservation before others; then how busy the busiest lane would be. Another layout is better where it has less
amiss, or as much and, where the busiest lane is busy at all, one that is clearly less so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gpu_sharing.partitioning.knee import Measured, expected_ns, knee_size
from gpu_sharing.units import Bytes, ComputeUnits, Millidevices, Nanoseconds

BUSY = 0.5
"""A lane that is in use for less of the time is not worth a change."""
CLEARLY = 0.8
"""The busiest lane must come down to this part of what it is."""


class Part(NamedTuple):
    """A lane as a place. memory_bytes 0: not told, and not checked."""

    lane: int
    worker: int
    compute_units: ComputeUnits
    capacity: Millidevices
    memory_bytes: Bytes = 0


@dataclass(frozen=True, slots=True)
class Want:
    """A model that is to live on the device.

    bandwidth: what its tenant needs on a lane where any model of it lives. isolated: on a worker without other tenants.
    measured: ascending by units. busy: the part of the time for which it used a lane of `busy_units`.
    """

    name: str
    tenant: str
    bandwidth: Millidevices = 0
    memory_bytes: Bytes = 0
    isolated: bool = False
    objective_ns: Nanoseconds | None = None
    measured: tuple[Measured, ...] = ()
    busy: float = 0.0
    busy_units: ComputeUnits = 1

    def knee(self, most_units: ComputeUnits) -> ComputeUnits:
        """Units that it needs to meet its objective; 0 where any number is as good."""
        return 0 if self.objective_ns is None else knee_size(self.measured, self.objective_ns, most_units) or 0

    def busy_on(self, units: ComputeUnits) -> float:
        """The part of the time for which it would use a lane of so many units."""
        measured = self.measured or (Measured(self.busy_units, 1_000_000),)
        there, here = expected_ns(measured, units), expected_ns(measured, self.busy_units)
        return self.busy * there / here if there and here else self.busy


@dataclass(frozen=True, slots=True)
class Fit:
    """How a layout serves its demand. amiss: less is better: without a place, below the knee-size; each first of tenants with a
    reservation, then of all. busiest: of the lanes. lanes: where each model went."""

    amiss: tuple[int, int, int, int]
    busiest: float
    unplaced: tuple[str, ...]
    below_knee: tuple[str, ...]
    lanes: dict[str, int]


@dataclass(slots=True)
class _Filling:
    part: Part
    free_bytes: Bytes
    busy: float = 0.0
    grants: dict[str, Millidevices] = field(default_factory=dict)

    def extra(self, want: Want) -> Millidevices:
        return max(0, want.bandwidth - self.grants.get(want.tenant, 0))

    def has_room(self, want: Want) -> bool:
        granted = sum(self.grants.values()) + self.extra(want)
        return granted <= self.part.capacity and (not self.part.memory_bytes or want.memory_bytes <= self.free_bytes)

    def take(self, want: Want) -> None:
        self.grants[want.tenant] = max(want.bandwidth, self.grants.get(want.tenant, 0))
        self.free_bytes -= want.memory_bytes
        self.busy += want.busy_on(self.part.compute_units)


def fit(parts: Sequence[Part], wants: Iterable[Want], most_units: ComputeUnits) -> Fit:
    """Lays models out on a layout's lanes. most_units: of the largest lane of any layout, beyond which no knee-size lies."""
    lanes = [_Filling(part, part.memory_bytes) for part in parts]
    walls: dict[int, set[tuple[str, bool]]] = {}
    placed: dict[str, int] = {}
    unplaced: list[Want] = []
    below: list[Want] = []
    knees = {want.name: want.knee(most_units) for want in wants}
    for want in sorted(wants, key=lambda each: (-knees[each.name], -each.bandwidth, -each.busy, each.name)):
        open_to = [lane for lane in lanes if lane.has_room(want) and _allows(walls.get(lane.part.worker, set()), want)]
        if not open_to:
            unplaced.append(want)
            continue
        best = min(open_to, key=lambda lane: _rank(lane, want, knees[want.name]))
        best.take(want)
        walls.setdefault(best.part.worker, set()).add((want.tenant, want.isolated))
        placed[want.name] = best.part.lane
        if best.part.compute_units < knees[want.name]:
            below.append(want)
    busiest = max((lane.busy for lane in lanes), default=0.0)
    amiss = (_promised(unplaced), len(unplaced), _promised(below), len(below))
    return Fit(amiss, busiest, _names(unplaced), _names(below), placed)


def is_better(other: Fit, than: Fit) -> bool:
    """Whether a change from `than` to `other` is worth its while."""
    if other.amiss != than.amiss:
        return other.amiss < than.amiss
    return than.busiest >= BUSY and other.busiest <= CLEARLY * than.busiest


def choose(fits: Sequence[Fit], current: int, allowed: Iterable[int]) -> int:
    """The layout that serves best; the one in force where none is worth the change. allowed: those that may be chosen."""
    best = current
    for number in allowed:
        if number != best and is_better(fits[number], fits[best]):
            best = number
    return best


def _rank(lane: _Filling, want: Want, knee: ComputeUnits) -> tuple[bool, float, int, int]:
    units = lane.part.compute_units
    # What needs few units leaves the large lanes to others, unless that would make its own the busier one.
    return units < knee, round(lane.busy + want.busy_on(units), 3), units, lane.part.lane


def _allows(held: set[tuple[str, bool]], want: Want) -> bool:
    others = [isolated for tenant, isolated in held if tenant != want.tenant]
    return not others or not (want.isolated or any(isolated for _, isolated in held))


def _promised(wants: list[Want]) -> int:
    return sum(1 for want in wants if want.bandwidth)


def _names(wants: list[Want]) -> tuple[str, ...]:
    return tuple(sorted(want.name for want in wants))
