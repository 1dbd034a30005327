"""Notices a segment, or a load, that does not return. What it cannot stop costs the worker: nothing else frees a thread."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import NamedTuple

from gpu_sharing.units import MS, SECOND, Nanoseconds

POLL_NS: Nanoseconds = 100 * MS

TIMES_THE_ESTIMATE = 10
"""A slice may take so many times what its whole batch is expected to, before it counts as hung."""

GRACE_NS: Nanoseconds = 1 * SECOND
"""What has been told to stop may still need so long to reach a place where it can."""


class Watched(NamedTuple):
    """Something that runs. label: who, for people. stop: asks it to stop, where that is possible.

    abandon: told why, once the worker is about to end, so that whoever waits for it can be answered.
    """

    label: str
    limit_ns: Nanoseconds
    stop: Callable[[], None] | None
    abandon: Callable[[str], None]


class Watch:
    """Any thread: `begin` and `end` what it runs, one thing at a time for each place. One thread: `run`."""

    def __init__(
        self,
        *,
        clock: Callable[[], Nanoseconds],
        end_worker: Callable[[], None],
        beat: Callable[[Nanoseconds], None] = lambda _now: None,
    ) -> None:
        """end_worker: called once something has run past its limit and does not stop. beat: told the time at every look."""
        self._clock = clock
        self._end_worker = end_worker
        self._beat = beat
        self._running: dict[str, Watched] = {}
        self._seen: dict[str, tuple[Watched, Nanoseconds]] = {}
        self._stopped = threading.Event()

    def begin(self, place: str, watched: Watched) -> None:
        """From now on it runs."""
        self._running[place] = watched

    def end(self, place: str) -> None:
        """It has returned."""
        self._running.pop(place, None)

    def run(self) -> None:
        """Until `stop`."""
        before = self._clock()
        while not self._stopped.wait(POLL_NS / SECOND):
            now = self._clock()
            self._beat(now)
            # A machine that stood still has not run anything meanwhile.
            self.look(min(now - before, 2 * POLL_NS))
            before = now

    def stop(self) -> None:
        """Ends `run`."""
        self._stopped.set()

    def look(self, passed: Nanoseconds) -> None:
        """Counts the time that has passed for everything that has been running since the last look, and acts on it."""
        seen = {}
        for place, watched in list(self._running.items()):
            known, before = self._seen.get(place, (None, 0))
            ran = before + passed if known is watched else 0
            seen[place] = (watched, ran)
            if before < watched.limit_ns <= ran and watched.stop is not None:
                watched.stop()
            elif ran >= watched.limit_ns + (GRACE_NS if watched.stop is not None else 0):
                self._give_up(watched, ran)
        self._seen = seen

    def _give_up(self, watched: Watched, ran: Nanoseconds) -> None:
        ran_s, limit_s = ran / SECOND, watched.limit_ns / SECOND
        message = f"{watched.label} has not returned for {ran_s:.1f} s, at most {limit_s:.1f} s are allowed"
        watched.abandon(message)
        sys.stderr.write(f"worker: {message}; the worker ends, to be replaced\n")
        sys.stderr.flush()
        self._stopped.set()
        self._end_worker()
