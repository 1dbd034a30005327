"""Whose slice runs next on one lane: events in, actions out. PURE.

The lane asks for the next slice, runs it, and tells what it took:

    while (slice := arbiter.next_slice(now())) is not None:
        actions = arbiter.handle(run(slice), now())

Every call that has arrived is answered exactly once, by a Drop or in a Complete. Policies answer one question each and can
be replaced: `admission` (may it wait?), `order` (who is first?), `batching` (who runs together?), `switching` (which batch is
next?), `estimates` (how long will it take?).
"""

from __future__ import annotations

import heapq

from gpu_sharing.arbiter.admission import Admission, BoundedQueue, is_late, late
from gpu_sharing.arbiter.batches import BatchInFlight
from gpu_sharing.arbiter.calls import Call, State, Step
from gpu_sharing.arbiter.events import (
    Abandon,
    Action,
    ArbiterStatistics,
    Arrived,
    BatchFailed,
    Cancelled,
    Complete,
    Drop,
    Event,
    ReplicaAdded,
    ReplicaGone,
    ReplicaRemoved,
    ReplicaUpdated,
    Slice,
    SliceDone,
)
from gpu_sharing.arbiter.invariants import check
from gpu_sharing.arbiter.replicas import ReplicaQueue
from gpu_sharing.arbiter.switching import EarliestObjective
from gpu_sharing.units import Nanoseconds

DEFAULT_QUEUE_LIMIT = 4096
_SPARE_DEADLINES = 64


class Arbiter:
    """The arbiter of one lane. `now` never goes backwards between calls; it is the clock of arrivals and deadlines."""

    def __init__(
        self, *, lane: int = 0, admission: Admission | None = None, switching: EarliestObjective | None = None
    ) -> None:
        self._lane = lane
        self._admission: Admission = admission or BoundedQueue(DEFAULT_QUEUE_LIMIT)
        self._switching = switching or EarliestObjective()
        self._replicas: dict[int, ReplicaQueue] = {}
        self._calls: dict[int, Call] = {}
        self._batches: dict[int, BatchInFlight] = {}
        self._running: int | None = None
        self._deadlines: list[tuple[Nanoseconds, int]] = []
        self._actions: list[Action] = []
        self._formed = 0
        self._busy_ns: Nanoseconds = 0

    def handle(self, event: Event, now: Nanoseconds) -> list[Action]:
        """Takes an event, and says what to do about it and about all that has become late by `now`."""
        match event:
            case Arrived():
                self._arrive(event, now)
            case SliceDone():
                self._end_slice(event)
            case BatchFailed():
                self._fail(event)
            case Cancelled():
                self._cancel(event.call)
            case ReplicaAdded():
                self._add(event)
            case ReplicaUpdated():
                self._update(event)
            case ReplicaRemoved():
                self._remove(event)
            case _:
                pass
        self._expire(now)
        actions, self._actions = self._actions, []
        return actions

    def next_slice(self, now: Nanoseconds) -> Slice | None:
        """The slice to run now; None where nothing waits. What is late is never started.

        The Drops this makes are handed out by the next `handle`. AssertionError while a slice is running: one at a time.
        """
        if self._running is not None:
            raise AssertionError(f"batch {self._running} still runs")
        self._expire(now)
        chosen = self._switching.choose(self._batches.values(), self._replicas.values())
        if chosen is None:
            return None
        batch = self._form(chosen) if isinstance(chosen, ReplicaQueue) else chosen
        first = batch.started is None
        self._interrupt_others(batch)
        batch.begin_slice(now)
        self._running = batch.number
        calls = tuple(call.request.call for call in batch.calls)
        return Slice(batch.number, batch.replica, calls, first, batch.predicted)

    def wake_at(self) -> Nanoseconds | None:
        """When something becomes late, if nothing else happens before: `handle` a TimePassed then. None: never."""
        moments = [queue.drain_until for queue in self._replicas.values() if queue.drain_until is not None]
        # Deadlines of calls that no longer wait would wake the caller for nothing.
        while self._deadlines and not self._waits(self._deadlines[0][1]):
            heapq.heappop(self._deadlines)
        if self._deadlines:
            moments.append(self._deadlines[0][0])
        return min(moments, default=None)

    def statistics(self) -> ArbiterStatistics:
        """A snapshot."""
        replicas = tuple(queue.statistics() for queue in self._replicas.values())
        waiting = sum(replica.waiting for replica in replicas)
        return ArbiterStatistics(self._busy_ns, waiting, len(self._batches), replicas)

    # Replicas.

    def _add(self, event: ReplicaAdded) -> None:
        if event.replica in self._replicas:
            raise ValueError(f"replica {event.replica} has been added already")
        self._replicas[event.replica] = ReplicaQueue(event)

    def _update(self, event: ReplicaUpdated) -> None:
        queue = self._replicas.get(event.replica)
        if queue is not None:
            queue.bandwidth, queue.weight = event.bandwidth, event.weight

    def _remove(self, event: ReplicaRemoved) -> None:
        queue = self._replicas.get(event.replica)
        if queue is None:
            self._actions.append(ReplicaGone(event.replica))
            return
        queue.drain_until = event.drain_until
        self._let_go_if_drained(queue)

    def _end_drain(self, queue: ReplicaQueue) -> None:
        for call in queue.everything():
            queue.remove(call)
            self._drop(call, Step.DROP, "MODEL_NOT_READY", "the model was unloaded before the request was started")
        for batch in [batch for batch in self._batches.values() if batch.replica == queue.replica]:
            for call in batch.calls:
                call.take(Step.CANCEL)
            batch.discarded_because = _UNLOADED
            self._abandon_if_unwanted(batch)
        self._let_go_if_drained(queue)

    def _let_go_if_drained(self, queue: ReplicaQueue) -> None:
        is_drained = queue.drain_until is not None and not queue.waiting and not queue.in_flight
        if is_drained and queue.replica in self._replicas:
            del self._replicas[queue.replica]
            self._actions.append(ReplicaGone(queue.replica))

    # Calls.

    def _arrive(self, event: Arrived, now: Nanoseconds) -> None:
        request = event.request
        if request.call in self._calls:
            raise ValueError(f"call {request.call} has arrived already")
        call = Call(request, event.shape_bucket)
        queue = self._replicas.get(request.replica)
        if queue is None or queue.drain_until is not None:
            message = (
                f"replica {request.replica} is not loaded here" if queue is None else "the model is being unloaded"
            )
            self._drop(call, Step.REFUSE, "MODEL_NOT_READY", message)
            return
        refused = self._admission.refuse(request, waiting=queue.waiting, now=now)
        if refused is not None:
            self._drop(call, Step.REFUSE, *refused)
            return
        call.take(Step.ADMIT)
        self._calls[request.call] = call
        queue.add(call)
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, request.call))

    def _cancel(self, number: int) -> None:
        call = self._calls.get(number)
        if call is None:
            return
        if call.state is State.WAITING:
            queue = self._replicas[call.request.replica]
            queue.remove(call)
            self._drop(call, Step.CANCEL, "CANCELLED", "cancelled while it waited")
            self._let_go_if_drained(queue)
            return
        call.take(Step.CANCEL)
        if call.batch is not None:
            self._abandon_if_unwanted(self._batches[call.batch])

    def _drop(self, call: Call, step: Step, reason: str, message: str, facts: dict[str, str] | None = None) -> None:
        call.take(step)
        self._calls.pop(call.request.call, None)
        batch = self._batches[call.batch].record(self._lane) if call.batch is not None else None
        self._actions.append(Drop(call.request.call, reason, message, facts or {}, batch))

    def _waits(self, number: int) -> bool:
        call = self._calls.get(number)
        return call is not None and call.state is State.WAITING

    def _expire(self, now: Nanoseconds) -> None:
        """Drops what waits past its deadline, and ends drains that are over."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, number = heapq.heappop(self._deadlines)
            call = self._calls.get(number)
            if call is not None and call.state is State.WAITING and is_late(call.request, now):
                queue = self._replicas[call.request.replica]
                queue.remove(call)
                self._drop(call, Step.DROP, *late(call.request, now))
                self._let_go_if_drained(queue)
        if len(self._deadlines) > 2 * len(self._calls) + _SPARE_DEADLINES:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._calls]
            heapq.heapify(self._deadlines)
        for queue in [queue for queue in self._replicas.values() if queue.drain_until is not None]:
            if queue.drain_until is not None and queue.drain_until <= now:
                self._end_drain(queue)

    # Batches.

    def _form(self, queue: ReplicaQueue) -> BatchInFlight:
        urgency = queue.urgency
        calls = queue.take_batch()
        self._formed += 1
        rows = sum(call.request.rows for call in calls)
        predicted = queue.estimates.p99(rows, calls[0].shape_bucket)
        batch = BatchInFlight(self._formed, queue.replica, calls, rows, urgency, calls[0].shape_bucket, predicted)
        for call in calls:
            call.take(Step.JOIN)
            call.batch = batch.number
        queue.in_flight += 1
        queue.batches += 1
        queue.requests += len(calls)
        self._batches[batch.number] = batch
        return batch

    def _interrupt_others(self, chosen: BatchInFlight) -> None:
        for batch in self._batches.values():
            if batch is not chosen:
                batch.interrupted = True

    def _slice_ended(self, number: int, took: Nanoseconds) -> BatchInFlight:
        if number != self._running:
            raise ValueError(f"batch {number} does not run; {self._running} does")
        self._running = None
        batch = self._batches[number]
        batch.end_slice(took)
        self._busy_ns += took
        self._replicas[batch.replica].meter(took)
        return batch

    def _end_slice(self, event: SliceDone) -> None:
        batch = self._slice_ended(event.batch, event.took)
        if not event.finished:
            self._abandon_if_unwanted(batch)
            return
        self._replicas[batch.replica].estimates.record(batch.rows, batch.shape_bucket, batch.device_ns)
        wanted = [call for call in batch.calls if not call.is_doomed]
        if wanted:
            for call in wanted:
                call.take(Step.ANSWER)
                del self._calls[call.request.call]
            self._actions.append(Complete(batch.record(self._lane), tuple(call.request.call for call in wanted)))
        self._dismiss(batch)

    def _fail(self, event: BatchFailed) -> None:
        batch = self._slice_ended(event.batch, event.took)
        for call in batch.calls:
            if not call.is_doomed:
                self._drop(call, Step.ANSWER, "MODEL_FAILED", event.message)
        self._dismiss(batch)

    def _abandon_if_unwanted(self, batch: BatchInFlight) -> None:
        """Stops a batch that nobody waits for, unless it runs at this moment: then its boundary does."""
        if batch.number != self._running and batch.is_abandoned:
            self._actions.append(Abandon(batch.number))
            self._dismiss(batch)

    def _dismiss(self, batch: BatchInFlight) -> None:
        """The batch is over: answers those of its calls that are doomed."""
        for call in batch.calls:
            if call.is_doomed:
                self._drop(call, Step.ANSWER, *batch.discarded_because)
        del self._batches[batch.number]
        queue = self._replicas[batch.replica]
        queue.in_flight -= 1
        self._let_go_if_drained(queue)

    def check_invariants(self) -> None:
        """Raises AssertionError unless every call is in exactly one place and the counts add up."""
        check(self._replicas, self._calls, self._batches, self._running)


_UNLOADED = ("MODEL_NOT_READY", "the model was unloaded while the request ran")
