"""The arbiter under its lock, and what its decisions mean for requests, models and answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np

from gpu_sharing.arbiter import Arbiter
from gpu_sharing.arbiter import events as arbitration
from gpu_sharing.measurements import Batch
from gpu_sharing.units import Nanoseconds
from gpu_sharing.worker.boundary import Ran, next_turn, tell
from gpu_sharing.worker.faults import MODEL_FAILED, because
from gpu_sharing.worker.hosted import Hosted
from gpu_sharing.worker.messages import Cancel, Done, Event, Failed, Release, Submit, TensorRef, Unload, Update
from gpu_sharing.worker.outbox import Outbox
from gpu_sharing.worker.reading import Reading
from gpu_sharing.worker.regions import Lease, RegionLost
from gpu_sharing.worker.residency import Residency
from gpu_sharing.worker.scatter import BatchOutputs, OutputInvalid, Outputs, OutputsFull

Result = TypeVar("Result")

RequestCommand: TypeAlias = Submit | Cancel | Release | Update | Unload


class Work(NamedTuple):
    """A slice to run, and what it needs. requests: in the order of their rows, where the slice is its batch's first; else ()."""

    slice: arbitration.Slice
    hosted: Hosted
    requests: tuple[Submit, ...]


class Finished(NamedTuple):
    """A batch that has run. gathered: when its inputs had been put together. lease: of regions that it uses."""

    hosted: Hosted
    requests: tuple[Submit, ...]
    outputs: BatchOutputs
    gathered: Nanoseconds = 0
    lease: Lease | None = None


class _Effects(NamedTuple):
    """What follows from actions, and is done outside the lock: answers first, so that none comes after Unloaded."""

    events: list[Event]
    gone: list[int]
    completed: list[tuple[arbitration.Complete, dict[int, Nanoseconds]]]


class Requests:
    """Shared by the thread that reads commands, the lane and the loader. Every method may be called by any of them.

    is_stopping: `stop` was called.
    """

    def __init__(
        self,
        arbiter: Arbiter,
        outputs: Outputs,
        outbox: Outbox,
        *,
        clock: Callable[[], Nanoseconds],
        on_gone: Callable[[int], None],
        residency: Residency | None = None,
        on_moves: Callable[[], None] = lambda: None,
        reading: Reading | None = None,
    ) -> None:
        """on_gone: told of each replica that has left the arbiter, and may be unloaded; must return at once.

        residency: whose weights are on the device; None: all are. on_moves: told when weights are to be moved; likewise.
        reading: whose turn it is to read commands; None: never the lane's.
        """
        self._arbiter = arbiter
        self._outputs = outputs
        self._outbox = outbox
        self._clock = clock
        self._on_gone = on_gone
        self._residency, self._on_moves, self._reading = residency, on_moves, reading
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._lane_waits = False
        self.is_stopping = False
        self._hosted: dict[int, Hosted] = {}
        self._submits: dict[int, tuple[Submit, Nanoseconds]] = {}
        self._abandoned: list[int] = []

    # Replicas.

    def host(self, hosted: Hosted) -> None:
        """The model serves from now on. gpu_sharing.arbiter.grants.Oversold where its bandwidth does not fit the lane."""
        load = hosted.load
        added = arbitration.ReplicaAdded(
            replica=load.replica,
            max_batch_size=hosted.model.signature.max_batch_size,
            bandwidth=load.bandwidth,
            weight=load.weight,
            points=hosted.points,
            tenant=load.tenant,
            queue_limit=load.queue_limit,
        )
        with self._lock:
            now = self._clock()
            actions = self._arbiter.handle(added, now)
            self._hosted[load.replica] = hosted
            if self._residency is not None:
                for held in self._residency.hosted(load.replica, load.bandwidth, hosted.points, now):
                    actions += self._arbiter.handle(held, now)
                self._on_moves()
            effects = self._perform(actions)
        self._emit(effects)

    def hosts(self, replica: int) -> bool:
        """Whether the replica serves or drains."""
        with self._lock:
            return replica in self._hosted

    def replicas(self) -> list[int]:
        """Those that serve or drain."""
        with self._lock:
            return list(self._hosted)

    def decide(self, work: Callable[[Arbiter, Nanoseconds], tuple[list[arbitration.Action], Result]]) -> Result:
        """Does what concerns both residency and the arbiter, at one moment; what it returns beside the arbiter's actions."""
        with self._lock:
            actions, result = work(self._arbiter, self._clock())
            effects = self._perform(actions)
            if self._lane_waits:
                self._changed.notify()
        self._emit(effects)
        return result

    # The reader's side.

    def take(self, commands: Iterable[RequestCommand]) -> None:
        """Takes what has come in one frame; answers all that can be answered at once in one frame."""
        with self._lock:
            now = self._clock()
            effects = self._perform([action for command in commands for action in self._take(command, now)])
            if self._lane_waits:
                if self._reading is not None:
                    self._reading.offer()
                self._changed.notify()
        self._emit(effects)

    def pass_time(self) -> None:
        """Answers what has become late."""
        with self._lock:
            effects = self._perform(self._arbiter.handle(arbitration.TimePassed(), self._clock()))
        self._emit(effects)

    def wake_at(self) -> Nanoseconds | None:
        """When `pass_time` is due; None: never, as things are."""
        with self._lock:
            return self._arbiter.wake_at()

    def statistics(self) -> arbitration.ArbiterStatistics:
        """A snapshot."""
        with self._lock:
            return self._arbiter.statistics()

    def stop(self) -> None:
        """The lane ends at its next boundary."""
        with self._lock:
            self.is_stopping = True
            self._changed.notify_all()

    # The lane's side.

    def next_work(self, let_go: Callable[[int], None], *, wait: bool = True) -> Work | None:
        """Waits for the next slice; None once stopped. let_go: told of each batch that was abandoned, on this thread.

        wait: False: None, too, where there is none now, as where it is the lane's turn to read.
        """
        reading = self._reading
        while not self.is_stopping:
            with self._lock:
                now = self._clock()
                turn = next_turn(self._arbiter, now)
                effects = self._perform(turn.actions)
                abandoned, self._abandoned = self._abandoned, []
                work = self._work(turn.slice) if turn.slice is not None else None
                if work is not None and work.slice.first and self._residency is not None:
                    self._residency.started(work.slice.batch, work.slice.replica)
                wait = wait and (reading is None or not reading.is_lanes)
                if wait and work is None and not abandoned and not any(effects) and not self.is_stopping:
                    self._lane_waits = True
                    self._changed.wait()
                    self._lane_waits = False
            for batch in abandoned:
                let_go(batch)
            self._emit(effects)
            if work is not None or not wait:
                return work
        return None

    def all_launched(self, batch: int) -> None:
        """The slice handed out last is its batch's last: known before it has run."""
        with self._lock:
            effects = self._perform(self._arbiter.handle(arbitration.AllLaunched(batch), self._clock()))
        self._emit(effects)

    def end_slice(self, batch: int, took: Nanoseconds, finished: Finished | None) -> None:
        """The slice has run. finished: None where the batch has segments left."""
        with self._lock:
            ran = Ran(batch, took, finished is not None)
            effects = self._perform(tell(self._arbiter, ran, self._clock()))
            if finished is not None and self._residency is not None:
                self._over(batch)
        for complete, received in effects.completed:
            if finished is not None:
                effects.events.extend(self._answers(finished, complete.batch, received))
        self._emit(effects)

    def fail(
        self, batch: int, took: Nanoseconds, message: str, reason: str = MODEL_FAILED, *, final: bool = False
    ) -> None:
        """The slice has broken its batch. message, reason: for the callers who are not run again. final: nobody is."""
        with self._lock:
            ran = Ran(batch, took, failure=message, final=final)
            effects = self._perform(tell(self._arbiter, ran, self._clock()))
            if self._residency is not None:
                self._over(batch)
        if reason != MODEL_FAILED:
            # The arbiter knows that it broke, not by what.
            effects.events[:] = [because(event, reason) for event in effects.events]
        self._emit(effects)

    def give_up(self, calls: Iterable[int], message: str) -> None:
        """Answers the calls of a batch that will never end, just before the worker does: they are not to be run again."""
        with self._lock:
            waiting = [(call, self._submits[call][1]) for call in calls if call in self._submits]
        self._outbox.send([Failed(call, MODEL_FAILED, message, {}, received) for call, received in waiting])

    def _answers(self, finished: Finished, batch: Batch, received: Mapping[int, Nanoseconds]) -> Iterator[Event]:
        start = 0
        for request in finished.requests:
            stop = start + request.rows
            if request.call in received:
                yield self._answer(finished, request, start, stop, received[request.call], batch)
            start = stop

    def _answer(
        self, finished: Finished, request: Submit, start: int, stop: int, received: Nanoseconds, batch: Batch
    ) -> Done | Failed:
        hosted = finished.hosted
        try:
            wanted = finished.outputs.part(request.outputs, start, stop)
            if request.sinks:
                refs = self._stored(finished, request, wanted)
            else:
                refs = self._outputs.put(request.call, wanted, hosted.load.tenant)
        except RegionLost as lost:
            return Failed(request.call, lost.reason, str(lost), {}, received, batch)
        except OutputsFull as full:
            return Failed(request.call, "OUT_OF_MEMORY", str(full), full.facts, received, batch)
        except OutputInvalid as broken:
            message = f"{hosted.label}: {broken}"
            return Failed(request.call, "MODEL_FAILED", message, {}, received, batch)
        return Done(request.call, refs, received, batch, finished.gathered, self._clock())

    def _stored(
        self, finished: Finished, request: Submit, wanted: Sequence[tuple[int, str, np.ndarray]]
    ) -> tuple[TensorRef, ...]:
        """Outputs in regions, where they are to go there, and in the arena."""
        assert finished.lease is not None
        sinks = {sink.place: sink for sink in request.sinks}
        specs = finished.hosted.model.signature.outputs
        for place, sink in sinks.items():
            index, _, tensor = wanted[place]
            finished.lease.write(sink, specs[index], tensor)
        rest = [each for place, each in enumerate(wanted) if place not in sinks]
        put = iter(self._outputs.put(request.call, rest, finished.hosted.load.tenant) if rest else ())
        return tuple(
            TensorRef(index, tuple(tensor.shape), 0, 0) if place in sinks else next(put)
            for place, (index, _, tensor) in enumerate(wanted)
        )

    def _emit(self, effects: _Effects) -> None:
        self._outbox.send(effects.events)
        for replica in effects.gone:
            self._on_gone(replica)

    # Inside, under the lock.

    def _take(self, command: RequestCommand, now: Nanoseconds) -> list[arbitration.Action]:
        match command:
            case Submit():
                self._submits[command.call] = (command, now)
                hosted = self._hosted.get(command.replica)
                bucket = hosted.bucket(command) if hosted is not None else ""
                if self._residency is not None and (actions := self._ask(command, now)):
                    return [*actions, *self._arbiter.handle(arbitration.Arrived(command, bucket), now)]
                return self._arbiter.handle(arbitration.Arrived(command, bucket), now)
            case Release():
                self._outputs.release(command.call)
                return []
            case Cancel():
                return self._arbiter.handle(arbitration.Cancelled(command.call), now)
            case Update():
                update = arbitration.ReplicaUpdated(command.replica, command.bandwidth, command.weight)
                if self._residency is not None:
                    self._residency.updated(command.replica, command.bandwidth)
                    self._on_moves()
                return self._arbiter.handle(update, now)
            case Unload():
                return self._arbiter.handle(arbitration.ReplicaRemoved(command.replica, now + command.drain_ns), now)

    def _perform(self, actions: Iterable[arbitration.Action]) -> _Effects:
        effects = _Effects([], [], [])
        for action in actions:
            match action:
                case arbitration.Complete():
                    received = {call: self._submits.pop(call)[1] for call in action.calls}
                    effects.completed.append((action, received))
                case arbitration.Drop():
                    _, moment = self._submits.pop(action.call)
                    facts = (action.reason, action.message, action.facts, moment, action.batch, self._clock())
                    effects.events.append(Failed(action.call, *facts))
                case arbitration.Abandon():
                    self._abandoned.append(action.batch)
                    if self._residency is not None:
                        self._over(action.batch)
                    self._changed.notify()
                case arbitration.ReplicaGone():
                    self._hosted.pop(action.replica, None)
                    effects.gone.append(action.replica)
        return effects

    def _ask(self, submit: Submit, now: Nanoseconds) -> list[arbitration.Action]:
        assert self._residency is not None
        held = self._residency.asked(submit, now)
        if held is None:
            return []
        self._on_moves()
        return self._arbiter.handle(held, now)

    def _over(self, batch: int) -> None:
        assert self._residency is not None
        if self._residency.ended(batch):
            self._on_moves()

    def _work(self, chosen: arbitration.Slice) -> Work:
        requests = tuple(self._submits[call][0] for call in chosen.calls) if chosen.first else ()
        return Work(chosen, self._hosted[chosen.replica], requests)
