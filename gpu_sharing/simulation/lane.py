"""The lane loop in virtual time: ask the arbiter for the next slice, run it, tell what it took. PURE."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from gpu_sharing.arbiter import Arbiter
from gpu_sharing.arbiter import events as arbitration
from gpu_sharing.arbiter.switching import IN_FLIGHT_PER_REPLICA
from gpu_sharing.simulation.calls import Answer, Hosting, SimulatedRequest, SliceRan
from gpu_sharing.simulation.device import SimulatedLanes
from gpu_sharing.simulation.faults import Fault, FaultPlan
from gpu_sharing.simulation.kernel import Kernel, Timer, Trace
from gpu_sharing.simulation.models import EXACT, Error
from gpu_sharing.units import Millidevices, Nanoseconds
from gpu_sharing.worker.boundary import Ran, next_turn, tell


@dataclass(slots=True)
class _Flight:
    slice: arbitration.Slice
    hosting: Hosting
    rows: int
    begun: Nanoseconds = 0
    segment: int = 0
    handed: int = 0


class SimulatedLane:
    """One lane of a simulated device, and the arbiter that decides for it.

    used_ns: device time by replica, over all the arbiters that it has had.
    slices: who ran when.
    replaced: how often a segment that never returned has cost it its arbiter.
    overdue: how often the arbiter, told that time has passed, wanted at once to be told again.
    """

    def __init__(
        self,
        kernel: Kernel,
        device: SimulatedLanes,
        make_arbiter: Callable[[], Arbiter],
        *,
        chance: np.random.Generator,
        on_answer: Callable[[Answer], None],
        on_gone: Callable[[int], None] | None = None,
        number: int = 0,
        faults: FaultPlan | None = None,
        trace: Trace | None = None,
        boundary_ns: Nanoseconds = 0,
        boundary_error: Error = EXACT,
        watchdog_ns: Nanoseconds | None = None,
        audit_every: int = 16,
        ahead: int = 1,
    ) -> None:
        """ahead: slices that the arbiter hands out before the first of them has ended; make_arbiter's must allow it. on_gone: told of each replica that has left. boundary_ns: between two slices, for deciding and handing over, and how far from that it is. audit_every: boundaries between two audits.

        watchdog_ns: a slice that runs for longer is given up: its calls fail, the lane goes on with a new arbiter, and the
        other calls arrive there again; None: never.
        """
        self._kernel = kernel
        self._device = device
        self._make_arbiter = make_arbiter
        self._arbiter = make_arbiter()
        self._chance = chance
        self._on_answer = on_answer
        self._on_gone = on_gone
        self._number = number
        self._faults = faults or FaultPlan()
        self._trace = trace or Trace()
        self._boundary_ns = boundary_ns
        self._boundary_error = boundary_error
        self._watchdog_ns = watchdog_ns
        self._audit_every = audit_every
        self._ahead = ahead
        self._next: deque[arbitration.Slice] = deque()
        self._hosted: dict[int, Hosting] = {}
        self._open: dict[int, SimulatedRequest] = {}
        self._flights: dict[int, _Flight] = {}
        self._running: _Flight | None = None
        self._between = False
        self._wake: tuple[Nanoseconds, Timer] | None = None
        self._told: Nanoseconds = -1
        self._boundaries = 0
        self._busy_before: Nanoseconds = 0
        self.used_ns: dict[int, Nanoseconds] = {}
        self.slices: list[SliceRan] = []
        self.replaced = 0
        self.overdue = 0

    # Tenants.

    def host(self, hosting: Hosting) -> None:
        """The replica serves from now on. memory.ledger.LedgerFull where it does not fit."""
        model = hosting.model
        activation_bytes = model.most_rows * model.row_activation_bytes
        key = self._memory_key(hosting.replica)
        self._device.ledger.reserve(key, model.weight_bytes + IN_FLIGHT_PER_REPLICA * activation_bytes)
        self._hosted[hosting.replica] = hosting
        self._add(hosting)

    def update(self, replica: int, bandwidth: Millidevices, weight: int) -> None:
        """The replica's share changes."""
        self._take(arbitration.ReplicaUpdated(replica, bandwidth, weight))

    def unload(self, replica: int, drain_ns: Nanoseconds) -> None:
        """The replica takes no more, and leaves once it is drained."""
        self._take(arbitration.ReplicaRemoved(replica, self._kernel.now + drain_ns))

    # Requests.

    def submit(self, request: SimulatedRequest) -> None:
        """A request comes, and is answered once."""
        self._trace.write(self._kernel.now, "arrive", request.call, request.replica, request.rows)
        self._open[request.call] = request
        self._take(arbitration.Arrived(request))

    def cancel(self, call: int) -> None:
        """Nobody waits for the call any more; it is answered all the same."""
        self._trace.write(self._kernel.now, "cancel", call)
        self._take(arbitration.Cancelled(call))

    # The loop.

    def _take(self, event: arbitration.Event) -> None:
        self._perform(self._arbiter.handle(event, self._kernel.now))
        if self._running is None and not self._between:
            self._between = True
            # What comes at the same moment comes in the same frame: the lane looks once all of it is there.
            self._kernel.after(0, self._turn)
        self._set_alarm()

    def _turn(self) -> None:
        self._between = False
        while (self._running is not None) + len(self._next) < self._ahead:
            turn = next_turn(self._arbiter, self._kernel.now)
            self._perform(turn.actions)
            if turn.slice is None:
                break
            self._hand(turn.slice)
        self._set_alarm()
        self._boundaries += 1
        if self._boundaries % self._audit_every == 0:
            self._arbiter.check_invariants()

    def _hand(self, chosen: arbitration.Slice) -> None:
        flight = self._flights.get(chosen.batch)
        if flight is None:
            rows = sum(self._open[call].rows for call in chosen.calls)
            flight = self._flights[chosen.batch] = _Flight(chosen, self._hosted[chosen.replica], rows)
        flight.handed += 1
        if self._ahead > 1 and flight.handed == len(flight.hosting.model.segments):
            self._perform(self._arbiter.handle(arbitration.AllLaunched(chosen.batch), self._kernel.now))
        if self._running is None:
            self._begin(chosen)
        else:
            self._next.append(chosen)

    def _begin(self, chosen: arbitration.Slice) -> None:
        flight = self._flights[chosen.batch]
        hosting, model = flight.hosting, flight.hosting.model
        fault = self._faults.next(hosting.replica, self._chance)
        estimate = model.segments[flight.segment].cost(flight.rows)
        cost = round(estimate * hosting.error.draw(self._chance, self._kernel.now, max(1, estimate)))
        self._running = flight
        flight.begun = self._kernel.now
        self._trace.write(self._kernel.now, "begin", chosen.batch, chosen.replica, flight.segment, *chosen.calls)
        self._device.begin(self._number, max(1, cost), model.memory_share, partial(self._end, flight, fault))
        if fault is Fault.HANGS:
            self._device.hang(self._number)
        if self._watchdog_ns is not None:
            self._kernel.after(self._watchdog_ns, partial(self._give_up, flight, flight.begun))

    def _end(self, flight: _Flight, fault: Fault | None, took: Nanoseconds) -> None:
        self._meter(flight, took)
        self._running = None
        flight.segment += 1
        finished = flight.segment == len(flight.hosting.model.segments)
        failure = None if fault is None else fault.value
        if finished or failure is not None:
            del self._flights[flight.slice.batch]
            self._next = deque(each for each in self._next if each.batch != flight.slice.batch)
        ran = Ran(flight.slice.batch, took, finished and failure is None, failure)
        self._trace.write(self._kernel.now, "end", ran.batch, ran.took, ran.finished)
        self._perform(tell(self._arbiter, ran, self._kernel.now))
        if self._next:
            # It has been launched: the device goes on with it at once.
            self._begin(self._next.popleft())
        self._between = True
        if self._boundary_ns:
            error = self._boundary_error.draw(self._chance, self._kernel.now, self._boundary_ns)
            self._kernel.after(round(self._boundary_ns * error), self._turn)
        else:
            self._turn()

    def _meter(self, flight: _Flight, took: Nanoseconds) -> None:
        replica = flight.hosting.replica
        self.used_ns[replica] = self.used_ns.get(replica, 0) + took
        now = self._kernel.now
        ran = SliceRan(self._number, replica, flight.slice.batch, flight.begun, now, flight.slice.calls)
        self.slices.append(ran)

    def _perform(self, actions: list[arbitration.Action]) -> None:
        for action in actions:
            match action:
                case arbitration.Complete():
                    for call in action.calls:
                        self._answer(call, "OK", "", action.batch.started)
                case arbitration.Drop():
                    started = action.batch.started if action.batch is not None else None
                    self._answer(action.call, action.reason, action.message, started)
                case arbitration.Abandon():
                    self._flights.pop(action.batch, None)
                case arbitration.ReplicaGone():
                    self._hosted.pop(action.replica, None)
                    self._device.ledger.release(self._memory_key(action.replica))
                    if self._on_gone is not None:
                        self._on_gone(action.replica)

    def _answer(self, call: int, reason: str, message: str, started: Nanoseconds | None) -> None:
        request = self._open.pop(call, None)
        if request is None:
            raise AssertionError(f"call {call} is answered {reason} and waits for nothing")
        self._trace.write(self._kernel.now, "answer", call, reason)
        self._on_answer(Answer(request, self._kernel.now, reason, message, started))

    def _set_alarm(self) -> None:
        """Time passes at the arbiter when it asked for that, whether the lane runs or not."""
        moment = self._arbiter.wake_at()
        if self._wake is not None:
            if self._wake[0] == moment:
                return
            self._wake[1].cancel()
            self._wake = None
        if moment is not None and moment > self._told:
            self._wake = (moment, self._kernel.at(max(moment, self._kernel.now), self._pass_time))

    def _pass_time(self) -> None:
        self._wake = None
        self._told = self._kernel.now
        self._perform(self._arbiter.handle(arbitration.TimePassed(), self._told))
        moment = self._arbiter.wake_at()
        # A real reader would ask again and again, and use up its core.
        self.overdue += moment is not None and moment <= self._told
        self._set_alarm()

    # A segment that never returns.

    def _give_up(self, flight: _Flight, begun: Nanoseconds) -> None:
        if self._running is not flight or flight.begun != begun:
            return
        self._meter(flight, self._device.kill(self._number))
        self._busy_before += self._arbiter.statistics().busy_ns + self.slices[-1].ended - begun
        self._running = None
        self._flights.clear()
        self._next.clear()
        self._arbiter = self._make_arbiter()
        self.replaced += 1
        self._trace.write(self._kernel.now, "replaced", flight.slice.batch)
        for call in flight.slice.calls:
            self._answer(call, "MODEL_FAILED", Fault.HANGS.value, begun)
        for hosting in self._hosted.values():
            self._add(hosting)
        for request in list(self._open.values()):
            self._take(arbitration.Arrived(request))

    def _add(self, hosting: Hosting) -> None:
        added = arbitration.ReplicaAdded(
            hosting.replica, hosting.model.max_batch_size, hosting.bandwidth, hosting.weight, hosting.model.points()
        )
        self._take(added)

    def _memory_key(self, replica: int) -> int:
        return replica * len(self._device.compute_units) + self._number

    # Audits.

    @property
    def is_idle(self) -> bool:
        """Nothing runs and nobody waits for an answer."""
        return self._running is None and not self._open

    def check_invariants(self) -> None:
        """Raises AssertionError unless the books of arbiter, lane and device agree. To be asked between slices."""
        self._arbiter.check_invariants()
        self._device.ledger.check_invariants()
        statistics = self._arbiter.statistics()
        busy_ns = self._device.busy_ns[self._number]
        if self._busy_before + statistics.busy_ns != busy_ns or sum(self.used_ns.values()) != busy_ns:
            raise AssertionError(
                f"the lane was busy for {busy_ns}; its arbiters counted {self._busy_before + statistics.busy_ns}, "
                f"its replicas {self.used_ns}"
            )
        waiting = sum(1 for call in self._open if all(call not in each.slice.calls for each in self._flights.values()))
        if statistics.waiting > waiting or statistics.in_flight != len(self._flights):
            raise AssertionError(f"{statistics} of {len(self._open)} open calls and {len(self._flights)} batches")
        for earlier, later in zip(self.slices, self.slices[1:], strict=False):
            if later.started < earlier.ended:
                raise AssertionError(f"{earlier} and {later} ran at once")
