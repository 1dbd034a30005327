"""The lane of a device that computes by itself: slices are launched ahead of their ends, and told once they have ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpu_sharing.devices.base import LaneStream
from gpu_sharing.devices.cuda.errors import is_lost
from gpu_sharing.runtimes.base import Run
from gpu_sharing.units import Nanoseconds
from gpu_sharing.worker.faults import describe, reason_of
from gpu_sharing.worker.hosted import Hosted
from gpu_sharing.worker.messages import Submit
from gpu_sharing.worker.meter import Meter
from gpu_sharing.worker.regions import Lease, Regions, begun, joined
from gpu_sharing.worker.requests import Finished, Requests, Work
from gpu_sharing.worker.scatter import BatchOutputs
from gpu_sharing.worker.watch import TIMES_THE_ESTIMATE, Watch, Watched


@dataclass(slots=True)
class _Flight:
    """A batch that has started. gathered: when its inputs had been put together. lease: of regions that it uses. outputs: once its last segment has been launched; they are there when it has ended."""

    hosted: Hosted
    requests: tuple[Submit, ...]
    rows: int
    run: Run
    gathered: Nanoseconds
    lease: Lease | None = None
    outputs: Any = None


@dataclass(slots=True)
class _Launched:
    """A slice that is out. last: of its batch. place: of it, for the watch."""

    work: Work
    flight: _Flight
    last: bool
    place: str


class AheadLane:
    """Launches slices on the thread that calls `run`, as many as its stream takes, and tells what each took on the device.

    A model's run launches one segment at each `next` and does not wait for it; what it returns in the end are arrays that are
    filled by then. What of the device breaks without hope (a lost context) ends the worker, once its callers have been told.
    """

    def __init__(
        self,
        requests: Requests,
        inputs: memoryview,
        stream: LaneStream,
        *,
        clock: Callable[[], Nanoseconds],
        watch: Watch,
        hang_after_ns: Nanoseconds,
        end_worker: Callable[[], None],
        enter: Callable[[], None] = lambda: None,
        meter: Meter | None = None,
        regions: Regions | None = None,
    ) -> None:
        """inputs: the executor's arena. enter: called first on the lane's thread, to make the stream its current one.

        watch: notices slices that have not ended after hang_after_ns, at the least. meter: told of every slice, as the device
        comes to it and when it has ended. regions: that requests' tensors may lie in.
        """
        self._requests, self._inputs, self._stream = requests, inputs, stream
        self._clock, self._watch, self._hang_after_ns = clock, watch, hang_after_ns
        self._end_worker, self._enter = end_worker, enter
        self._meter = Meter() if meter is None else meter
        self._regions = regions
        self._flights: dict[int, _Flight] = {}
        self._out: deque[_Launched] = deque()
        self._launches = 0
        self._lost = False
        self._ended: Nanoseconds = 0

    def run(self) -> None:
        """Until `Requests.stop`, and what is out has ended; or until the device is lost."""
        self._enter()
        while not self._lost:
            work = None
            if self._stream.out < self._stream.ahead:
                work = self._requests.next_work(self._let_go, wait=not self._out)
            if work is not None:
                self._launch(work)
            elif self._out:
                self._end_first()
            else:
                return

    def _launch(self, work: Work) -> None:
        batch = work.slice.batch
        self._launches += 1
        place = f"lane {self._launches % (self._stream.ahead + 1)}"
        self._watch.begin(place, self._watched(work))
        began = self._clock()
        try:
            self._stream.begin()
            flight = self._start(work) if work.slice.first else self._flights[batch]
            launched = _Launched(work, flight, self._advance(flight), place)
            self._stream.end()
        except BaseException as error:  # a model may raise anything; its neighbours must not notice
            self._break(work, error, began)
            self._watch.end(place)
            return
        self._out.append(launched)
        if len(self._out) == 1:
            self._begin_meter(began)
        if launched.last:
            self._requests.all_launched(batch)

    def _advance(self, flight: _Flight) -> bool:
        """Launches the next segment. Whether it was the last."""
        try:
            next(flight.run)
        except StopIteration as end:
            flight.outputs = end.value
            return True
        return False

    def _end_first(self) -> None:
        first = self._out[0]
        batch = first.work.slice.batch
        try:
            _, took = self._stream.wait()
        except BaseException as error:
            self._lose(error)
            return
        self._out.popleft()
        self._ended = self._clock()
        self._watch.end(first.place)
        self._metered(took)
        flight = first.flight
        finished = None
        if first.last:
            try:
                outputs = BatchOutputs(flight.hosted.model.signature, flight.outputs, flight.rows)
            except BaseException as error:
                self._fail(first.work, took, error)
                return
            finished = Finished(flight.hosted, flight.requests, outputs, flight.gathered, flight.lease)
        self._requests.end_slice(batch, took, finished)
        if first.last:
            # Its outputs have been copied by now: what they lay in may be used again.
            self._let_go(batch)

    def _metered(self, took: Nanoseconds) -> None:
        """The slice that the device worked on has ended; it has gone on to the next, if there is one."""
        self._meter.end(took)
        if self._out:
            self._begin_meter(self._ended)

    def _begin_meter(self, now: Nanoseconds) -> None:
        chosen = self._out[0].work.slice
        self._meter.begin(chosen.replica, now, len(chosen.calls) if chosen.first else 0)

    def _break(self, work: Work, error: BaseException, began: Nanoseconds) -> None:
        """A slice could not be launched: what is out before it ends first, then its batch fails."""
        try:
            self._stream.drop()
        except BaseException as worse:
            error = worse
        if is_lost(error):
            self._lose(error, work)
            return
        while self._out:
            self._end_first()
        if self._lost:
            self._requests.give_up(work.slice.calls, describe(work.hosted.label, error))
            return
        # The device was at it from when what was out before had ended.
        began = max(began, self._ended)
        took = max(1, self._clock() - began)
        self._meter.begin(work.hosted.load.replica, began, len(work.slice.calls) if work.slice.first else 0)
        self._meter.end(took)
        self._fail(work, took, error)

    def _fail(self, work: Work, took: Nanoseconds, error: BaseException) -> None:
        self._let_go(work.slice.batch)
        self._requests.fail(work.slice.batch, took, describe(work.hosted.label, error), reason_of(error))

    def _lose(self, error: BaseException, also: Work | None = None) -> None:
        """The device does nothing more for this process: whoever is in a batch is told, and the worker ends."""
        lost = [*(each.work for each in self._out), *([also] if also is not None else [])]
        self._out.clear()
        self._lost = True
        for work in lost:
            self._requests.give_up(work.slice.calls, describe(f"{work.hosted.label}: the device was lost", error))
        self._end_worker()

    def _watched(self, work: Work) -> Watched:
        calls = work.slice.calls
        # It may have to wait for all that is out before it.
        limit_ns = max(self._hang_after_ns, TIMES_THE_ESTIMATE * (work.slice.predicted or 0))
        return Watched(
            work.hosted.watched,
            limit_ns * (1 + len(self._out)),
            None,
            lambda message: self._requests.give_up(calls, message),
        )

    def _start(self, work: Work) -> _Flight:
        flight = begun(self._regions, work.requests, lambda lease: self._flight(work, lease))
        self._flights[work.slice.batch] = flight
        return flight

    def _flight(self, work: Work, lease: Lease | None) -> _Flight:
        model, requests = work.hosted.model, work.requests
        inputs = joined(lease, model, requests, self._inputs)
        gathered = self._clock()
        rows = sum(request.rows for request in requests)
        return _Flight(work.hosted, requests, rows, model.run(inputs), gathered, lease)

    def _let_go(self, batch: int) -> None:
        flight = self._flights.pop(batch, None)
        if flight is None:
            return
        try:
            flight.run.close()
        except BaseException:  # the model's own clean-up: nobody waits for it
            return
        finally:
            if flight.lease is not None:
                flight.lease.end()
