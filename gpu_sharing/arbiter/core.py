"""Whose slice runs next on one lane: events in, actions out. PURE.

The lane asks for the next slice, runs it, and tells what it took:

    while (slice := arbiter.next_slice(now())) is not None:
        actions = arbiter.handle(run(slice), now())

Every call that has arrived is answered exactly once, by a Drop or in a Complete. Policies answer one question each and can
be replaced: `admission` (may it wait, and on what terms?), `switching` (who gets the next slice?), `batching` (who runs
together?). The package's docstring says what they promise together, and why that holds.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from gpu_sharing.arbiter.admission import Admission, Refused, Reservations, is_late, late
from gpu_sharing.arbiter.again import earn, left_out, survivors, terms
from gpu_sharing.arbiter.batches import BatchInFlight
from gpu_sharing.arbiter.batching import Batching, LargestInTime
from gpu_sharing.arbiter.calls import Call, State, Step, Tier
from gpu_sharing.arbiter.events import (
    Abandon,
    Action,
    AllLaunched,
    ArbiterStatistics,
    Arrived,
    BatchFailed,
    Cancelled,
    Complete,
    Drop,
    Event,
    ReplicaAdded,
    ReplicaGone,
    ReplicaHeld,
    ReplicaReady,
    ReplicaRemoved,
    ReplicaUpdated,
    Slice,
    SliceDone,
)
from gpu_sharing.arbiter.invariants import check
from gpu_sharing.arbiter.replicas import Replica
from gpu_sharing.arbiter.state import LaneState
from gpu_sharing.arbiter.switching import EarliestDeadline, Switching
from gpu_sharing.units import Millidevices, Nanoseconds

WHOLE_DEVICE: Millidevices = 1000
_SPARE_DEADLINES = 64
_UNLOADED = ("MODEL_NOT_READY", "the model was unloaded while the request ran")


class _Out(NamedTuple):
    """A slice that has been handed out. account: on which terms it runs."""

    batch: BatchInFlight
    account: Tier
    handed: Nanoseconds


class Arbiter:
    """The arbiter of one lane. `now` never goes backwards between calls; it is the clock of arrivals and deadlines."""

    def __init__(
        self,
        *,
        lane: int = 0,
        admission: Admission | None = None,
        switching: Switching | None = None,
        batching: Batching | None = None,
        capacity: Millidevices = WHOLE_DEVICE,
        ahead: int = 1,
    ) -> None:
        """capacity: the lane's; bandwidths are parts of it. None: the policy of reservations.

        ahead: slices that may be handed out before the first of them has ended. They run in that order. What is promised holds
        with one longest slice more for each beyond the first. ValueError for a capacity or a bound below 1.
        """
        if ahead < 1:
            raise ValueError(f"ahead: must be at least 1, is {ahead}")
        self._admission: Admission = admission or Reservations()
        self._switching: Switching = switching or EarliestDeadline()
        self._batching: Batching = batching or LargestInTime()
        self._lane = LaneState(
            lane, capacity, lambda server, now: self._switching.touch(server, self._lane, now), ahead
        )
        self._ahead = ahead
        self._out: list[_Out] = []
        self._ended: Nanoseconds = 0
        self._deadlines: list[tuple[Nanoseconds, int]] = []
        self._actions: list[Action] = []

    def handle(self, event: Event, now: Nanoseconds) -> list[Action]:
        """Takes an event, and says what to do about it and about all that has become late by `now`.

        ValueError for an event that cannot be: a replica or call that is here already, a bandwidth that does not fit, a slice
        that does not run. Nothing has changed then.
        """
        match event:
            case Arrived():
                self._arrive(event, now)
            case SliceDone():
                self._end_slice(event, now)
            case AllLaunched():
                self._seal(event.batch, now)
            case BatchFailed():
                self._fail(event, now)
            case Cancelled():
                self._cancel(event.call, now)
            case ReplicaAdded():
                self._lane.touch(self._lane.tenancy.add(event, now), now)
                self._lane.remeasure(now)
            case ReplicaUpdated():
                self._update(event, now)
            case ReplicaRemoved():
                self._remove(event, now)
            case ReplicaHeld() | ReplicaReady():
                self._hold(event, now)
            case _:
                pass
        self._expire(now)
        actions, self._actions = self._actions, []
        return actions

    def next_slice(self, now: Nanoseconds) -> Slice | None:
        """The slice to run now; None where nothing waits. What is late is never started.

        The Drops this makes are handed out by the next `handle`. AssertionError while as many are out as may be.
        """
        if len(self._out) >= self._ahead:
            raise AssertionError(f"batch {self._out[0].batch.number} still runs")
        self._expire(now)
        chosen = self._switching.choose(self._lane, self._batching, now)
        if chosen is None:
            return None
        work = chosen.work
        batch = work if isinstance(work, BatchInFlight) else self._lane.form(work)
        first = batch.started is None
        batch.interrupted = not first and self._lane.last != batch.number
        batch.begin_slice(now)
        self._lane.last = batch.number
        self._out.append(_Out(batch, chosen.tier, now))
        if self._ahead > 1:
            # Somebody may choose before this one has ended.
            self._lane.touch(self._lane.server_of(batch), now)
        return Slice(batch.number, batch.home.replica, batch.numbers, first, batch.predicted)

    def wake_at(self) -> Nanoseconds | None:
        """When something becomes late, if nothing else happens before: `handle` a TimePassed then. None: never."""
        draining = self._lane.tenancy.draining.values()
        moments = [replica.drain_until for replica in draining if replica.drain_until is not None]
        # Deadlines of calls that no longer wait would wake the caller for nothing.
        while self._deadlines and not self._waits(self._deadlines[0][1]):
            heapq.heappop(self._deadlines)
        if self._deadlines:
            moments.append(self._deadlines[0][0])
        return min(moments, default=None)

    def statistics(self) -> ArbiterStatistics:
        """A snapshot."""
        return self._lane.statistics()

    def waits(self, replica: int) -> bool:
        """Whether any call of the replica waits to be started."""
        found = self._lane.replica(replica)
        return found is not None and found.waiting > 0

    def check_invariants(self) -> None:
        """Raises AssertionError unless every call is in exactly one place and all books add up."""
        check(self._lane, [each.batch for each in self._out])

    # Replicas.

    def _update(self, event: ReplicaUpdated, now: Nanoseconds) -> None:
        replica = self._lane.replica(event.replica)
        if replica is None:
            return
        replica.bandwidth, replica.weight = max(0, event.bandwidth), max(1, event.weight)
        self._revise(replica, now)

    def _hold(self, event: ReplicaHeld | ReplicaReady, now: Nanoseconds) -> None:
        replica = self._lane.replica(event.replica)
        if replica is None:
            return
        if isinstance(event, ReplicaHeld):
            self._lane.hold(replica, event.ready_at, now)
        else:
            self._lane.release(replica, now)

    def _revise(self, replica: Replica, now: Nanoseconds) -> None:
        tenancy = self._lane.tenancy
        for server in tenancy.revise(tenancy.servers[replica.tenant], now):
            self._lane.touch(server, now)

    def _remove(self, event: ReplicaRemoved, now: Nanoseconds) -> None:
        replica = self._lane.replica(event.replica)
        if replica is None:
            self._actions.append(ReplicaGone(event.replica))
            return
        self._lane.tenancy.drain(replica, event.drain_until)
        self._revise(replica, now)
        self._let_go_if_drained(replica, now)

    def _end_drain(self, replica: Replica, now: Nanoseconds) -> None:
        server = self._lane.tenancy.servers[replica.tenant]
        waiting = [call for queue in server.waiting for call in queue if call.replica is replica]
        for call in waiting:
            self._lane.withdraw(call, now)
            self._drop(call, Step.DROP, "MODEL_NOT_READY", "the model was unloaded before the request was started")
        for batch in [batch for batch in self._lane.batches.values() if batch.home is replica]:
            for call in batch.calls:
                call.take(Step.CANCEL)
            batch.discarded_because = _UNLOADED
            self._abandon_if_unwanted(batch, now)
        # Nothing more happens at this moment, however long the slice that runs still takes.
        self._lane.tenancy.draining.pop(replica.replica, None)
        self._let_go_if_drained(replica, now)

    def _let_go_if_drained(self, replica: Replica, now: Nanoseconds) -> None:
        is_drained = replica.drain_until is not None and not replica.waiting and not replica.in_flight
        if not is_drained or self._lane.replica(replica.replica) is not replica:
            return
        server = self._lane.tenancy.remove(replica)
        if not server.replicas:
            self._switching.forget(server)
        self._lane.remeasure(now)
        self._actions.append(ReplicaGone(replica.replica, replica.device_ns))

    # Calls.

    def _arrive(self, event: Arrived, now: Nanoseconds) -> None:
        request = event.request
        if request.call in self._lane.calls:
            raise ValueError(f"call {request.call} has arrived already")
        replica = self._lane.replica(request.replica)
        if replica is None or replica.drain_until is not None:
            message = (
                f"replica {request.replica} is not loaded here" if replica is None else "the model is being unloaded"
            )
            self._actions.append(Drop(request.call, "MODEL_NOT_READY", message))
            return
        call = Call(request, event.shape_bucket, replica, self._switching.place(request))
        self._lane.weigh(call)
        verdict = self._admission.judge(call, self._lane, now)
        if isinstance(verdict, Refused):
            self._lane.server(call).meter.refused += 1
            self._drop(call, Step.REFUSE, *verdict)
            return
        self._admit(call, verdict, now)

    def _admit(self, call: Call, tier: Tier, now: Nanoseconds) -> None:
        self._lane.admit(call, tier, now)
        if call.request.deadline is not None:
            heapq.heappush(self._deadlines, (call.request.deadline, call.request.call))
        for revoked, why in self._admission.admitted(call, self._lane, now):
            self._lane.server(revoked).meter.revoked += 1
            self._lane.withdraw(revoked, now)
            self._drop(revoked, Step.REVOKE, *why)
            self._let_go_if_drained(revoked.replica, now)

    def _cancel(self, number: int, now: Nanoseconds) -> None:
        call = self._lane.calls.get(number)
        if call is None:
            return
        if call.state is State.WAITING:
            self._lane.withdraw(call, now)
            self._drop(call, Step.CANCEL, "CANCELLED", "cancelled while it waited")
            self._let_go_if_drained(call.replica, now)
            return
        call.take(Step.CANCEL)
        if call.batch is not None:
            self._abandon_if_unwanted(self._lane.batches[call.batch], now)

    def _drop(self, call: Call, step: Step, reason: str, message: str, facts: dict[str, str] | None = None) -> None:
        call.take(step)
        self._lane.calls.pop(call.request.call, None)
        batch = (
            self._lane.batches[call.batch].record(self._lane.lane, self._lane.turns) if call.batch is not None else None
        )
        self._actions.append(Drop(call.request.call, reason, message, facts or {}, batch))

    def _waits(self, number: int) -> bool:
        call = self._lane.calls.get(number)
        return call is not None and call.state is State.WAITING

    def _expire(self, now: Nanoseconds) -> None:
        """Drops what waits past its deadline, and ends drains that are over."""
        calls = self._lane.calls
        while self._deadlines and self._deadlines[0][0] <= now:
            _, number = heapq.heappop(self._deadlines)
            call = calls.get(number)
            if call is not None and call.state is State.WAITING and is_late(call.request, now):
                self._lane.withdraw(call, now)
                self._drop(call, Step.DROP, *late(call.request, now))
                self._let_go_if_drained(call.replica, now)
        if len(self._deadlines) > 2 * len(calls) + _SPARE_DEADLINES:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in calls]
            heapq.heapify(self._deadlines)
        draining = self._lane.tenancy.draining
        for replica in list(draining.values()) if draining else ():
            if replica.drain_until is not None and replica.drain_until <= now:
                self._end_drain(replica, now)

    # Batches.

    def _slice_ended(self, number: int, took: Nanoseconds, now: Nanoseconds) -> BatchInFlight:
        at = 0
        while at < len(self._out) and self._out[at].batch.number != number:
            at += 1
        if at == len(self._out):
            raise ValueError(f"batch {number} does not run; {[each.batch.number for each in self._out]} do")
        out = self._out.pop(at)
        # The device came to it when what was handed out before had ended.
        started = max(out.handed, self._ended)
        self._ended = started + took
        self._lane.spend(out.batch, took, started, out.account, now)
        return out.batch

    def _seal(self, number: int, now: Nanoseconds) -> None:
        batch = self._lane.batches.get(number)
        if batch is None or not batch.out:
            raise ValueError(f"batch {number} has no slice out")
        self._lane.seal(batch, now)

    def _end_slice(self, event: SliceDone, now: Nanoseconds) -> None:
        batch = self._slice_ended(event.batch, event.took, now)
        if not event.finished:
            self._lane.touch(self._lane.server_of(batch), now)
            self._abandon_if_unwanted(batch, now)
            return
        batch.home.estimates.record(batch.rows, batch.shape_bucket, batch.device_ns, batch.longest)
        wanted = [call for call in batch.calls if call.state is not State.DOOMED]
        if wanted:
            earn(batch.home, len(wanted))
            for call in wanted:
                if call.expected is not None:
                    self._lane.see_end(call, now, now)
                call.take(Step.ANSWER)
                del self._lane.calls[call.number]
            record = batch.record(self._lane.lane, self._lane.turns)
            self._actions.append(Complete(record, tuple([call.number for call in wanted])))
        self._dismiss(batch, now)

    def _fail(self, event: BatchFailed, now: Nanoseconds) -> None:
        batch = self._slice_ended(event.batch, event.took, now)
        self._out = [each for each in self._out if each.batch is not batch]
        batch.out = 0
        again = [] if event.final else survivors(batch, now)
        spared = {call.number for call in again}
        for call in batch.calls:
            if not call.is_doomed and call.number not in spared:
                message = event.message if event.final else left_out(event.message, batch)
                self._drop(call, Step.ANSWER, "MODEL_FAILED", message)
        self._dismiss(batch, now, again)

    def _abandon_if_unwanted(self, batch: BatchInFlight, now: Nanoseconds) -> None:
        """Stops a batch that nobody waits for, unless slices of it are out: then the end of the last of them does."""
        if not batch.is_abandoned:
            return
        if batch.out:
            self._lane.seal(batch, now)
        else:
            self._actions.append(Abandon(batch.number))
            self._dismiss(batch, now)

    def _dismiss(self, batch: BatchInFlight, now: Nanoseconds, again: Sequence[Call] = ()) -> None:
        """The batch is over: answers those of its calls that are doomed. again: those that wait once more."""
        for call in [call for call in batch.calls if call.state is State.DOOMED]:
            self._drop(call, Step.ANSWER, *batch.discarded_because)
        self._lane.dismiss(batch, now)
        for call in again:
            call.run_again()
            self._admit(call, terms(call, self._admission, self._lane, now), now)
        self._let_go_if_drained(batch.home, now)
