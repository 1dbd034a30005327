"""A simulated lane whose models' weights come and go: the worker's residency and its core, around copies that take their time. PURE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from gpu_sharing.arbiter import Arbiter
from gpu_sharing.arbiter import events as arbitration
from gpu_sharing.arbiter.switching import IN_FLIGHT_PER_REPLICA
from gpu_sharing.memory.residence import Act, Move, Pace
from gpu_sharing.memory.streaming import Layout
from gpu_sharing.simulation.calls import Answer, Hosting, SimulatedRequest
from gpu_sharing.simulation.device import SimulatedLanes
from gpu_sharing.simulation.faults import Fault
from gpu_sharing.simulation.kernel import Kernel
from gpu_sharing.simulation.lane import SimulatedLane, _Flight
from gpu_sharing.simulation.models import SimulatedModel
from gpu_sharing.units import SECOND, Bytes, Nanoseconds
from gpu_sharing.worker.residency import Residency

LETTING_GO: Nanoseconds = 100_000
"""Taking a range's memory away: assumed, since no device has shown it yet."""


class SwappingLane(SimulatedLane):
    """fills, evictions: how often. copying_ns: how long the bus was busy."""

    def __init__(
        self,
        kernel: Kernel,
        device: SimulatedLanes,
        make_arbiter: Callable[[], Arbiter],
        *,
        room_bytes: Bytes,
        bytes_per_s: float,
        letting_go_ns: Nanoseconds = LETTING_GO,
        **options: Any,
    ) -> None:
        """room_bytes: for weights. bytes_per_s: of copies from pinned memory, which take Pace.BESIDE more each."""
        super().__init__(kernel, device, make_arbiter, **options)
        self.residency = Residency(room_bytes, Pace(SECOND / bytes_per_s))
        self._letting_go_ns = letting_go_ns
        self.fills = self.evictions = 0
        self.copying_ns: Nanoseconds = 0

    def host(self, hosting: Hosting) -> None:
        """The replica serves; its weights wait on the host, which is as large as it has to be."""
        model = hosting.model
        activations = IN_FLIGHT_PER_REPLICA * model.most_rows * model.row_activation_bytes
        self._device.ledger.reserve(self._memory_key(hosting.replica), activations)
        self._hosted[hosting.replica] = hosting
        self.residency.add(hosting.replica, _layout(model), model.weight_bytes)
        self._add(hosting)
        for held in self.residency.hosted(hosting.replica, hosting.bandwidth, model.points(), self._kernel.now):
            self._take(held)
        self._look()

    def submit(self, request: SimulatedRequest) -> None:
        """See `SimulatedLane`."""
        held = self.residency.asked(request, self._kernel.now)
        if held is not None:
            self._take(held)
        super().submit(request)
        if held is not None:
            self._look()

    def _hand(self, chosen: arbitration.Slice) -> None:
        if chosen.first:
            self.residency.started(chosen.batch, chosen.replica)
        super()._hand(chosen)

    def _end(self, flight: _Flight, fault: Fault | None, took: Nanoseconds) -> None:
        super()._end(flight, fault, took)
        if flight.segment == len(flight.hosting.model.segments) and self.residency.ended(flight.slice.batch):
            self._look()

    def _look(self) -> None:
        """The mover looks what is to be moved, once everything of this moment has happened."""
        self._kernel.after(0, self._move)

    def _move(self) -> None:
        actions, move = self.residency.next_move(self._arbiter, self._kernel.now)
        self._perform(actions)
        if move is None:
            return
        if move.act is Act.EVICT:
            self.evictions += 1
            self._kernel.after(self._letting_go_ns, partial(self._moved, move))
            return
        self.fills += 1
        size_bytes = self.residency.residence.size_bytes(move.model)
        took = self.residency.residence.pace.expect(size_bytes)
        self.copying_ns += took
        first = self.residency.start_after(move.model)
        self._kernel.after(took * first // max(1, size_bytes), partial(self._ready, move.model))
        self._kernel.after(took, partial(self._moved, move))

    def _ready(self, number: int) -> None:
        self._perform(self.residency.ready(number, self._arbiter, self._kernel.now))
        self._take(arbitration.TimePassed())

    def _moved(self, move: Move) -> None:
        self._perform(self.residency.moved(move.model, self._arbiter, self._kernel.now, failed=False))
        self.residency.residence.check_invariants()
        self._take(arbitration.TimePassed())
        self._move()


def _layout(model: SimulatedModel) -> Layout:
    """Its weights, evenly over its segments."""
    count = len(model.segments)
    return Layout(model.weight_bytes, tuple(model.weight_bytes * (at + 1) // count for at in range(count)))


@dataclass
class Swapped:
    """What became of everybody. answers: in the order in which they came."""

    answers: list[Answer] = field(default_factory=list)
    fills: int = 0
    evictions: int = 0
    copying_ns: Nanoseconds = 0
    busy_ns: Nanoseconds = 0
    ended: Nanoseconds = 0


def simulate_swapping(
    models: Sequence[SimulatedModel],
    arrivals: Sequence[tuple[Nanoseconds, int]],
    *,
    objective_ns: Nanoseconds,
    room_bytes: Bytes,
    bytes_per_s: float,
    memory_bytes: Bytes,
    boundary_ns: Nanoseconds = 0,
    ahead: int = 1,
) -> Swapped:
    """One lane. arrivals: moments, ascending, each with the number of the model that is asked. room_bytes: for weights."""
    kernel, told = Kernel(), Swapped()
    device = SimulatedLanes(kernel, (1,), memory_bytes=memory_bytes)
    lane = SwappingLane(
        kernel, device, lambda: Arbiter(ahead=ahead), room_bytes=room_bytes, bytes_per_s=bytes_per_s,
        chance=np.random.Generator(np.random.PCG64(0)), on_answer=told.answers.append, boundary_ns=boundary_ns,
        audit_every=1 << 20, ahead=ahead,
    )  # fmt: skip
    for number, model in enumerate(models):
        lane.host(Hosting(number, model))
    # As after its loads: full of whatever came last.
    kernel.run(until=0)
    kernel.run()
    start = kernel.now
    for call, (moment, number) in enumerate(arrivals):
        request = SimulatedRequest(call, number, start + moment, 1, None, start + moment + objective_ns)
        kernel.at(start + moment, partial(lane.submit, request))
    before = lane.fills, lane.evictions, lane.copying_ns
    kernel.run()
    lane.check_invariants()
    told.fills, told.evictions, told.copying_ns = (
        now - then for now, then in zip((lane.fills, lane.evictions, lane.copying_ns), before, strict=True)
    )
    told.busy_ns, told.ended = device.busy_ns[0], kernel.now - start
    if len(told.answers) != len(arrivals):
        raise AssertionError(f"{len(arrivals)} asked, {len(told.answers)} answered")
    return told
