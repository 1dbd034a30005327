"""Times runs so that what else the machine did meanwhile stays out of the figures."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import NamedTuple

from gpu_sharing.units import US, Nanoseconds

Clock = Callable[[], Nanoseconds]

TOLERATED = 0.05
"""Share of a run that its thread may have been without a core before its time on the core is taken instead."""

TOLERATED_NS: Nanoseconds = 20 * US
"""What two clocks, read one after the other, may differ by."""


class Reading(NamedTuple):
    """The clocks at one moment."""

    wall: Nanoseconds
    on_core: Nanoseconds | None
    interruptions: int


class Stopwatch:
    """Measures on the thread that calls it.

    clock: monotonic. core_clock: time that this thread has spent on a core; None: it does not do the work alone, so that
    the time it spends waiting belongs to the run. interruptions: how often the system took the core from this thread.
    """

    def __init__(
        self,
        clock: Clock,
        core_clock: Clock | None = None,
        interruptions: Callable[[], int] | None = None,
    ) -> None:
        self.clock = clock
        self._core_clock = core_clock
        self._interruptions = interruptions

    @classmethod
    def of_this_thread(cls, clock: Clock, *, threads: int) -> Stopwatch:
        """For runs of so many threads, with the system's own clocks."""
        return cls(clock, time.thread_time_ns if threads == 1 else None, _switches)

    def read(self) -> Reading:
        """Now."""
        core = self._core_clock() if self._core_clock is not None else None
        interruptions = self._interruptions() if self._interruptions is not None else 0
        return Reading(self.clock(), core, interruptions)

    def took(self, since: Reading, until: Reading) -> Nanoseconds:
        """The wall's time; the time on a core, where the thread was kept from it for longer than is tolerated."""
        wall = until.wall - since.wall
        if since.on_core is None or until.on_core is None:
            return wall
        on_core = until.on_core - since.on_core
        return wall if wall - on_core <= TOLERATED_NS + wall * TOLERATED else max(on_core, 1)

    def is_calm(self, since: Reading, until: Reading) -> bool:
        """Whether the figure can be trusted: it needs no correction that this stopwatch cannot make."""
        return since.on_core is not None or since.interruptions == until.interruptions


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
