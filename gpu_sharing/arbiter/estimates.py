"""How long will this batch take? PURE.

An estimate of a batch's device time is the p99 of the last runs for its key (rows bucket, shape bucket), seeded by the
profile. Rows are counted in powers of two, rounded up, so that a few runs teach about all sizes. Where there is a profile, what
is learnt is how far runs are from it, so that inside a bucket the profile's slope stays; estimates never fall as rows grow.
"""

from __future__ import annotations

import bisect
import collections
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from gpu_sharing.measurements import ProfilePoint
from gpu_sharing.units import Nanoseconds

WINDOW_RUNS = 100
"""Runs that an estimate remembers: the fewest that have a p99 of their own."""

SEED_RUNS = 10
"""Until a key has run this often, the profile's word counts as well, where it is longer."""

_ROWS_KEPT = 512

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Window:
    """The last values of something: their p99, by nearest rank, their median and their mean."""

    __slots__ = ("_last", "_ordered", "_sum")

    def __init__(self) -> None:
        self._last: collections.deque[float] = collections.deque()
        self._ordered: list[float] = []
        self._sum = 0.0

    def __len__(self) -> int:
        return len(self._last)

    def add(self, value: float) -> None:
        """The newest; the oldest is forgotten where there are more than WINDOW_RUNS."""
        self._last.append(value)
        bisect.insort(self._ordered, value)
        self._sum += value
        if len(self._last) > WINDOW_RUNS:
            oldest = self._last.popleft()
            del self._ordered[bisect.bisect_left(self._ordered, oldest)]
            self._sum -= oldest

    @property
    def p99(self) -> float:
        """IndexError where there is none."""
        return self._ordered[math.ceil(0.99 * len(self._ordered)) - 1]

    @property
    def median(self) -> float:
        """IndexError where there is none."""
        return self._ordered[len(self._ordered) // 2]

    @property
    def mean(self) -> float:
        """ZeroDivisionError where there is none. Never above the largest."""
        return min(self._sum / len(self._last), self._ordered[-1])


class Weight(NamedTuple):
    """What a request takes: p99 and mean of it alone, and its part of the largest batch it can ride in, on average."""

    p99: Nanoseconds
    mean: Nanoseconds
    packed: Nanoseconds


class _Lesson(NamedTuple):
    """What runs say about a rows bucket. factor: of its own, over the profile; None: none has run.

    least, most: what smaller batches have taken, and larger ones at least. below: the next smaller bucket that has run.
    """

    factor: float | None
    least: Nanoseconds
    most: Nanoseconds | None
    below: int | None


class _Shape:
    """One shape bucket: the profile's points, and by rows bucket what runs and their longest slices took.

    With points, windows hold what runs took over the profile's p99; without, what they took.
    """

    def __init__(self, points: Sequence[ProfilePoint]) -> None:
        self.points = _rising(points)
        self._bases: dict[int, Nanoseconds] = {}
        self.runs: dict[int, Window] = {}
        self.slices: dict[int, Window] = {}
        self.known: dict[int, Nanoseconds] = {}
        self.average: dict[int, Nanoseconds] = {}
        self._weights: dict[tuple[int, int], Weight] = {}
        # By rows bucket, what runs say over the profile.
        self._factors: dict[int, float] = {}
        # By rows bucket, up to the largest that has run; and of those beyond.
        self._lessons: dict[int, _Lesson] = {}
        self._beyond = _Lesson(None, 0, None, None)

    def record(self, rows: int, took: Nanoseconds, longest_slice: Nanoseconds) -> None:
        bucket = _bucket(rows)
        runs = self.runs.setdefault(bucket, Window())
        before = self._word_of(runs)
        runs.add(took / self.base(rows))
        self.slices.setdefault(bucket, Window()).add(float(longest_slice))
        self.average.clear()
        self._weights.clear()
        if before != self._word_of(runs):
            self.known.clear()
            # As long as they are few, the profile's word counts as well.
            few = bool(self.points) and len(runs) < SEED_RUNS
            self._factors[bucket] = max(runs.p99, 1.0) if few else runs.p99
            self._learn()

    def _word_of(self, runs: Window) -> tuple[float, bool] | None:
        """All that estimates of the p99 take from a window; None of an empty one."""
        return (runs.p99, len(runs) < SEED_RUNS) if len(runs) else None

    def base(self, rows: int) -> Nanoseconds:
        """The profile's p99; 1 without a profile."""
        found = self._bases.get(rows)
        if found is None:
            found = max(1, _on_line(self.points, rows, _p99)) if self.points else 1
            _keep(self._bases, rows, found)
        return found

    def slice_p99(self, rows: int) -> Nanoseconds | None:
        """The longest slice; None where nothing is known."""
        seen = self.slices.get(_bucket(rows))
        if seen is not None:
            return int(seen.p99)
        return _on_line(self.points, rows, _longest_segment) or None if self.points else None

    def p99(self, rows: int) -> Nanoseconds | None:
        found = self.known.get(rows)
        if found is None:
            found = self._p99(rows)
            if found is not None:
                _keep(self.known, rows, found)
        return found

    def _p99(self, rows: int) -> Nanoseconds | None:
        lesson = self._lessons.get(_bucket(rows), self._beyond)
        if lesson.factor is not None:
            return max(lesson.least, self._times(lesson.factor, rows))
        if self.points:
            word = self.base(rows)
        elif lesson.below is not None:
            # Smaller batches in proportion.
            word = self._times(self._factors[lesson.below], lesson.below) * rows // lesson.below
        elif lesson.most is None:
            return None
        else:
            word = lesson.most
        return max(lesson.least, word if lesson.most is None else min(word, lesson.most))

    def _times(self, factor: float, rows: int) -> Nanoseconds:
        """What runs say that took so many times as long as the profile's."""
        return math.ceil(factor * self.base(rows) - 1e-6)

    def _learn(self) -> None:
        """What runs of one bucket say about the others has changed: looked at once, rather than with every question."""
        factors, lessons = self._factors, {}
        bucket, least, below = 1, 0, None
        largest = max(factors)
        while bucket <= largest:
            factor = factors.get(bucket)
            lessons[bucket] = _Lesson(factor, least, None, below)
            if factor is not None:
                below, least = bucket, max(least, self._times(factor, bucket))
            bucket <<= 1
        most: Nanoseconds | None = None
        for bucket in reversed(lessons):
            lesson = lessons[bucket]
            if lesson.factor is None:
                lessons[bucket] = lesson._replace(most=most)
            else:
                seen = self._times(lesson.factor, bucket // 2 + 1)
                most = seen if most is None else min(most, seen)
        self._lessons, self._beyond = lessons, _Lesson(None, least, None, below)

    def usual(self, rows: int) -> Nanoseconds | None:
        runs = self.runs.get(_bucket(rows))
        return self.p99(rows) if runs is None else int(runs.median * self.base(rows))

    def mean(self, rows: int) -> Nanoseconds | None:
        found = self.average.get(rows)
        if found is None:
            runs = self.runs.get(_bucket(rows))
            found = self.p99(rows) if runs is None else int(runs.mean * self.base(rows))
            if found is not None:
                _keep(self.average, rows, found)
        return found

    def weigh(self, rows: int, max_batch_size: int) -> Weight | None:
        found = self._weights.get((rows, max_batch_size))
        if found is None:
            p99, alone = self.p99(rows), self.mean(rows)
            if p99 is None or alone is None:
                return None
            full = self.mean(max_batch_size) if max_batch_size > rows else None
            packed = alone if full is None else min(alone, full * rows // max_batch_size)
            found = Weight(p99, alone, packed)
            _keep(self._weights, (rows, max_batch_size), found)
        return found


class Estimates:
    """Of one replica's batches."""

    def __init__(self, points: Sequence[ProfilePoint] = ()) -> None:
        seeds: dict[str, list[ProfilePoint]] = {}
        for point in sorted(points, key=_rows):
            seeds.setdefault(point.shape_bucket, []).append(point)
        self._shapes = {bucket: _Shape(found) for bucket, found in seeds.items()}

    def record(self, rows: int, shape_bucket: str, took: Nanoseconds, longest_slice: Nanoseconds | None = None) -> None:
        """A whole batch has run for `took` of device time. longest_slice: of its slices; None: it was one slice."""
        shape = self._shapes.get(shape_bucket)
        if shape is None:
            shape = self._shapes[shape_bucket] = _Shape(())
        shape.record(rows, took, took if longest_slice is None else longest_slice)

    def p99(self, rows: int, shape_bucket: str) -> Nanoseconds | None:
        """The estimate; None where nothing like it has run or been profiled."""
        shape = self._shapes.get(shape_bucket)
        return None if shape is None else shape.p99(rows)

    def usual(self, rows: int, shape_bucket: str) -> Nanoseconds | None:
        """What it takes as a rule, whatever a few runs took; None where nothing like it has run or been profiled."""
        shape = self._shapes.get(shape_bucket)
        return None if shape is None else shape.usual(rows)

    def mean(self, rows: int, shape_bucket: str) -> Nanoseconds | None:
        """What it takes on average; None where nothing like it has run or been profiled."""
        shape = self._shapes.get(shape_bucket)
        return None if shape is None else shape.mean(rows)

    def weigh(self, rows: int, shape_bucket: str, max_batch_size: int) -> Weight | None:
        """All that is known of a request, at once; None where nothing like it has run or been profiled."""
        shape = self._shapes.get(shape_bucket)
        return None if shape is None else shape.weigh(rows, max_batch_size)

    def guess(self, rows: int, shape_bucket: str) -> Nanoseconds | None:
        """p99, or where this shape is new the largest that is known of any; None where nothing is known at all."""
        found = self.p99(rows, shape_bucket)
        if found is not None:
            return found
        return max((value for shape in self._shapes.values() if (value := shape.p99(rows)) is not None), default=None)

    def slice_p99(self, rows: int, shape_bucket: str) -> Nanoseconds | None:
        """The longest slice of such a batch; None where nothing is known."""
        shape = self._shapes.get(shape_bucket)
        return None if shape is None else shape.slice_p99(rows)


def _rising(points: Sequence[ProfilePoint]) -> list[ProfilePoint]:
    """No point takes less than one of fewer rows."""
    rising: list[ProfilePoint] = []
    for point in points:
        least = rising[-1].p99_ns if rising else 0
        rising.append(point if point.p99_ns >= least else msgspec.structs.replace(point, p99_ns=least))
    return rising


def _on_line(points: Sequence[ProfilePoint], rows: int, value: Callable[[ProfilePoint], Nanoseconds]) -> Nanoseconds:
    """A value of the profile: between two points in a straight line, beyond the last in proportion."""
    place = bisect.bisect_left(points, rows, key=_rows)
    if place == len(points):
        return value(points[-1]) * rows // max(1, points[-1].rows)
    after = points[place]
    if after.rows == rows or place == 0:
        return value(after)
    before = points[place - 1]
    return value(before) + (value(after) - value(before)) * (rows - before.rows) // (after.rows - before.rows)


def _p99(point: ProfilePoint) -> Nanoseconds:
    return point.p99_ns


def _longest_segment(point: ProfilePoint) -> Nanoseconds:
    return max(point.segments_ns, default=0)


def _bucket(rows: int) -> int:
    bucket: int = 1 << (rows - 1).bit_length() if rows > 1 else 1
    return bucket


def _rows(point: ProfilePoint) -> int:
    return point.rows


def _keep(cache: dict[_Key, _Value], key: _Key, value: _Value) -> None:
    if len(cache) >= _ROWS_KEPT:
        cache.clear()
    cache[key] = value
