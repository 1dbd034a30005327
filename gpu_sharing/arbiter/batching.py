"""Which requests run together? PURE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from gpu_sharing.arbiter.calls import Call, Tier
from gpu_sharing.arbiter.state import LaneState, Plan
from gpu_sharing.units import Nanoseconds


class Batching(Protocol):
    """Answers the question. Changes nothing."""

    def plan(self, head: Call, lane: LaneState, now: Nanoseconds) -> Plan:
        """The batch to form now around a call that waits, and whose turn it is."""
        ...


class Prefix(NamedTuple):
    """The first calls that could run together: their rows, what they would take alone, the earliest moment they are due."""

    rows: int
    alone: Nanoseconds
    due: Nanoseconds


class Largest:
    """As many as wait and fit. quantum_ns: as long as the longest slice is expected to fit that; None: whatever its length."""

    def __init__(self, quantum_ns: Nanoseconds | None = None) -> None:
        """Raises ValueError for a quantum below 1 ns."""
        if quantum_ns is not None and quantum_ns < 1:
            raise ValueError(f"quantum_ns: must be at least 1, is {quantum_ns}")
        self.quantum_ns = quantum_ns

    def plan(self, head: Call, lane: LaneState, now: Nanoseconds) -> Plan:
        """See `Batching`."""
        calls = self.candidates(head, lane)
        prefixes = _prefixes(calls, head)
        estimates = head.replica.estimates
        for length in _lengths(prefixes):
            prefix = prefixes[length - 1]
            predicted = estimates.p99(prefix.rows, head.shape_bucket)
            if length == 1 or self.fits(calls[:length], prefix, predicted, lane, now):
                return Plan(calls[:length], prefix.rows, predicted)
        raise AssertionError("a batch of one always fits")

    def candidates(self, head: Call, lane: LaneState) -> list[Call]:
        """Those that wait on the same terms, the head first. Class `batch` does not ride with others, it would make them late."""
        most = max(1, head.replica.max_batch_size)
        same = lane.server(head).waiting[head.tier].of_kind(head.kind, most)
        rows = 0
        for length, call in enumerate(same):
            rows += call.request.rows
            if length and (rows > most or call.is_fill != head.is_fill):
                return same[:length]
        return same

    def fits(
        self, calls: Sequence[Call], prefix: Prefix, predicted: Nanoseconds | None, lane: LaneState, now: Nanoseconds
    ) -> bool:
        """Whether these may run together. predicted: by the estimate; None: nothing is known."""
        del predicted, lane, now  # a finer policy looks at them
        if self.quantum_ns is None:
            return True
        longest = calls[0].replica.estimates.slice_p99(prefix.rows, calls[0].shape_bucket)
        return longest is None or longest <= self.quantum_ns


class LargestInTime(Largest):
    """The largest that still meets the earliest objective in it, and takes no longer than its calls one by one.

    Guaranteed calls are in time where their tenant's budget gives their batch a deadline early enough (`budget.py`), and where
    nobody else whom the tenant was promised that time loses it. Calls from surplus ride with them for as long as that takes no
    more than the budget has been bought for.
    """

    def candidates(self, head: Call, lane: LaneState) -> list[Call]:
        """See `Largest`; and behind guaranteed calls those of the surplus."""
        calls = super().candidates(head, lane)
        waiting = lane.server(head).waiting
        if head.tier is not Tier.GUARANTEED or not waiting[Tier.SURPLUS]:
            return calls
        room = head.replica.max_batch_size - sum(call.request.rows for call in calls)
        for rider in waiting[Tier.SURPLUS].of_kind(head.kind, max(0, room)):
            room -= rider.request.rows
            if room < 0:
                break
            calls.append(rider)
        return calls

    def fits(
        self, calls: Sequence[Call], prefix: Prefix, predicted: Nanoseconds | None, lane: LaneState, now: Nanoseconds
    ) -> bool:
        """See `Largest`."""
        if not super().fits(calls, prefix, predicted, lane, now):
            return False
        if predicted is None:
            return True
        if predicted > prefix.alone:
            return False
        tier = calls[0].tier
        if tier is Tier.GUARANTEED:
            return self._keeps_promises(calls, prefix, predicted, lane)
        return tier is Tier.GAP or now + predicted <= prefix.due

    def _keeps_promises(self, calls: Sequence[Call], prefix: Prefix, predicted: Nanoseconds, lane: LaneState) -> bool:
        budget = lane.server(calls[0]).budget
        if budget.deadline_of(predicted) + lane.longest_slice > prefix.due:
            return False
        first = first_outside(calls, lane)
        if first is None or budget.finish + lane.longest_slice <= first:
            return True
        # The others lose the time that the batch takes beyond those of its calls that would have gone before them.
        before_them = sum(call.cost for call in calls if call.due <= first and call.tier is Tier.GUARANTEED)
        return predicted <= before_them


def first_outside(calls: Sequence[Call], lane: LaneState) -> Nanoseconds | None:
    """The earliest moment at which something guaranteed of the same tenant is due that is not among these calls."""
    server = lane.server(calls[0])
    dues = [batch.due for batch in server.in_flight if batch.tier is Tier.GUARANTEED]
    members = iter(calls)
    for call in server.waiting[Tier.GUARANTEED]:
        if call is not next(members, None):
            dues.append(call.due)
            break
    return min(dues, default=None)


def _prefixes(calls: Sequence[Call], head: Call) -> list[Prefix]:
    prefixes = []
    rows, alone, due = 0, 0, head.due
    for call in calls:
        rows += call.request.rows
        # What rides with guaranteed calls brings no budget.
        alone += call.cost if call.tier is head.tier else 0
        due = min(due, call.due) if call.tier is head.tier else due
        prefixes.append(Prefix(rows, alone, due))
    return prefixes


def _lengths(prefixes: Sequence[Prefix]) -> list[int]:
    """How many calls to try: all of them, then the most whose rows fit each power of two, down to one."""
    lengths = [len(prefixes)]
    most = prefixes[-1].rows
    bound = 1 << max(0, most - 1).bit_length() >> 1
    length = len(prefixes)
    while bound >= 1 and length > 1:
        while length > 1 and prefixes[length - 1].rows > bound:
            length -= 1
        if length != lengths[-1]:
            lengths.append(length)
        bound >>= 1
    if lengths[-1] != 1:
        lengths.append(1)
    return lengths
