"""What is measured of one model's requests beside their plain counts: a fine histogram, and SLOs other than the promise."""

from __future__ import annotations

from collections import deque

from services.common.errors import Reason
from services.common.exponential import index_of
from services.frontend.core.verdict import OK, judge

MOST_EXEMPLARS = 8
MOST_OBJECTIVES = 64
"""Whose counts are held for one model."""


class Within:
    """Requests judged by one objective of an SLO, whatever each was promised."""

    __slots__ = ("met", "missed", "objective_ns")

    def __init__(self, objective_ns: int) -> None:
        self.objective_ns = objective_ns
        self.met = self.missed = 0

    def add(self, elapsed_ns: int, reason: Reason | None, deadline_ns: int | None) -> None:
        """Counts a request; one that its caller broke off or got wrong is in neither."""
        judgement = judge(reason, elapsed_ns, self.objective_ns, deadline_ns)
        if judgement.outcome == OK:
            self.met += 1
        elif judgement.violated:
            self.missed += 1


class Measured:
    """Of one tenant's model, since the process began.

    latencies: requests by the bucket of `services.common.exponential`. exemplars: (nanoseconds, when it ended on the monotonic
    clock, trace id, span id) of the last requests whose trace was kept.
    """

    __slots__ = ("_judged_by", "exemplars", "latencies", "within")

    def __init__(self) -> None:
        self.latencies: dict[int, int] = {}
        self.exemplars: deque[tuple[int, int, bytes, bytes]] = deque(maxlen=MOST_EXEMPLARS)
        self.within: dict[int, Within] = {}
        self._judged_by: tuple[Within, ...] = ()

    def judge_by(self, objectives_us: tuple[int, ...]) -> None:
        """The objectives that count from now on. Counts of one that is taken away stay, in case it comes back, unless there are many."""
        # A new dictionary: another thread may be reading the old one.
        within = {**self.within, **{each: Within(each * 1000) for each in objectives_us if each not in self.within}}
        old = [objective_us for objective_us in within if objective_us not in objectives_us]
        for objective_us in old[: max(0, len(within) - MOST_OBJECTIVES)]:
            del within[objective_us]
        self.within = within
        self._judged_by = tuple(self.within[objective_us] for objective_us in objectives_us)

    def add(self, elapsed_ns: int, reason: Reason | None, deadline_ns: int | None) -> None:
        """Takes a request that is over."""
        index = index_of(elapsed_ns)
        latencies = self.latencies
        latencies[index] = latencies.get(index, 0) + 1
        for each in self._judged_by:
            each.add(elapsed_ns, reason, deadline_ns)
