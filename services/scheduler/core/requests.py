"""What frontends saw of their requests in the last minute, by model. Nothing is decided by it."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from services.scheduler.core.catalogue import Key

WINDOW_S = 60.0
RATE_S = 5.0
STEP_S = 0.5
"""Reports of one frontend that follow one another sooner share a place in its history."""
STALE_S = 5.0
"""A frontend that has not been heard of for so long has no requests in hand."""
EIGHTHS = 8
_P99_LEAVES = 100
"""One request in so many may take longer than the 99th percentile."""


class Moved(NamedTuple):
    """Bytes of requests that an executor answered, and of its answers, since the frontend started."""

    executor_id: str
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests of one model at one frontend since that started. latencies: how many, by bucket. moved: their bytes."""

    requests: int = 0
    within: int = 0
    missed: int = 0
    in_flight: int = 0
    latencies: tuple[tuple[int, int], ...] = ()
    moved: tuple[Moved, ...] = ()


@dataclass(slots=True)
class Recent:
    """Requests that ended within `window_s`; requests_per_s over a shorter time. latencies: by bucket."""

    window_s: float = 0.0
    requests: int = 0
    within: int = 0
    missed: int = 0
    in_flight: int = 0
    requests_per_s: float = 0.0
    latencies: dict[int, int] = field(default_factory=dict)

    def add(self, other: Recent) -> None:
        """Takes in what another frontend, or another model, had in the same window."""
        self.window_s = max(self.window_s, other.window_s)
        self.requests += other.requests
        self.within += other.within
        self.missed += other.missed
        self.in_flight += other.in_flight
        self.requests_per_s += other.requests_per_s
        for bucket, count in other.latencies.items():
            self.latencies[bucket] = self.latencies.get(bucket, 0) + count

    @property
    def p99_us(self) -> int:
        """The upper end of the bucket that holds the 99th percentile; 0 without requests."""
        left = sum(self.latencies.values()) // _P99_LEAVES
        for bucket, count in sorted(self.latencies.items(), reverse=True):
            if count > left:
                return upper_us(bucket)
            left -= count
        return 0


class _Told(NamedTuple):
    """What a frontend told `at` a moment. latencies: buckets and how many requests more they held than when it told before, in
    turns: most buckets hardly change, and a history of whole counts would hold them over and over."""

    at: float
    requests: int
    within: int
    missed: int
    latencies: array[int]


@dataclass(slots=True)
class _History:
    """One model's counts at one frontend. told: the oldest is the last before the window. latencies: as they were told last."""

    told: deque[_Told] = field(default_factory=deque)
    latencies: dict[int, int] = field(default_factory=dict)
    in_flight: int = 0

    @classmethod
    def new_at(cls, heard: float) -> _History:
        """Of a model that a frontend did not have when it was heard of last."""
        return cls(deque([_Told(heard, 0, 0, 0, array("Q"))]))

    def take(self, counts: Counts, now: float) -> None:
        latencies = dict(counts.latencies)
        # What had been counted before the frontend was first heard of is in no window.
        grown = {} if not self.told else self._grown(latencies)
        if len(self.told) > 1 and now - self.told[-2].at < STEP_S:
            _add(grown, self.told.pop().latencies)
        pairs = array("Q", chain.from_iterable(grown.items()))
        self.told.append(_Told(now, counts.requests, counts.within, counts.missed, pairs))
        self.latencies, self.in_flight = latencies, counts.in_flight
        self.trim(now)

    def trim(self, now: float) -> None:
        while len(self.told) > 1 and self.told[1].at <= now - WINDOW_S:
            self.told.popleft()

    def over(self, now: float, began: float, heard: float) -> Recent:
        latest = self.told[-1]
        before = self._before(now - WINDOW_S)
        lately = self._before(now - RATE_S)
        latencies: dict[int, int] = {}
        for each in self.told:
            if each.at > before.at:
                _add(latencies, each.latencies)
        return Recent(
            min(WINDOW_S, max(now - began, 0.001)),
            max(0, latest.requests - before.requests),
            max(0, latest.within - before.within),
            max(0, latest.missed - before.missed),
            self.in_flight if now - heard <= STALE_S else 0,
            max(0, latest.requests - lately.requests) / min(RATE_S, max(now - began, 1.0)),
            latencies,
        )

    def _grown(self, latencies: dict[int, int]) -> dict[int, int]:
        before = self.latencies
        return {
            bucket: count - before.get(bucket, 0)
            for bucket, count in latencies.items()
            if count > before.get(bucket, 0)
        }

    def _before(self, moment: float) -> _Told:
        """What was told last at or before a moment; else what was told first."""
        found = self.told[0]
        for each in self.told:
            if each.at > moment:
                break
            found = each
        return found


def _add(latencies: dict[int, int], pairs: array[int]) -> None:
    for bucket, count in zip(pairs[::2], pairs[1::2], strict=True):
        latencies[bucket] = latencies.get(bucket, 0) + count


@dataclass(slots=True)
class RequestHistory:
    """Histories by frontend and model. began: when the scheduler did; what a frontend counted before that it first heard
    of it is in no window. A model that is new to a frontend that was heard of starts at nothing."""

    began: float = 0.0
    _frontends: dict[str, dict[Key, _History]] = field(default_factory=dict)
    _heard: dict[str, float] = field(default_factory=dict)

    def report(
        self, frontend_id: str, counts: Iterable[tuple[Key, Counts]], now: float, *, whole: bool = False
    ) -> None:
        """A frontend's counts; of models that it leaves out nothing has changed. whole: those not heard of may be old."""
        known = frontend_id in self._heard and not whole
        histories = self._frontends.setdefault(frontend_id, {})
        for key, each in counts:
            history = histories.get(key)
            if history is None:
                history = histories[key] = _History.new_at(self._heard[frontend_id]) if known else _History()
            history.take(each, now)
        self._heard[frontend_id] = now

    def keep(self, models: Container[Key]) -> None:
        """Models that are gone are of no interest any more."""
        for histories in self._frontends.values():
            for key in [key for key in histories if key not in models]:
                del histories[key]

    def forget_old(self, now: float) -> None:
        """Frontends that have not been heard of for a whole window are gone."""
        for frontend_id, heard in list(self._heard.items()):
            if now - heard > WINDOW_S:
                del self._heard[frontend_id]
                self._frontends.pop(frontend_id, None)

    def recent(self, now: float) -> dict[Key, Recent]:
        """What each model had in the last minute, over all frontends."""
        found: dict[Key, Recent] = {}
        for frontend_id, histories in self._frontends.items():
            heard = self._heard[frontend_id]
            for key, history in histories.items():
                found.setdefault(key, Recent()).add(history.over(now, self.began, heard))
        return found


def upper_us(bucket: int) -> int:
    """The upper end of a bucket, in whole microseconds, at least 1."""
    exponent, step = divmod(bucket, EIGHTHS)
    return max(1, ((EIGHTHS + step + 1) << min(exponent, 60)) // EIGHTHS)
