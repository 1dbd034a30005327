"""What the parts of a workload have in common: where choices come from, and the world they are made for. PURE."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from gpu_sharing.simulation.models import Segment, SimulatedModel
from gpu_sharing.simulation.scenario import Happening, Scenario, Tenant
from gpu_sharing.units import Nanoseconds

FULL = 1000
"""Millidevices of a whole lane."""


class Choices(Protocol):
    """Where a workload's parts come from: chance, or a tool that looks for the smallest that breaks something."""

    def integer(self, least: int, most: int) -> int:
        """A whole number between both, which belong to it. Smaller ones make simpler workloads."""
        ...


class Chance:
    """Choices at random."""

    def __init__(self, chance: np.random.Generator) -> None:
        self._chance = chance

    def integer(self, least: int, most: int) -> int:
        """See `Choices`."""
        return int(self._chance.integers(least, most + 1))


class World(NamedTuple):
    """stretch_ns: how long a burst at a reservation takes. slice_ns: a usual slice. end: of arrivals.

    begins: when bursts begin, where they begin together; None: each at a moment of its own. pressing: all that is reserved is asked for at once, a moment after somebody else has
    begun a slice, and nothing is saved by batching: answers then come as late as they ever may. frame: the device.
    """

    choose: Choices
    chance: np.random.Generator
    stretch_ns: Nanoseconds
    slice_ns: Nanoseconds
    end: Nanoseconds
    begins: Nanoseconds | None
    pressing: bool
    frame: Scenario


class Came(NamedTuple):
    """A tenant, and what happens to it."""

    tenant: Tenant
    happenings: list[Happening]


def model_of(
    world: World, cost_ns: Nanoseconds, rows: int, most_rows: int, slices: int | None = None
) -> SimulatedModel:
    """One whose batch of `rows` costs about cost_ns, in segments of about a usual slice at the most rows."""
    choose = world.choose
    fixed_ns = cost_ns * (0, 1, 3)[choose.integer(0, 2)] // 4
    row_ns = (cost_ns - fixed_ns) // rows
    whole_ns = fixed_ns + row_ns * max(most_rows, rows)
    count = slices or min(40, max(1, -(-whole_ns // (world.slice_ns * choose.integer(1, 1 if world.pressing else 2)))))
    return SimulatedModel((Segment(fixed_ns // count, max(1, row_ns // count)),) * count, most_rows)


def cancelled(world: World, *, often: bool) -> Nanoseconds | None:
    if not often or world.chance.random() < 0.6:
        return None
    return int(world.chance.integers(0, world.stretch_ns))
