"""Everything that one lane's policies look at: who waits, what is in flight, who is owed what. PURE."""

from __future__ import annotations

from collections.abc import Callable

from gpu_sharing.arbiter.batches import BatchInFlight, Plan
from gpu_sharing.arbiter.calls import Call, Step, Tier
from gpu_sharing.arbiter.events import ArbiterStatistics
from gpu_sharing.arbiter.foresight import Foresight
from gpu_sharing.arbiter.replicas import Replica
from gpu_sharing.arbiter.servers import AHEAD, Server
from gpu_sharing.arbiter.tenancy import Tenancy
from gpu_sharing.arbiter.turns import Turns
from gpu_sharing.units import MS, SECOND, Millidevices, Nanoseconds

DEFAULT_ESTIMATE: Nanoseconds = 1 * MS
"""Of a request about which nothing is known."""

_SHARE_MEMORY: Nanoseconds = 250 * MS
_MOST_SHARE = 0.95
_REMEASURE_EVERY: Nanoseconds = 1 * SECOND

Touched = Callable[[Server, Nanoseconds], None]


class LaneState:
    """Of one lane. Policies read it; the arbiter alone changes it, and tells `touched` whose situation has changed.

    ahead: slices that may be out at once.
    expected: device time that all calls and batches still need on average, by tier.
    busy_bandwidth: of servers with guaranteed work. busy_weight: of servers with surplus work.
    unguaranteed: batches in flight that no reservation pays for.
    virtual: the virtual time of what runs from surplus, which is where a server starts that had nothing to do.
    guaranteed_share: of the lane's time lately, what went to guaranteed work.
    foresight: how far from the truth expected waits of surplus have been lately.
    last: the number of the batch whose slice was handed out last. turns: who had the lane lately.
    longest_slice: of anyone, as far as known; 0: nothing is. slice_bound: what is out before one that is handed out now is
    not likely to take longer: as many slices as may be out.
    """

    def __init__(self, lane: int, capacity: Millidevices, touched: Touched, ahead: int = 1) -> None:
        """ahead: slices that may be out at once. Raises ValueError for a capacity below 1 millidevice."""
        self.lane = lane
        self.ahead = ahead
        self.tenancy = Tenancy(capacity)
        self.calls: dict[int, Call] = {}
        self.batches: dict[int, BatchInFlight] = {}
        self.expected = [0, 0, 0]
        self.busy_bandwidth: Millidevices = 0
        self.busy_weight = 0
        self.unguaranteed = 0
        self.virtual = 0
        self.busy_ns: Nanoseconds = 0
        self.guaranteed_share = 0.0
        self.foresight = Foresight()
        self._share_at: Nanoseconds | None = None
        self.last: int | None = None
        self.turns = Turns()
        self.longest_slice: Nanoseconds = 0
        self.slice_bound: Nanoseconds = 0
        self._remeasure_at: Nanoseconds = 0
        self._touched = touched
        self._formed = 0

    @property
    def capacity(self) -> Millidevices:
        """Of the lane."""
        return self.tenancy.capacity

    def replica(self, number: int) -> Replica | None:
        """The replica, if it is here."""
        return self.tenancy.replicas.get(number)

    def server(self, call: Call) -> Server:
        """The call's tenant's."""
        return self.tenancy.servers[call.replica.tenant]

    def server_of(self, batch: BatchInFlight) -> Server:
        """The batch's tenant's."""
        return self.tenancy.servers[batch.home.tenant]

    # Calls.

    def weigh(self, call: Call) -> None:
        """What the call will take, by what is known now."""
        estimates = call.replica.estimates
        weight = estimates.weigh(call.rows, call.shape_bucket, call.replica.max_batch_size)
        if weight is None:
            cost = estimates.guess(call.rows, call.shape_bucket)
            call.cost = max(1, DEFAULT_ESTIMATE if cost is None else cost)
        else:
            call.cost, call.alone, call.packed = max(1, weight.p99), weight.mean, weight.packed

    def admit(self, call: Call, tier: Tier, now: Nanoseconds) -> None:
        """The call waits on these terms; once more, where its first batch broke."""
        server = self.server(call)
        if not call.is_again:
            call.take(Step.ADMIT)
            self.calls[call.request.call] = call
            server.meter.admitted[tier] += 1
        call.replica.waiting += 1
        if tier is Tier.GUARANTEED:
            server.budget.buy(call.cost, now)
        self._enqueue(call, tier, server)
        self.touch(server, now)

    def demote(self, call: Call, now: Nanoseconds) -> None:
        """A call of SURPLUS waits for a gap from now on."""
        self.see_end(call, now + call.alone + self.promised_wait(call.alone, now), now)
        call.take(Step.DEMOTE)
        server = self.server(call)
        self._dequeue(call, server)
        self._enqueue(call, Tier.GAP, server)
        self.touch(server, now)

    def hold(self, replica: Replica, ready_at: Nanoseconds, now: Nanoseconds) -> None:
        """No batch of the replica may start from now on."""
        was_held, replica.ready_at = replica.ready_at is not None, ready_at
        if was_held:
            return
        server = self.tenancy.servers[replica.tenant]
        for waiting in server.waiting:
            waiting.set_aside(replica.replica)
        self.touch(server, now)

    def release(self, replica: Replica, now: Nanoseconds) -> None:
        """Its batches may start again."""
        if replica.ready_at is None:
            return
        replica.ready_at = None
        server = self.tenancy.servers[replica.tenant]
        if not server.in_flight and all(waiting.head is None for waiting in server.waiting):
            # What the others had of the surplus while it could not use any is theirs.
            server.virtual = max(server.virtual, self.virtual)
        for waiting in server.waiting:
            waiting.take_back(replica.replica)
        self.touch(server, now)

    def see_end(self, call: Call, end: Nanoseconds, now: Nanoseconds) -> None:
        """A call of the surplus is done at this moment, or would be at the earliest: what was expected of it is judged by that."""
        if call.expected is not None:
            arrived = call.request.arrived
            allowed = call.due - arrived
            self.foresight.see(call.expected - arrived, end - arrived, allowed, 2 * self.slice_bound, now)
            call.expected = None

    def withdraw(self, call: Call, now: Nanoseconds) -> None:
        """The call waits no longer, and is in no batch."""
        server = self.server(call)
        self._dequeue(call, server)
        call.replica.waiting -= 1
        if call.tier is Tier.GUARANTEED:
            server.give_back(call.cost)
        self.touch(server, now)

    def _enqueue(self, call: Call, tier: Tier, server: Server) -> None:
        if not server.wants_more:
            # Who did not want the surplus has no claim on what the others had of it meanwhile.
            server.virtual = max(server.virtual, self.virtual)
        call.tier = tier
        server.waiting[tier].add(call)
        self._expect(server, tier, call.packed)

    def _dequeue(self, call: Call, server: Server) -> None:
        server.waiting[call.tier].remove(call)
        self._expect(server, call.tier, -call.packed)

    def _expect(self, server: Server, tier: Tier, more: Nanoseconds) -> None:
        server.expected[tier] += more
        self.expected[tier] += more

    # Batches.

    def form(self, plan: Plan) -> BatchInFlight:
        """The calls of the plan wait no longer: they are in flight."""
        head = plan.calls[0]
        server, replica = self.server(head), head.replica
        self._formed += 1
        batch = BatchInFlight(
            self._formed, replica, list(plan.calls), plan.rows, head.tier, head.urgency, head.due, head.shape_bucket,
            plan.predicted,
        )  # fmt: skip
        batch.expected = replica.estimates.mean(plan.rows, head.shape_bucket) or 0
        batch.usual = replica.estimates.usual(plan.rows, head.shape_bucket) or 0
        self._join(batch, server)
        self._count(batch, server, 1)
        replica.waiting -= len(plan.calls)
        # Who runs again has been counted, and runs alone.
        replica.requests += 0 if head.is_again else len(plan.calls)
        replica.batches += 1
        # Nobody chooses before its first slice has ended, and then the server is looked at anyway; but others may come.
        if plan.calls[-1].tier is not head.tier:
            self._recount(server)
        return batch

    def _join(self, batch: BatchInFlight, server: Server) -> None:
        """Its calls wait no longer. Guaranteed ones bring what has been bought for them; behind them, surplus may ride."""
        own: list[Call] = []
        riders: list[Call] = []
        funded, packed, brought = 0, 0, 0
        tier, number, due, urgency, step = batch.tier, batch.number, batch.due, batch.urgency, Step.JOIN
        for call in batch.calls:
            if call.tier is tier:
                own.append(call)
                packed += call.packed
                funded += call.cost
            else:
                riders.append(call)
                brought += call.packed
            call.take(step)
            call.batch = number
            if call.urgency < urgency:
                urgency = call.urgency
            if call.due < due:
                due = call.due
        batch.due, batch.urgency = due, urgency
        server.waiting[batch.tier].take(own)
        self._expect(server, batch.tier, batch.expected - packed)
        if batch.tier is Tier.GUARANTEED:
            batch.funded = funded
        if riders:
            server.waiting[Tier.SURPLUS].take(riders)
            self._expect(server, Tier.SURPLUS, -brought)

    def spend(
        self, batch: BatchInFlight, took: Nanoseconds, started: Nanoseconds, tier: Tier, now: Nanoseconds
    ) -> None:
        """A slice of the batch has run on these terms. To be followed by `touch` or `dismiss`."""
        server = self.server_of(batch)
        batch.end_slice(took, started)
        self.turns.note(batch.home.replica, batch.number, started, started + took)
        self.busy_ns += took
        batch.home.device_ns += took
        server.spend(batch, took, tier)
        part = min(took, batch.expected)
        batch.expected -= part
        self._expect(server, batch.tier, -part)
        self._see_slice(batch.home, took, now)
        self._see_share(took if tier is Tier.GUARANTEED else 0, took, now)

    def dismiss(self, batch: BatchInFlight, now: Nanoseconds) -> None:
        """The batch is over."""
        server = self.server_of(batch)
        server.settle(batch)
        self._count(batch, server, -1)
        self._expect(server, batch.tier, -batch.expected)
        self.touch(server, now)

    def _count(self, batch: BatchInFlight, server: Server, change: int) -> None:
        if change > 0:
            self.batches[batch.number] = batch
            server.in_flight.append(batch)
        else:
            del self.batches[batch.number]
            server.in_flight.remove(batch)
        server.flying[batch.tier] += change
        if batch.tier is Tier.GUARANTEED:
            batch.home.guaranteed += change
        else:
            batch.home.unguaranteed += change
            self.unguaranteed += change
        if batch.sealed:
            batch.home.sealed[batch.tier is not Tier.GUARANTEED] += change

    def seal(self, batch: BatchInFlight, now: Nanoseconds) -> None:
        """The batch takes no more slices: it keeps no other one of its replica from starting. Twice is once."""
        if not batch.sealed:
            batch.sealed = True
            batch.home.sealed[batch.tier is not Tier.GUARANTEED] += 1
            self.touch(self.server_of(batch), now)

    def _see_slice(self, replica: Replica, took: Nanoseconds, now: Nanoseconds) -> None:
        replica.longest_slice.add(took, now)
        if took > self.longest_slice or not self.longest_slice or now >= self._remeasure_at:
            self.remeasure(now)

    def _see_share(self, guaranteed: Nanoseconds, took: Nanoseconds, now: Nanoseconds) -> None:
        since = now - took if self._share_at is None else self._share_at
        elapsed = max(1, took, now - since)
        self._share_at = now
        kept = _SHARE_MEMORY / (_SHARE_MEMORY + elapsed)
        self.guaranteed_share = kept * self.guaranteed_share + (1.0 - kept) * guaranteed / elapsed

    def remeasure(self, now: Nanoseconds) -> None:
        """Replicas have come or gone, or a long slice has been seen, or may have been forgotten."""
        replicas = self.tenancy.replicas.values()
        self.longest_slice = max((each.longest_slice.at(now) for each in replicas), default=0)
        self.slice_bound = self.ahead * max((each.slice_bound(now) for each in replicas), default=0)
        self._remeasure_at = now + _REMEASURE_EVERY

    # Everybody.

    def promised_wait(self, work: Nanoseconds, now: Nanoseconds) -> Nanoseconds:
        """How much guaranteed work is likely to go before so much work from surplus.

        What is there goes first, as far as its pace allows meanwhile; and as much comes as did lately.
        """
        idle = 0 if self._share_at is None else now - self._share_at
        share = min(self.guaranteed_share * _SHARE_MEMORY / (_SHARE_MEMORY + max(0, idle)), _MOST_SHARE)
        busy = min(self.busy_bandwidth / self.capacity, _MOST_SHARE)
        paced = AHEAD * busy + work * busy / (1.0 - busy)
        return int(min(self.expected[Tier.GUARANTEED], paced) + work * share / (1.0 - share))

    def touch(self, server: Server, now: Nanoseconds) -> None:
        """The server's situation has changed."""
        server.refresh()
        self._recount(server)
        self._touched(server, now)

    def _recount(self, server: Server) -> None:
        bandwidth = server.granted if server.has(Tier.GUARANTEED) else 0
        self.busy_bandwidth += bandwidth - server.counted_bandwidth
        server.counted_bandwidth = bandwidth
        weight = server.weight if server.has(Tier.SURPLUS) else 0
        self.busy_weight += weight - server.counted_weight
        server.counted_weight = weight

    def statistics(self) -> ArbiterStatistics:
        """A snapshot."""
        replicas = tuple(replica.statistics() for replica in self.tenancy.replicas.values())
        waiting = sum(replica.waiting for replica in replicas)
        tenants = tuple(self.tenancy.statistics())
        return ArbiterStatistics(self.busy_ns, waiting, len(self.batches), replicas, tenants, self.longest_slice)
