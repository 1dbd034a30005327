"""The requests of one replica that wait, in order, and what the replica has used. PURE."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TypeAlias

from gpu_sharing.arbiter.batching import batch_length
from gpu_sharing.arbiter.calls import Call, State
from gpu_sharing.arbiter.estimates import Estimates
from gpu_sharing.arbiter.events import ReplicaAdded, ReplicaStatistics
from gpu_sharing.arbiter.order import Rank, Urgency, rank, urgency
from gpu_sharing.arbiter.request import Request
from gpu_sharing.units import Nanoseconds

_Entry: TypeAlias = tuple[Rank, Call]
# Ranks end with the call's number, so two entries never compare their calls.


class ReplicaQueue:
    """One replica: its waiting calls by rank, once all together and once by shape key; its share; its meter.

    drain_until: set once it leaves; None while it serves.
    """

    def __init__(self, added: ReplicaAdded) -> None:
        self.replica = added.replica
        self.max_batch_size = added.max_batch_size
        self.bandwidth = added.bandwidth
        self.weight = added.weight
        self.estimates = Estimates(added.points)
        self.drain_until: Nanoseconds | None = None
        self.in_flight = 0
        self.device_ns: Nanoseconds = 0
        self.requests = 0
        self.batches = 0
        self._order: list[_Entry] = []
        self._by_shape: dict[bytes, list[_Entry]] = {}

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return len(self._order)

    @property
    def head(self) -> Request:
        """The request that goes first. IndexError where none waits."""
        return self._order[0][1].request

    @property
    def urgency(self) -> Urgency:
        """Of the head."""
        return urgency(self.head)

    def add(self, call: Call) -> None:
        """The call waits."""
        entry = (rank(call.request), call)
        bisect.insort(self._order, entry)
        bisect.insort(self._by_shape.setdefault(call.request.shape_key, []), entry)

    def remove(self, call: Call) -> None:
        """The call waits no longer."""
        place = rank(call.request)
        key = call.request.shape_key
        for entries in (self._order, self._by_shape[key]):
            index = bisect.bisect_left(entries, place, key=_rank_of)
            if index == len(entries) or entries[index][1] is not call:
                raise AssertionError(f"call {call.request.call} does not wait for replica {self.replica}")
            del entries[index]
        if not self._by_shape[key]:
            del self._by_shape[key]

    def take_batch(self) -> list[Call]:
        """Takes the calls of the next batch, whose first is the head. IndexError where none waits."""
        key = self.head.shape_key
        same = self._by_shape[key]
        length = batch_length([call.request for _, call in same[: self._most_requests()]], self.max_batch_size)
        taken = same[:length]
        del same[:length]
        if not same:
            del self._by_shape[key]
        if self._order[length - 1] is taken[-1]:
            del self._order[:length]
        else:
            members = {entry[0] for entry in taken}
            self._order = [entry for entry in self._order if entry[0] not in members]
        return [call for _, call in taken]

    def everything(self) -> Sequence[Call]:
        """The calls that wait, first first."""
        return [call for _, call in self._order]

    def meter(self, took: Nanoseconds) -> None:
        """A slice of this replica has run."""
        self.device_ns += took

    def statistics(self) -> ReplicaStatistics:
        """What it has used."""
        return ReplicaStatistics(self.replica, self.device_ns, self.requests, self.batches, self.waiting)

    def check_invariants(self) -> None:
        """Raises AssertionError unless both orders hold the same waiting calls, each in its place."""
        by_shape = [entry for entries in self._by_shape.values() for entry in entries]
        if sorted(by_shape) != self._order:
            raise AssertionError(f"replica {self.replica}: the queue by shape differs from the whole queue")
        for key, entries in self._by_shape.items():
            if not entries or entries != sorted(entries) or any(c.request.shape_key != key for _, c in entries):
                raise AssertionError(f"replica {self.replica}: the queue of shape {key!r} is out of order")
        if any(call.state is not State.WAITING or call.request.replica != self.replica for _, call in self._order):
            raise AssertionError(f"replica {self.replica}: a call in the queue does not wait for it")

    def _most_requests(self) -> int:
        # Every request has at least one row.
        return max(1, self.max_batch_size)


def _rank_of(entry: _Entry) -> Rank:
    return entry[0]
