"""How busy each model keeps its lane, from what executors count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import exp

from services.scheduler.core.catalogue import Key
from services.scheduler.core.reports import UsageReport

MEMORY_S = 20.0
"""What was so long ago counts for a third of what is now."""
NOTHING = 1e-6
"""A model that kept its lane busy for no more than that is as good as one that is not there."""


@dataclass(slots=True)
class Rates:
    """Of one executor: the part of the time for which each model used device time, recent times counting more."""

    _at: float | None = None
    _counted: dict[Key, int] = field(default_factory=dict)
    _busy: dict[Key, float] = field(default_factory=dict)

    def take(self, usage: Iterable[UsageReport], now: float) -> None:
        """A report's counts, which only grow; where they shrink, another process counts, and began at nothing."""
        counted: dict[Key, int] = {}
        for each in usage:
            counted[each.key] = counted.get(each.key, 0) + each.device_ns
        if self._at is None:
            self._at, self._counted = now, counted
        passed_s = now - self._at
        if passed_s <= 0:
            return
        before, self._counted, self._at = self._counted, counted, now
        old = exp(-passed_s / MEMORY_S)
        for key in counted.keys() | self._busy.keys():
            then = before.get(key, 0)
            used = counted.get(key, 0) - then if counted.get(key, 0) >= then else counted.get(key, 0)
            self._busy[key] = old * self._busy.get(key, 0.0) + (1 - old) * used / 1e9 / passed_s
        for key in [key for key, busy in self._busy.items() if busy < NOTHING]:
            del self._busy[key]

    def busy(self, key: Key) -> float:
        """Device time a second, in seconds."""
        return self._busy.get(key, 0.0)

    def start_over(self) -> None:
        """What was used on other lanes says nothing of these."""
        self._busy = {}
