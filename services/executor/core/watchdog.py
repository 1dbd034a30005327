"""Whether a worker still answers: it may be slow, but a lane that has work must end a slice now and then, and a loader must say
what it does. Events and time in, a reason out."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gpu_sharing.measurements import Profile
from gpu_sharing.units import SECOND, Nanoseconds
from gpu_sharing.worker.messages import Done, Event, Failed, Loaded, LoadFailed, Stage, Statistics, Unloaded

FACTOR = 10
"""A lane may take this many times its longest expected batch before it is given up."""


class Patience(msgspec.Struct, frozen=True):
    """How long a worker may be silent. lane_ns: at least, while its lane has work. load_ns: while it loads a replica."""

    lane_ns: Nanoseconds = 15 * SECOND
    load_ns: Nanoseconds = 600 * SECOND


class Watch:
    """One life of a lane's worker. The lane and the loader are threads of their own: each has to show signs of life."""

    def __init__(self, now: Nanoseconds) -> None:
        self._born = self._ran = self._told = now
        self._busy_ns: Nanoseconds = 0
        self._longest_ns: Nanoseconds = 0

    def loads(self, now: Nanoseconds) -> None:
        """The worker has been told to load a replica."""
        self._told = now

    def heard(self, event: Event, now: Nanoseconds) -> None:
        """Takes what the worker said. That it refuses what is late says nothing of its lane: another thread does that."""
        match event:
            case Done():
                self._ended(event.batch.ended - event.batch.started - event.batch.preempted, now)
            case Failed():
                if event.batch is not None:
                    self._ran = now
            case Statistics():
                if event.busy_ns > self._busy_ns:
                    self._busy_ns, self._ran = event.busy_ns, now
            case Stage() | Loaded() | LoadFailed() | Unloaded():
                self._told = now
            case _:
                pass

    def silent(
        self, patience: Patience, *, working: bool, loading: bool, expected_ns: Nanoseconds, now: Nanoseconds
    ) -> str | None:
        """Why the worker is to be replaced; None: it need not be. To be asked every now and then.

        working: whether it has calls now. loading: whether it loads something. expected_ns: the longest batch that its
        replicas' profiles foresee.

        A lane counts as at work for as long as it has calls whenever it is asked about, whichever calls those are: where
        every deadline is short, each leaves unserved before its lane's silence could be long.
        """
        if not working:
            self._ran = now
        most_ns = max(patience.lane_ns, FACTOR * max(expected_ns, self._longest_ns))
        if now - self._ran > most_ns:
            return f"it had work and ended no slice for {most_ns / SECOND:.1f} s"
        if loading and now - self._told > patience.load_ns:
            return f"it was loading and said nothing for {patience.load_ns / SECOND:.1f} s"
        return None

    def _ended(self, device_ns: Nanoseconds, now: Nanoseconds) -> None:
        self._ran = now
        # What a worker says of its time is not to be trusted beyond what it has had.
        self._longest_ns = max(self._longest_ns, min(device_ns, now - self._born))


def longest_ns(profiles: Iterable[tuple[Profile, int]]) -> Nanoseconds:
    """The longest batch to be expected of replicas, each with its profile and the rows that a batch of it may hold.

    Batches larger than any that was measured are taken to cost in proportion.
    """
    return max(
        (
            point.p99_ns * max(1, -(-most_rows // max(1, point.rows)))
            for profile, most_rows in profiles
            for point in profile.points
        ),
        default=0,
    )
