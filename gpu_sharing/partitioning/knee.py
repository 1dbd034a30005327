"""How many compute units a model needs. PURE.

The *knee-size* is the least number of compute units at which a model meets half its objective: the other half is what a
request may wait for its turn. More units would hasten it where nobody asked for haste, and less than in proportion, so that
models on parts of their knee-size side by side get more done than one after another on the whole (GSLICE, SoCC 2020;
D-STACK, 2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import log
from typing import NamedTuple

from gpu_sharing.units import ComputeUnits, Nanoseconds

MIDDLING = 0.5
"""k times the units, beyond those that were measured, hasten a batch k ** this times: half-way between not at all and in proportion."""
IN_PROPORTION = 1.0
"""... and this much where it is asked whether units suffice: fewer only where it is certain, more wherever it may be.

Either is wrong for most models, and once: whoever is moved to a lane is measured there.
"""


class Measured(NamedTuple):
    """How long a model's smallest batch takes on so many compute units."""

    compute_units: ComputeUnits
    took_ns: Nanoseconds


def smallest_batches(points: Iterable[tuple[int, ComputeUnits, Nanoseconds]]) -> tuple[Measured, ...]:
    """Of a profile's points (rows, compute units, time): by compute units the fewest rows, of their shapes the slowest."""
    found: dict[ComputeUnits, tuple[int, Nanoseconds]] = {}
    for rows, units, took in points:
        fewest, slowest = found.get(units, (rows, 0))
        if units > 0 and took > 0 and rows <= fewest:
            found[units] = (rows, max(took, slowest) if rows == fewest else took)
    return tuple(Measured(units, took) for units, (_, took) in sorted(found.items()))


def expected_ns(measured: Sequence[Measured], units: ComputeUnits, beyond: float = MIDDLING) -> float | None:
    """How long the smallest batch should take on so many units; None where nothing was measured.

    measured: ascending by units. Between two that were measured a power of the units, as the two tell it; beyond them, `beyond`.
    """
    if not measured:
        return None
    below = [each for each in measured if each.compute_units <= units]
    above = [each for each in measured if each.compute_units >= units]
    if below and above and below[-1] != above[0]:
        (few, slow), (many, fast) = below[-1], above[0]
        return float(slow * (units / few) ** (log(fast / slow) / log(many / few)))
    nearest = below[-1] if below else above[0]
    return float(nearest.took_ns * (nearest.compute_units / units) ** beyond)


def knee_size(measured: Sequence[Measured], objective_ns: Nanoseconds, most_units: ComputeUnits) -> ComputeUnits | None:
    """The least units, up to `most_units`, at which half the objective is met; None where none suffice or nothing was measured."""
    for units in range(1, most_units + 1):
        expected = expected_ns(measured, units, IN_PROPORTION)
        if expected is not None and 2 * expected <= objective_ns:
            return units
    return None
