"""The lane: the one thread that runs models. It asks for the next slice, runs it, and tells what it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from gpu_sharing.runtimes.base import Interrupted, Run
from gpu_sharing.units import SECOND, Nanoseconds
from gpu_sharing.worker.faults import describe, reason_of
from gpu_sharing.worker.hosted import Hosted
from gpu_sharing.worker.messages import Load, Submit
from gpu_sharing.worker.meter import Meter
from gpu_sharing.worker.reading import Reading
from gpu_sharing.worker.regions import Lease, Regions, begun, joined
from gpu_sharing.worker.requests import Finished, Requests, Work
from gpu_sharing.worker.scatter import BatchOutputs
from gpu_sharing.worker.watch import TIMES_THE_ESTIMATE, Watch, Watched


class _Flight(NamedTuple):
    """A batch that has started. gathered: when its inputs had been put together. lease: of regions that it uses."""

    hosted: Hosted
    requests: tuple[Submit, ...]
    rows: int
    run: Run
    gathered: Nanoseconds
    lease: Lease | None = None


class Lane:
    """Runs slices on the thread that calls `run`."""

    def __init__(
        self,
        requests: Requests,
        inputs: memoryview,
        *,
        clock: Callable[[], Nanoseconds],
        watch: Watch,
        hang_after_ns: Nanoseconds,
        reading: Reading,
        meter: Meter | None = None,
        copies: Mapping[tuple[str, str], Nanoseconds] | None = None,
        regions: Regions | None = None,
    ) -> None:
        """inputs: the executor's arena. watch: notices slices that have not returned after hang_after_ns, at the least.

        reading: whose turn it is to read commands.
        meter: told of every slice, at both its ends. copies: see WorkerConfig.slow_copies, by tenant and model.
        regions: that requests' tensors may lie in.
        """
        self._requests = requests
        self._inputs = inputs
        self._clock = clock
        self._watch = watch
        self._hang_after_ns = hang_after_ns
        self._reading = reading
        self._meter = Meter() if meter is None else meter
        self._copies = dict(copies or {})
        self._regions = regions
        self._flights: dict[int, _Flight] = {}

    def run(self) -> None:
        """Until `Requests.stop`."""
        requests, reading = self._requests, self._reading
        while not requests.is_stopping:
            rounds = reading.rounds
            work = requests.next_work(self._let_go)
            if work is not None:
                reading.begin(work.hosted.batch_ns, work.slice.predicted)
                self._run_slice(work)
                reading.end()
            else:
                reading.look(rounds)

    def _run_slice(self, work: Work) -> None:
        batch = work.slice.batch
        self._watch.begin("lane", self._watched(work))
        started = self._clock()
        self._meter.begin(work.hosted.load.replica, started, len(work.slice.calls) if work.slice.first else 0)
        try:
            finished = self._advance(work)
        except BaseException as error:  # a model may raise anything; its neighbours must not notice
            took = self._clock() - started
            self._meter.end(took)
            self._let_go(batch)
            final = isinstance(error, Interrupted)
            self._requests.fail(batch, took, describe(work.hosted.label, error), reason_of(error), final=final)
            return
        finally:
            self._watch.end("lane")
        took = self._clock() - started
        self._meter.end(took)
        if finished is not None:
            # With what others took in between: where lanes are shared commands are read meanwhile.
            work.hosted.ran(self._clock() - finished.gathered)
            del self._flights[batch]
        self._requests.end_slice(batch, took, finished)
        if finished is not None and finished.lease is not None:
            finished.lease.end()

    def _watched(self, work: Work) -> Watched:
        expected_ns = TIMES_THE_ESTIMATE * (work.slice.predicted or 0)
        calls = work.slice.calls
        return Watched(
            work.hosted.watched,
            max(self._hang_after_ns, expected_ns),
            work.hosted.stop,
            lambda message: self._requests.give_up(calls, message),
        )

    def _advance(self, work: Work) -> Finished | None:
        flight = self._start(work) if work.slice.first else self._flights[work.slice.batch]
        try:
            next(flight.run)
        except StopIteration as end:
            outputs = BatchOutputs(flight.hosted.model.signature, end.value, flight.rows)
            return Finished(flight.hosted, flight.requests, outputs, flight.gathered, flight.lease)
        return None

    def _start(self, work: Work) -> _Flight:
        flight = begun(self._regions, work.requests, lambda lease: self._flight(work, lease))
        self._flights[work.slice.batch] = flight
        return flight

    def _flight(self, work: Work, lease: Lease | None) -> _Flight:
        model, requests = work.hosted.model, work.requests
        inputs = joined(lease, model, requests, self._inputs)
        if self._copies:
            self._delay(work.hosted.load)
        gathered = self._clock()
        rows = sum(request.rows for request in requests)
        return _Flight(work.hosted, requests, rows, model.run(inputs), gathered, lease)

    def _delay(self, load: Load) -> None:
        """Makes a copy take longer, where a test has asked for that."""
        delay = self._copies.get((load.tenant, load.model))
        if delay is not None:
            time.sleep(delay / SECOND)

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
