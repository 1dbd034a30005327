"""How long will this batch take? PURE."""

from __future__ import annotations

import bisect
import collections
import math
from collections.abc import Sequence
from typing import TypeAlias

from gpu_sharing.measurements import ProfilePoint
from gpu_sharing.units import Nanoseconds

WINDOW_RUNS = 100
"""Runs that an estimate remembers: the fewest that have a p99 of their own."""

SEED_RUNS = 10
"""Until a key has run this often, the profile's word counts as well, where it is longer."""

_Key: TypeAlias = tuple[int, str]


class Estimates:
    """The p99 device time of a replica's batches, per (rows bucket, shape bucket), seeded by its profile.

    Rows are counted in powers of two, rounded up, so that a few runs teach about all sizes.
    """

    def __init__(self, points: Sequence[ProfilePoint] = ()) -> None:
        self._seeds: dict[str, list[ProfilePoint]] = {}
        for point in sorted(points, key=lambda point: point.rows):
            self._seeds.setdefault(point.shape_bucket, []).append(point)
        self._runs: dict[_Key, collections.deque[Nanoseconds]] = {}

    def record(self, rows: int, shape_bucket: str, took: Nanoseconds) -> None:
        """A whole batch has run for `took` of device time."""
        runs = self._runs.setdefault(_key(rows, shape_bucket), collections.deque(maxlen=WINDOW_RUNS))
        runs.append(took)

    def p99(self, rows: int, shape_bucket: str) -> Nanoseconds | None:
        """The estimate; None where nothing like it has run or been profiled."""
        runs = self._runs.get(_key(rows, shape_bucket))
        seed = None if runs is not None and len(runs) >= SEED_RUNS else self._seed(rows, shape_bucket)
        if runs is None:
            return seed
        seen = sorted(runs)[math.ceil(0.99 * len(runs)) - 1]
        return seen if seed is None else max(seen, seed)

    def _seed(self, rows: int, shape_bucket: str) -> Nanoseconds | None:
        """From the profile's points of that shape: between two of them in a straight line, beyond the last in proportion."""
        points = self._seeds.get(shape_bucket)
        if not points:
            return None
        place = bisect.bisect_left(points, rows, key=lambda point: point.rows)
        if place == len(points):
            last = points[-1]
            return last.p99_ns * rows // max(1, last.rows)
        after = points[place]
        if after.rows == rows or place == 0:
            return after.p99_ns
        before = points[place - 1]
        return before.p99_ns + (after.p99_ns - before.p99_ns) * (rows - before.rows) // (after.rows - before.rows)


def _key(rows: int, shape_bucket: str) -> _Key:
    return (1 << max(0, rows - 1).bit_length(), shape_bucket)
