"""Samples to figures. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gpu_sharing.units import US, Nanoseconds


class Findings(NamedTuple):
    """What a scenario shows. holds: what it was asked to show, and whether it does; not_measured: what, and why not."""

    figures: dict[str, Any]
    holds: dict[str, bool]
    not_measured: dict[str, str]


class Batches(NamedTuple):
    """Of batches that ran while nothing else did: wall time from start to end, what their slices took, how many slices."""

    wall_ns: Nanoseconds
    device_ns: Nanoseconds
    batches: int
    slices: int

    @property
    def boundary_ns(self) -> Nanoseconds:
        """Between two slices of one batch; 0 where no batch had two."""
        return max(0, self.wall_ns - self.device_ns) // max(1, self.slices - self.batches)


def quantile(values: Iterable[float], share: float) -> float:
    """By nearest rank. ValueError of nothing."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no samples")
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summary_us(values: Sequence[float]) -> dict[str, float]:
    """Of nanoseconds, in microseconds."""
    if not values:
        return {"count": 0}
    told = {f"p{round(100 * share)}_us": round(quantile(values, share) / US, 1) for share in (0.5, 0.9, 0.99)}
    return {"count": len(values), **told, "max_us": round(max(values) / US, 1)}


def median(values: Sequence[float]) -> dict[str, Any]:
    """Of one figure of each round: the median, and an interval that holds the true one whatever the distribution.

    The interval is from the least to the greatest, which covers it with probability 1 - 2 ** (1 - rounds).
    """
    if not values:
        return {"rounds": 0}
    return {
        "median": round(statistics.median(values), 4),
        "interval": [round(min(values), 4), round(max(values), 4)],
        "coverage": round(1 - 2.0 ** (1 - len(values)), 4),
        "rounds": len(values),
    }


def ratios(on: Sequence[float], off: Sequence[tuple[float, float]]) -> list[float]:
    """Each round's figure over the mean of what was measured right before and right after it."""
    return [each / ((before + after) / 2) for each, (before, after) in zip(on, off, strict=True)]
