"""Counts of one model's requests, and how they add up: over exports, over minutes, over hours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

MOST_WORST = 5
Key = TypeVar("Key", str, int)


class Worst(msgspec.Struct, frozen=True, array_like=True):
    """A request that violated. trace_id: 32 hexadecimal digits."""

    duration_us: int
    trace_id: str
    cause: str


class Counts(msgspec.Struct):
    """Of one model. As a frontend tells them: from its beginning; as a slot holds them: of its time alone.

    outcomes, met, missed, violated: as the frontends judged. within: (met, missed) by the objective of an SLO in microseconds.
    latencies: by the bucket of services.common.exponential. kept, kept_violated, causes, worst: what spans said.
    """

    outcomes: dict[str, int] = {}
    met: int = 0
    missed: int = 0
    violated: int = 0
    within: dict[int, tuple[int, int]] = {}
    latencies: dict[int, int] = {}
    sum_us: int = 0
    kept: int = 0
    kept_violated: int = 0
    causes: dict[str, int] = {}
    worst: list[Worst] = []

    @property
    def requests(self) -> int:
        """Requests that are over."""
        return sum(self.outcomes.values())

    @property
    def measured(self) -> int:
        """Requests in the histogram."""
        return sum(self.latencies.values())


@dataclass(frozen=True, slots=True)
class Slot:
    """A model's counts within [start_s, start_s + width_s), Unix time."""

    tenant: str
    model: str
    start_s: int
    width_s: int
    counts: Counts

    @property
    def end_s(self) -> int:
        """Exclusive."""
        return self.start_s + self.width_s


def plus(one: Counts, other: Counts) -> Counts:
    """Both together; of the worst requests the slowest ones."""
    return Counts(
        outcomes=_added(one.outcomes, other.outcomes),
        met=one.met + other.met,
        missed=one.missed + other.missed,
        violated=one.violated + other.violated,
        within={
            key: (
                one.within.get(key, (0, 0))[0] + other.within.get(key, (0, 0))[0],
                one.within.get(key, (0, 0))[1] + other.within.get(key, (0, 0))[1],
            )
            for key in one.within.keys() | other.within.keys()
        },
        latencies=_added(one.latencies, other.latencies),
        sum_us=one.sum_us + other.sum_us,
        kept=one.kept + other.kept,
        kept_violated=one.kept_violated + other.kept_violated,
        causes=_added(one.causes, other.causes),
        worst=slowest([*one.worst, *other.worst]),
    )


def total(counts: Iterable[Counts]) -> Counts:
    """All together."""
    whole = Counts()
    for each in counts:
        whole = plus(whole, each)
    return whole


def slowest(requests: Iterable[Worst]) -> list[Worst]:
    """The slowest, each trace once."""
    by_trace = {each.trace_id: each for each in sorted(requests, key=lambda each: each.duration_us)}
    return sorted(by_trace.values(), key=lambda each: (-each.duration_us, each.trace_id))[:MOST_WORST]


def beyond(told: Counts, before: Counts) -> Counts:
    """What one process has counted since `before`; counts only grow, and what is not told this time has not grown."""
    judged = {
        key: (max(0, met - before.within.get(key, (0, 0))[0]), max(0, missed - before.within.get(key, (0, 0))[1]))
        for key, (met, missed) in told.within.items()
    }
    return Counts(
        outcomes=_grown(told.outcomes, before.outcomes),
        met=max(0, told.met - before.met),
        missed=max(0, told.missed - before.missed),
        violated=max(0, told.violated - before.violated),
        within={key: grown for key, grown in judged.items() if any(grown)},
        latencies=_grown(told.latencies, before.latencies),
        sum_us=max(0, told.sum_us - before.sum_us),
    )


def most(told: Counts, before: Counts) -> Counts:
    """The most that one process has told of each count, whatever the order in which it was heard."""
    return plus(before, beyond(told, before))


def _added(one: Mapping[Key, int], other: Mapping[Key, int]) -> dict[Key, int]:
    made = dict(one)
    for key, count in other.items():
        made[key] = made.get(key, 0) + count
    return made


def _grown(told: Mapping[Key, int], before: Mapping[Key, int]) -> dict[Key, int]:
    grown = {key: count - before.get(key, 0) for key, count in told.items()}
    return {key: count for key, count in grown.items() if count > 0}
