"""One tenant on one lane: what waits, what is in flight, what it may use and what it has used. PURE."""

from __future__ import annotations

from gpu_sharing.arbiter.batches import BatchInFlight
from gpu_sharing.arbiter.budget import Budget
from gpu_sharing.arbiter.calls import Call, Tier
from gpu_sharing.arbiter.events import TenantStatistics
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
    virtual: device time beyond the reservation, by weight: who has had least of it is served first.
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
        self.virtual = 0
        self.expected = [0, 0, 0]
        self.counted_bandwidth: Millidevices = 0
        self.counted_weight = 0

    @property
    def serving(self) -> list[Replica]:
        """Replicas that take requests."""
        return [replica for replica in self.replicas.values() if replica.drain_until is None]

    def has(self, tier: Tier) -> bool:
        """Whether anything waits or is in flight on these terms."""
        return bool(self.waiting[tier]) or any(batch.tier is tier for batch in self.in_flight)

    @property
    def wants_more(self) -> bool:
        """Whether it has anything to do that no reservation pays for."""
        return bool(self.waiting[Tier.SURPLUS] or self.waiting[Tier.GAP]) or any(
            batch.tier is not Tier.GUARANTEED for batch in self.in_flight
        )

    def next_work(self, tiers: tuple[Tier, ...]) -> BatchInFlight | Call | None:
        """What it would do next on these terms: go on with a batch, or form one around a call; None: nothing.

        A call that may not start, since its replica has too many batches in flight, lends its turn to one of these.
        """
        batch: BatchInFlight | None = None
        for each in self.in_flight:
            if each.tier in tiers and (batch is None or _age(each) < _age(batch)):
                batch = each
        head: Call | None = None
        for tier in tiers:
            call = self.waiting[tier].head
            if call is not None and (head is None or call.place < head.place):
                head = call
        if head is None or (batch is not None and not head.urgency < batch.urgency):
            return batch
        return self._in_the_way(head) or head

    def _in_the_way(self, head: Call) -> BatchInFlight | None:
        if head.replica.may_start(guaranteed=head.tier is Tier.GUARANTEED, has_reservation=self.granted > 0):
            return None
        return min((batch for batch in self.in_flight if batch.home is head.replica), key=_age)

    def spend(self, batch: BatchInFlight, took: Nanoseconds, tier: Tier) -> None:
        """A slice of the batch has run on these terms."""
        self.meter.used_ns[tier] += took
        if tier is not Tier.GUARANTEED:
            self.virtual += took * SCALE // self.weight
            return
        batch.used += took
        over = batch.used - batch.funded
        if over > 0:
            self.budget.postpone(over)
            batch.funded += over
        batch.lent = min(batch.lent, batch.funded - batch.used)
        self.budget.use(took)

    def recharge(self) -> None:
        """A batch within the reservation goes on beyond its estimate: time for a slice of it is bought, behind everything."""
        batch = next(batch for batch in self.in_flight if batch.tier is Tier.GUARANTEED)
        quantum = max(1, batch.longest)
        self.budget.postpone(quantum)
        batch.funded += quantum
        batch.lent += quantum

    def finish_after(self, cost: Nanoseconds, now: Nanoseconds) -> Nanoseconds | None:
        """The deadline that the reservation gives to work of this cost, if it comes now; None where there is none."""
        return self.budget.finish_after(cost, now, spare=sum(batch.lent for batch in self.in_flight))

    def settle(self, batch: BatchInFlight) -> None:
        """The batch is over: what it did not need is given back."""
        self.budget.refund(batch.funded - batch.used)
        batch.funded, batch.lent = batch.used, 0

    def statistics(self) -> TenantStatistics:
        """A snapshot."""
        waiting = sum(map(len, self.waiting))
        return self.meter.statistics(self.tenant, self.granted, self.weight, waiting)

    def check_invariants(self) -> None:
        """Raises AssertionError unless what is bought is what guaranteed work is owed, and the queues are in order."""
        owed = sum(call.cost for call in self.waiting[Tier.GUARANTEED])
        owed += sum(batch.funded - batch.used for batch in self.in_flight)
        if owed != self.budget.left:
            raise AssertionError(f"tenant {self.tenant}: {self.budget.left} ns of budget for {owed} ns of work")
        self.budget.check_invariants()
        for tier in Tier:
            waiting = self.waiting[tier]
            waiting.check_invariants()
            if any(call.tier is not tier for call in waiting):
                raise AssertionError(f"tenant {self.tenant}: a call in the queue of {tier.name} waits on other terms")


def _age(batch: BatchInFlight) -> tuple[object, int]:
    return (batch.urgency, batch.number)
