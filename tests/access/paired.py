"""Whether two ways of asking take equally long, by CPU time: in pairs, in random order, judged by the median of differences."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

Ask = Callable[[], Awaitable[object]]
FEWEST = 64
SURE = 3.3
"""Deviations of the interval's ends: a chance of about 1 in 1000 that the true median lies outside."""


@dataclass(frozen=True)
class Difference:
    """Of `second` over `first`, in nanoseconds of CPU a call: the median, and where it surely lies."""

    median_ns: float
    low_ns: float
    high_ns: float

    def within(self, bound_ns: float) -> bool:
        """Whether the two surely differ by less than that."""
        return -bound_ns < self.low_ns and self.high_ns < bound_ns


async def paired(
    first: Ask, second: Ask, *, bound_ns: float, most_pairs: int = 6400, calls: int = 4, seed: int = 7
) -> Difference:
    """Calls both, `calls` times in a row a side and pair, and takes the differences: twice as many each time until it is sure
    that the median is within the bound, or beyond it.

    CPU time of the whole process: what others do with the machine is not in it. The interval is that of order statistics,
    which presumes nothing about how times are spread.
    """
    chance, found = random.Random(seed), list[float]()
    for ask in (first, second):
        await _took(ask, calls * 5)
    gc.collect()
    gc.disable()
    try:
        for number in range(1, most_pairs + 1):
            if chance.random() < 0.5:
                one = await _took(first, calls)
                other = await _took(second, calls)
            else:
                other = await _took(second, calls)
                one = await _took(first, calls)
            found.append((other - one) / calls)
            if number >= FEWEST and number & (number - 1) == 0:
                judged = _judged(sorted(found))
                if judged.within(bound_ns) or judged.low_ns > bound_ns or judged.high_ns < -bound_ns:
                    return judged
    finally:
        gc.enable()
    return _judged(sorted(found))


def _judged(differences: list[float]) -> Difference:
    pairs = len(differences)
    middle, reach = pairs / 2, SURE * math.sqrt(pairs) / 2
    low, high = max(0, math.floor(middle - reach)), min(pairs - 1, math.ceil(middle + reach))
    return Difference(differences[pairs // 2], differences[low], differences[high])


async def _took(ask: Ask, calls: int) -> int:
    began = time.process_time_ns()
    for _ in range(calls):
        await ask()
    return time.process_time_ns() - began


def spin(ns: int) -> None:
    """Uses that much CPU time."""
    ends = time.process_time_ns() + ns
    while time.process_time_ns() < ends:
        pass
