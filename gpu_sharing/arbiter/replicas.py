"""A model on a lane: its estimates, how much of it is in flight, and what it has used. PURE."""

from __future__ import annotations

from gpu_sharing.arbiter.estimates import Estimates
from gpu_sharing.arbiter.events import ReplicaAdded, ReplicaStatistics
from gpu_sharing.units import SECOND, Nanoseconds

IN_FLIGHT_PER_REPLICA = 2
"""So that a replica's urgent request need not wait behind its own large batch. Activations are reserved for this many."""

MOST_RUNS_AGAIN = 256
"""Of requests whose batch broke."""

_MEMORY: Nanoseconds = 10 * SECOND
_MANY = 100


class _Slices:
    """Some slices: how many, and the two longest."""

    __slots__ = ("count", "longest", "second")

    def __init__(self) -> None:
        self.count = 0
        self.longest: Nanoseconds = 0
        self.second: Nanoseconds = 0

    def add(self, took: Nanoseconds) -> None:
        self.count += 1
        if took > self.longest:
            self.longest, self.second = took, self.longest
        elif took > self.second:
            self.second = took

    @property
    def told(self) -> Nanoseconds:
        """The longest; of many, one may have been an accident."""
        return self.second if self.count >= _MANY else self.longest


class LongestSlice:
    """The longest slice of the last 10 to 20 seconds, or what the profile says where there was none: a machine's hiccup, or a
    model's first run, must not count for ever. 0: nothing is known."""

    __slots__ = ("_before", "_now", "_since", "seed")

    def __init__(self, seed: Nanoseconds) -> None:
        self.seed = seed
        self._now = _Slices()
        self._before = _Slices()
        self._since: Nanoseconds | None = None

    def add(self, took: Nanoseconds, now: Nanoseconds) -> None:
        """A slice has ended."""
        self._forget(now)
        if self._since is None:
            self._since = now
        self._now.add(took)

    def at(self, now: Nanoseconds) -> Nanoseconds:
        """By then."""
        self._forget(now)
        if self._since is None:
            return self.seed
        return max(self._now.told, self._before.told) or self.seed

    def _forget(self, now: Nanoseconds) -> None:
        if self._since is None or now - self._since <= _MEMORY:
            return
        self._before = self._now if now - self._since <= 2 * _MEMORY else _Slices()
        self._now = _Slices()
        self._since = now if self._before.count else None


class Replica:
    """One replica. tenant: whose it is.

    drain_until: set once it leaves; None while it serves. waiting, guaranteed, unguaranteed: calls that wait, batches in
    flight within the reservation and not; sealed: of both, those that are launched to their ends. runs_again: how many calls may be run again whose batch broke.
    queue_limit: calls that may wait; 0: as many as the lane allows.
    ready_at: while no batch of it may start, since its weights are not on the device: when they may be; None: they are.
    """

    __slots__ = (
        "_largest_batch_ns", "bandwidth", "batches", "device_ns", "drain_until", "estimates", "guaranteed", "longest_slice", "max_batch_size", "queue_limit",
        "ready_at", "replica", "requests", "runs_again", "sealed", "tenant", "unguaranteed", "waiting", "weight",
    )  # fmt: skip

    def __init__(self, added: ReplicaAdded) -> None:
        self.replica = added.replica
        self.tenant = f"replica {added.replica}" if added.tenant is None else added.tenant
        self.max_batch_size = added.max_batch_size
        self.bandwidth = added.bandwidth
        self.weight = added.weight
        self.estimates = Estimates(added.points)
        self.longest_slice = LongestSlice(max((max(point.segments_ns, default=0) for point in added.points), default=0))
        self._largest_batch_ns = max((point.p99_ns for point in added.points), default=0)
        self.drain_until: Nanoseconds | None = None
        self.waiting = 0
        self.guaranteed = 0
        self.unguaranteed = 0
        self.sealed = [0, 0]
        self.device_ns: Nanoseconds = 0
        self.requests = 0
        self.batches = 0
        self.runs_again = MOST_RUNS_AGAIN
        self.queue_limit = added.queue_limit
        self.ready_at: Nanoseconds | None = None

    def slice_bound(self, now: Nanoseconds) -> Nanoseconds:
        """Its longest slice, or where none is known all of its largest batch; 0 where nothing is known at all."""
        return self.longest_slice.at(now) or self._largest_batch_ns

    @property
    def in_flight(self) -> int:
        """Batches that have started."""
        return self.guaranteed + self.unguaranteed

    def may_start(self, *, guaranteed: bool, has_reservation: bool) -> bool:
        """Whether another batch of it may start: where there is a reservation, one place is kept for what it pays for."""
        open_guaranteed, open_others = self.guaranteed - self.sealed[0], self.unguaranteed - self.sealed[1]
        if open_guaranteed + open_others >= IN_FLIGHT_PER_REPLICA:
            return False
        if guaranteed:
            return open_guaranteed == 0
        return open_others < IN_FLIGHT_PER_REPLICA - has_reservation

    def statistics(self) -> ReplicaStatistics:
        """What it has used."""
        return ReplicaStatistics(self.replica, self.device_ns, self.requests, self.batches, self.waiting)
