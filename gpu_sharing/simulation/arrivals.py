"""When requests come: moments, ascending, from chance that is given. PURE."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gpu_sharing.units import SECOND, Millidevices, Nanoseconds

_FULL = 1000


class TokenBucket:
    """Conformance to (σ, ρ): over any time t, at most σ + ρ·t of device time is asked for. Exact: whole thousandths.

    It starts full.
    """

    def __init__(self, sigma_ns: Nanoseconds, rho: Millidevices, start: Nanoseconds = 0) -> None:
        """Raises ValueError for a bucket that never fills, or that holds nothing."""
        if sigma_ns < 1 or not 1 <= rho <= _FULL:
            raise ValueError(f"sigma_ns and rho: {sigma_ns} and {rho}; at least 1, and rho at most {_FULL}")
        self._most = sigma_ns * _FULL
        self._rho = rho
        self._level = self._most
        self._at = start

    def conforms_from(self, cost_ns: Nanoseconds) -> Nanoseconds:
        """The earliest moment, not before the last one taken, at which `cost_ns` may be asked for.

        ValueError for more than the bucket ever holds.
        """
        if cost_ns * _FULL > self._most:
            raise ValueError(f"{cost_ns} ns is more than the bucket holds, {self._most // _FULL} ns")
        lacking = max(0, cost_ns * _FULL - self._level)
        return self._at - (-lacking // self._rho)

    def take(self, moment: Nanoseconds, cost_ns: Nanoseconds) -> bool:
        """Asks for `cost_ns` at `moment`; False, taking nothing, where that does not conform."""
        level = min(self._most, self._level + (moment - self._at) * self._rho)
        if cost_ns * _FULL > level:
            return False
        self._level = level - cost_ns * _FULL
        self._at = moment
        return True


def greedy(bucket: TokenBucket, costs: Iterable[Nanoseconds], start: Nanoseconds = 0) -> Iterator[Nanoseconds]:
    """As early as the bucket allows: all of σ at once at `start`, then exactly at ρ. One moment for each cost."""
    moment = start
    for cost in costs:
        moment = max(moment, bucket.conforms_from(cost))
        bucket.take(moment, cost)
        yield moment


def thinned(
    bucket: TokenBucket, moments: Iterable[Nanoseconds], costs: Sequence[Nanoseconds]
) -> Iterator[tuple[Nanoseconds, int]]:
    """Those of `moments` that conform, each with the index of the cost it asks for."""
    taken = 0
    for moment in moments:
        if taken == len(costs):
            return
        if bucket.take(moment, costs[taken]):
            yield moment, taken
            taken += 1


def poisson(chance: np.random.Generator, per_second: float, start: Nanoseconds, end: Nanoseconds) -> list[Nanoseconds]:
    """Independent of one another."""
    return gamma(chance, per_second, 1.0, start, end)


def gamma(
    chance: np.random.Generator, per_second: float, cv: float, start: Nanoseconds, end: Nanoseconds
) -> list[Nanoseconds]:
    """Gaps drawn from a gamma distribution with this coefficient of variation: below 1 regular, above 1 in bursts."""
    shape = 1.0 / cv**2
    scale_ns = SECOND / per_second / shape
    moments: list[Nanoseconds] = []
    moment = float(start)
    while True:
        for gap in chance.gamma(shape, scale_ns, 256):
            moment += float(gap)
            if moment >= end:
                return moments
            moments.append(int(moment))


def bursts(
    size: int,
    every_ns: Nanoseconds,
    start: Nanoseconds,
    end: Nanoseconds,
    *,
    jitter_ns: Nanoseconds = 0,
    chance: np.random.Generator | None = None,
) -> list[Nanoseconds]:
    """`size` at once, again and again. jitter_ns: how far each burst may come late; needs chance."""
    moments: list[Nanoseconds] = []
    for moment in range(start, end, every_ns):
        late = int(chance.integers(jitter_ns + 1)) if chance is not None and jitter_ns else 0
        moments += [moment + late] * size
    return sorted(moments)


def on_off(
    chance: np.random.Generator,
    per_second: float,
    on_ns: Nanoseconds,
    off_ns: Nanoseconds,
    start: Nanoseconds,
    end: Nanoseconds,
) -> list[Nanoseconds]:
    """Poisson while on; on and off last as long as they are told to on average, and no two times alike."""
    moments: list[Nanoseconds] = []
    moment = start
    while moment < end:
        until = min(end, moment + 1 + int(chance.exponential(on_ns)))
        moments += poisson(chance, per_second, moment, until)
        moment = until + 1 + int(chance.exponential(off_ns))
    return moments
