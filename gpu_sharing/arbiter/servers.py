"""One tenant on one lane: what waits, what is in flight, what it may use and what it has used. PURE."""

from __future__ import annotations

from gpu_sharing.arbiter.batches import BatchInFlight, Plan
from gpu_sharing.arbiter.budget import Budget
from gpu_sharing.arbiter.calls import Call, Tier
from gpu_sharing.arbiter.events import TenantStatistics
from gpu_sharing.arbiter.order import Urgency
from gpu_sharing.arbiter.replicas import Replica
from gpu_sharing.arbiter.waiting import Waiting
from gpu_sharing.units import MS, Millidevices, Nanoseconds

AHEAD: Nanoseconds = 20 * MS
"""How far ahead of its reservation's pace guaranteed work goes before others' surplus: so that bursts are quick, and that
nobody waits long for a tenant whose objective is far away and which has much to do."""

SCALE = 1 << 20
"""Virtual time is device time × SCALE / weight, in whole numbers."""


class Meter:
    """What a tenant has used and what became of its requests, since the lane began: by tier."""

    __slots__ = ("admitted", "refused", "revoked", "used_ns")

    def __init__(self) -> None:
        self.used_ns = [0, 0, 0]
        self.admitted = [0, 0, 0]
        self.refused = 0
        self.revoked = 0

    def statistics(self, tenant: str, bandwidth: Millidevices, weight: int, waiting: int) -> TenantStatistics:
        """A snapshot."""
        guaranteed_ns, surplus_ns, gap_ns = self.used_ns
        guaranteed, surplus, gap = self.admitted
        return TenantStatistics(
            tenant, bandwidth, weight, waiting, guaranteed_ns, surplus_ns, gap_ns, guaranteed, surplus, gap,
            self.refused, self.revoked,
        )  # fmt: skip


class Server:
    """A tenant's replicas on the lane are served as one.

    number: ties are broken by it. wanted: the bandwidth that it should have; its budget has what was granted.
    flying: how many are in flight, by tier.
    next_guaranteed, next_beyond, next_gap: what it would do next within its reservation, beyond it (where what is guaranteed may
    go on, too) and in a gap: go on with a batch, or form one around a call; None: nothing.
    virtual: device time beyond the reservation, by weight: who has had least of it is served first.
    debt: of what was bought for its guaranteed work, what overruns have used up since the reservation ended.
    expected: device time that its calls and batches still need on average, by tier.
    """

    def __init__(self, tenant: str, number: int, capacity: Millidevices, meter: Meter) -> None:
        self.tenant = tenant
        self.number = number
        self.meter = meter
        self.replicas: dict[int, Replica] = {}
        self.weight = 1
        self.wanted: Millidevices = 0
        self.granted: Millidevices = 0
        self.budget = Budget(capacity)
        self.waiting = (Waiting(), Waiting(), Waiting())
        self.in_flight: list[BatchInFlight] = []
        self.flying = [0, 0, 0]
        self.next_guaranteed: BatchInFlight | Call | None = None
        self.next_beyond: BatchInFlight | Call | None = None
        self.next_gap: BatchInFlight | Call | None = None
        self.virtual = 0
        self.debt: Nanoseconds = 0
        self.expected = [0, 0, 0]
        self.counted_bandwidth: Millidevices = 0
        self.counted_weight = 0

    @property
    def serving(self) -> list[Replica]:
        """Replicas that take requests."""
        return [replica for replica in self.replicas.values() if replica.drain_until is None]

    def has(self, tier: Tier) -> bool:
        """Whether anything waits or is in flight on these terms."""
        return bool(self.flying[tier] or self.waiting[tier])

    @property
    def wants_more(self) -> bool:
        """Whether it has anything to do. What is guaranteed counts: ahead of its reservation's pace it takes part in the surplus."""
        guaranteed, surplus, gap = self.waiting
        return bool(self.in_flight or guaranteed or surplus or gap)

    def refresh(self) -> None:
        """What it would do next has changed."""
        batches: list[BatchInFlight | None] = [None, None, None]
        for batch in self.in_flight:
            best = batches[batch.tier]
            if batch.sealed:
                continue
            if best is None or _age(batch) < _age(best):
                batches[batch.tier] = batch
        waiting = self.waiting
        guaranteed, surplus = waiting[0].head, waiting[1].head
        self.next_guaranteed = self._next(batches[0], guaranteed)
        self.next_gap = self._next(batches[2], waiting[2].head)
        if batches[1] is None and surplus is None:
            self.next_beyond = self.next_guaranteed
        else:
            self.next_beyond = self._next(_oldest(batches[0], batches[1]), _foremost(guaranteed, surplus))

    def _next(self, batch: BatchInFlight | None, head: Call | None) -> BatchInFlight | Call | None:
        """Of the two, what goes first. A call that may not start, since too many batches of its replica are in flight, lends
        its turn to one of these."""
        if head is None or (batch is not None and head.urgency >= batch.urgency):
            return batch
        if head.replica.may_start(guaranteed=head.tier is Tier.GUARANTEED, has_reservation=self.granted > 0):
            return head
        lent = (each for each in self.in_flight if each.home is head.replica and not each.sealed)
        # Where all of these have been launched to their ends, what else is in flight goes on.
        return min(lent, key=_age, default=batch)

    def spend(self, batch: BatchInFlight, took: Nanoseconds, tier: Tier) -> None:
        """A slice of the batch has run on these terms."""
        self.meter.used_ns[tier] += took
        if tier is not Tier.GUARANTEED:
            self.virtual += took * SCALE // self.weight
            return
        over = max(0, batch.used + took - batch.funded)
        batch.funded += over
        batch.used += took
        if over and not self.budget.postpone(over):
            # What was bought for its other work pays, as far as it goes: nobody else does.
            self.debt += over
        paid = min(took, self.budget.left)
        self.debt -= took - paid
        self.budget.use(paid)

    def give_back(self, cost: Nanoseconds) -> None:
        """Time that was bought is not needed: it pays the debt first."""
        paid = min(cost, self.debt)
        self.debt -= paid
        self.budget.refund(cost - paid)

    def cover(self, work: BatchInFlight | Plan) -> Nanoseconds | None:
        """By when the work within the reservation is to be done; None where the reservation does not pay for it any more.

        What an estimate says now, and did not when the time was bought, is bought now.
        """
        if isinstance(work, BatchInFlight):
            if work.overruns:
                claim = self.claim()
                return None if claim is None else claim[1]
            return self.budget.cover(min(work.left, work.funded - work.used))
        if len(work.calls) == 1 and work.predicted is not None:
            (call,) = work.calls
            more = work.predicted - call.cost
            if more > 0 and self.budget.postpone(more):
                call.cost += more
        return self.budget.cover(work.predicted or 0)

    def claim(self) -> tuple[Nanoseconds, Nanoseconds] | None:
        """From when on and by when it is to have time for its next work within the reservation; None: not at all."""
        work = self.next_guaranteed
        if work is None:
            return None
        if isinstance(work, BatchInFlight) and work.overruns:
            # Nobody knows for how long it goes on; for one more slice it does.
            return self.budget.beyond(max(1, work.longest))
        return self.budget.next_use

    def settle(self, batch: BatchInFlight) -> None:
        """The batch is over: what it did not need is given back."""
        self.give_back(batch.funded - batch.used)
        batch.funded = batch.used

    def statistics(self) -> TenantStatistics:
        """A snapshot."""
        waiting = sum(map(len, self.waiting))
        return self.meter.statistics(self.tenant, self.granted, self.weight, waiting)

    def check_invariants(self) -> None:
        """Raises AssertionError unless what is bought is what guaranteed work is owed, and the queues are in order."""
        owed = sum(call.cost for call in self.waiting[Tier.GUARANTEED])
        owed += sum(batch.funded - batch.used for batch in self.in_flight)
        if owed != self.budget.left + self.debt:
            raise AssertionError(
                f"tenant {self.tenant}: {self.budget.left} ns of budget for {owed} ns of work, {self.debt} ns short"
            )
        self.budget.check_invariants()
        for tier in Tier:
            if self.flying[tier] != sum(batch.tier is tier for batch in self.in_flight):
                raise AssertionError(f"tenant {self.tenant}: {self.flying[tier]} batches of {tier.name} counted")
            waiting = self.waiting[tier]
            waiting.check_invariants()
            if any(call.tier is not tier for call in waiting):
                raise AssertionError(f"tenant {self.tenant}: a call in the queue of {tier.name} waits on other terms")


def _age(batch: BatchInFlight) -> tuple[Urgency, int]:
    return (batch.urgency, batch.number)


def _oldest(one: BatchInFlight | None, other: BatchInFlight | None) -> BatchInFlight | None:
    if one is None or other is None:
        return other if one is None else one
    return one if _age(one) < _age(other) else other


def _foremost(one: Call | None, other: Call | None) -> Call | None:
    if one is None or other is None:
        return other if one is None else one
    return other if other.place < one.place else one
