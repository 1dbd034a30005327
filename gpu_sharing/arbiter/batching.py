"""Which requests run together? PURE.

Why a batch breaks no promise. Every guaranteed call has bought a piece of its tenant's budget that is due before the call is.
So of all that is waiting or in flight, what is due by some moment has been bought by then, and served in the order of what is
due it is in time. A batch takes time away from a call outside of it only by what it needs beyond those of its calls that would
have gone before that one anyway: it is formed where that is nothing, or where all that the tenant has bought is due before that
call is. Its own calls are in time where the last piece that it uses is due before the earliest of them. Two longest slices are
kept as a margin, which is what a tenant within its contract always has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from gpu_sharing.arbiter.batches import Plan
from gpu_sharing.arbiter.calls import Call, Tier
from gpu_sharing.arbiter.state import LaneState
from gpu_sharing.units import Nanoseconds


class Batching(Protocol):
    """Answers the question. Changes nothing."""

    def plan(self, head: Call, lane: LaneState, now: Nanoseconds) -> Plan:
        """The batch to form now around a call that waits, and whose turn it is."""
        ...


class Together(NamedTuple):
    """Calls that could run together, first in their queues: guaranteed ones may be followed by some of the surplus.

    rows: of all. alone, due: of those on the head's terms: what they would take one by one, the earliest moment one is due.
    """

    calls: list[Call]
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
        together = self.candidates(head, lane)
        estimates = head.replica.estimates
        while True:
            predicted = estimates.p99(together.rows, head.shape_bucket)
            if len(together.calls) == 1 or self.fits(together, predicted, lane, now):
                return Plan(together.calls, together.rows, predicted)
            together = _fewer(together)

    def candidates(self, head: Call, lane: LaneState) -> Together:
        """Those that wait on the same terms, the head first. Class `batch` does not ride with others, it would make them late."""
        most, is_fill = head.replica.max_batch_size, head.is_fill
        calls: list[Call] = []
        rows, alone, due = 0, 0, head.due
        for _, call in lane.server(head).waiting[head.tier].of_kind(head.kind):
            more = rows + call.rows
            if calls and (more > most or call.is_fill is not is_fill):
                break
            calls.append(call)
            rows = more
            alone += call.cost
            if call.due < due:
                due = call.due
            if rows >= most:
                break
        return Together(calls, rows, alone, due)

    def fits(self, together: Together, predicted: Nanoseconds | None, lane: LaneState, now: Nanoseconds) -> bool:
        """Whether these may run together. predicted: by the estimate; None: nothing is known."""
        del predicted, lane, now  # a finer policy looks at them
        if self.quantum_ns is None:
            return True
        head = together.calls[0]
        longest = head.replica.estimates.slice_p99(together.rows, head.shape_bucket)
        return longest is None or longest <= self.quantum_ns


class LargestInTime(Largest):
    """The largest that still meets the earliest objective in it, and takes no longer than its calls one by one.

    Guaranteed calls are in time where their tenant's budget gives their batch a deadline early enough (`budget.py`), and where
    nobody else whom the tenant was promised that time loses it. Calls from surplus ride with them for as long as that takes no
    more than the budget has been bought for.
    """

    def candidates(self, head: Call, lane: LaneState) -> Together:
        """See `Largest`; and behind guaranteed calls those of the surplus."""
        together = super().candidates(head, lane)
        surplus = lane.server(head).waiting[Tier.SURPLUS]
        if head.tier is not Tier.GUARANTEED or not surplus:
            return together
        rows, most = together.rows, head.replica.max_batch_size
        for _, rider in surplus.of_kind(head.kind) if rows < most else ():
            if rows + rider.rows > most:
                break
            rows += rider.rows
            together.calls.append(rider)
        return together if rows == together.rows else together._replace(rows=rows)

    def fits(self, together: Together, predicted: Nanoseconds | None, lane: LaneState, now: Nanoseconds) -> bool:
        """See `Largest`."""
        if self.quantum_ns is not None and not super().fits(together, predicted, lane, now):
            return False
        if predicted is None:
            return True
        if predicted > together.alone:
            return False
        tier = together.calls[0].tier
        if tier is Tier.GUARANTEED:
            return self._keeps_promises(together, predicted, lane)
        return tier is Tier.GAP or now + predicted <= together.due

    def _keeps_promises(self, together: Together, predicted: Nanoseconds, lane: LaneState) -> bool:
        budget = lane.server(together.calls[0]).budget
        # What has been promised to a tenant that keeps to its contract leaves that much.
        margin = 2 * lane.slice_bound
        if not budget.left:
            # The reservation has gone, and overruns have used up what was bought for these: they go one by one.
            return False
        if budget.deadline_of(predicted) + margin > together.due:
            return False
        first = first_outside(together.calls, lane)
        if first is None or budget.finish + margin <= first:
            return True
        # The others lose the time that the batch takes beyond those of its calls that would have gone before them.
        before_them = (call for call in together.calls if call.due <= first and call.tier is Tier.GUARANTEED)
        return predicted <= sum(call.cost for call in before_them)


def first_outside(calls: Sequence[Call], lane: LaneState) -> Nanoseconds | None:
    """The earliest moment at which something guaranteed of the same tenant is due that is not among these calls."""
    server = lane.server(calls[0])
    waiting = server.waiting[Tier.GUARANTEED]
    may_wait = len(waiting) > len(calls) or calls[-1].tier is not Tier.GUARANTEED
    outside = waiting.first_beyond(calls) if may_wait else None
    first = None if outside is None else outside.due
    for batch in server.in_flight:
        if batch.tier is Tier.GUARANTEED and (first is None or batch.due < first):
            first = batch.due
    return first


def _fewer(together: Together) -> Together:
    """The most of the first whose rows fit the next smaller power of two; never none."""
    calls, rows = together.calls, together.rows
    bound = 1 << (rows - 1).bit_length() >> 1
    length = len(calls)
    while length > 1 and rows > bound:
        length -= 1
        rows -= calls[length].rows
    calls = calls[:length]
    # What rides with guaranteed calls brings no budget, and was promised nothing.
    own = [call for call in calls if call.tier is calls[0].tier]
    return Together(calls, rows, sum(call.cost for call in own), min(call.due for call in own))
