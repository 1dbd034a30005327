"""Which replicas' weights are on the device: what residence decides, in the arbiter's words. PURE.

Everything here is called under the lock of `Requests`, so that no batch starts on weights that go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gpu_sharing.arbiter import Arbiter
from gpu_sharing.arbiter.events import Action, ReplicaHeld, ReplicaReady
from gpu_sharing.arbiter.request import Request
from gpu_sharing.measurements import ProfilePoint
from gpu_sharing.memory.residence import Act, Move, Pace, Place, Residence
from gpu_sharing.memory.streaming import Layout, start_after
from gpu_sharing.units import SECOND, Bytes, Nanoseconds

NOT_URGENT: Nanoseconds = 60 * SECOND
"""When class `batch` is due, as far as the order of coming in goes."""


@dataclass
class Unit:
    """One artefact's weights, and the replicas that share them. pinned: those that are still loading, and hold it in.

    kept: those with a reservation. segments_ns: what its segments take at the least; (): not known. is_ready: its batches may
    start, though not all of it may be there yet.
    """

    number: int
    layout: Layout
    replicas: set[int] = field(default_factory=set)
    pinned: set[int] = field(default_factory=set)
    kept: set[int] = field(default_factory=set)
    segments_ns: tuple[Nanoseconds, ...] = ()
    is_ready: bool = False


class Residency:
    """Of one lane. room_bytes: what weights that move may take together now."""

    def __init__(self, room_bytes: Bytes, pace: Pace | None = None) -> None:
        self.residence = Residence(room_bytes, pace=pace)
        self.units: dict[int, Unit] = {}
        self._of: dict[int, Unit] = {}
        self._batches: dict[int, int] = {}
        self._serving: set[int] = set()
        self._numbers = 0

    # Loads.

    def add(self, replica: int, layout: Layout, size_bytes: Bytes) -> Unit:
        """Weights that wait on the host, to be brought in for a replica that is loading. ValueError where they can never fit."""
        self._numbers += 1
        self.residence.add(self._numbers, size_bytes)
        unit = self.units[self._numbers] = Unit(self._numbers, layout)
        self._join(replica, unit)
        return unit

    def join(self, replica: int, like: int) -> Unit | None:
        """The replica, which is loading, shares the weights of another; None where those do not move."""
        unit = self._of.get(like)
        if unit is not None:
            self._join(replica, unit)
        return unit

    def _join(self, replica: int, unit: Unit) -> None:
        self._of[replica] = unit
        unit.replicas.add(replica)
        self.residence.want(unit.number, 0)

    def pin(self, replica: int) -> bool:
        """Holds the weights in while the replica loads. False where they are not there yet: they have been asked for."""
        unit = self._of[replica]
        if self.residence.place(unit.number) is not Place.IN:
            self.residence.want(unit.number, 0)
            return False
        if replica not in unit.pinned:
            unit.pinned.add(replica)
            self.residence.start(unit.number)
        return True

    def leave(self, replica: int) -> Unit | None:
        """The replica is gone, or did not come to be. Its weights, where nobody else has them: to be freed by `forget`."""
        unit = self._of.pop(replica, None)
        if unit is None:
            return None
        self._unpin(replica, unit)
        self._keep(replica, unit, 0)
        self._serving.discard(replica)
        unit.replicas.discard(replica)
        return None if unit.replicas else unit

    def forget(self, unit: Unit) -> bool:
        """Its weights are to be freed. False where they are on their way: try again."""
        if self.residence.place(unit.number) in (Place.COMING, Place.GOING):
            return False
        self.residence.remove(unit.number)
        del self.units[unit.number]
        return True

    def hosted(
        self, replica: int, bandwidth: int, points: Sequence[ProfilePoint], now: Nanoseconds
    ) -> Iterator[ReplicaHeld]:
        """The replica serves from now on, and is no longer pinned. points: of its profile."""
        unit = self._of.get(replica)
        if unit is None:
            return
        self._serving.add(replica)
        least = min(points, key=lambda point: point.rows, default=None)
        unit.segments_ns = least.segments_ns if least is not None else ()
        self._keep(replica, unit, bandwidth)
        self._unpin(replica, unit)
        if self.residence.place(unit.number) is Place.IN:
            unit.is_ready = True
        else:
            yield ReplicaHeld(replica, self.residence.expect(unit.number, now))

    def updated(self, replica: int, bandwidth: int) -> None:
        """The replica's reservation has changed."""
        unit = self._of.get(replica)
        if unit is not None:
            self._keep(replica, unit, bandwidth)

    def _keep(self, replica: int, unit: Unit, bandwidth: int) -> None:
        if bandwidth > 0:
            unit.kept.add(replica)
        else:
            unit.kept.discard(replica)
        if self.residence.keep(unit.number, bool(unit.kept)):
            self.residence.want(unit.number, 0)

    def _unpin(self, replica: int, unit: Unit) -> None:
        if replica in unit.pinned:
            unit.pinned.discard(replica)
            self.residence.end(unit.number)

    # Requests.

    def asked(self, submit: Request, now: Nanoseconds) -> ReplicaHeld | None:
        """A request comes. Where its model is not there: what the arbiter is to be told before it hears of the request."""
        unit = self._of.get(submit.replica)
        if unit is None:
            return None
        objective = None if submit.objective is None else submit.objective - submit.arrived
        self.residence.arrive(unit.number, now, objective)
        if unit.is_ready:
            return None
        self.residence.want(unit.number, now + NOT_URGENT if submit.objective is None else submit.objective)
        return ReplicaHeld(submit.replica, self.residence.expect(unit.number, now))

    def started(self, batch: int, replica: int) -> None:
        """A batch's first slice is handed out."""
        unit = self._of.get(replica)
        if unit is not None:
            self.residence.start(unit.number)
            self._batches[batch] = unit.number

    def ended(self, batch: int) -> bool:
        """The batch is over, however it went. Whether something may be moved now that could not be before."""
        number = self._batches.pop(batch, None)
        if number is None:
            return False
        self.residence.end(number)
        # Whoever waits for room may wait for this one.
        return self.has_work

    @property
    def has_work(self) -> bool:
        """Whether anything is wanted that is not there, or too much is there."""
        return self.residence.is_behind

    # Moves.

    def next_move(self, arbiter: Arbiter, now: Nanoseconds) -> tuple[list[Action], Move | None]:
        """What is to be copied or let go of next; the arbiter has been told what that means for it."""
        actions: list[Action] = []
        while True:
            move = self.residence.next_move(now, lambda number: self._is_waited_for(number, arbiter))
            if move is None:
                return actions, None
            if move.act is Act.KEEP:
                actions += self._ready(move.model, arbiter, now)
                continue
            if move.act is not Act.FILL:
                actions += self._hold(move.model, arbiter, now)
            if move.act is not Act.HOLD:
                return actions, move

    def ready(self, number: int, arbiter: Arbiter, now: Nanoseconds) -> list[Action]:
        """So much has come in that the first segment may start."""
        return self._ready(number, arbiter, now) if self.residence.place(number) is Place.COMING else []

    def moved(self, number: int, arbiter: Arbiter, now: Nanoseconds, *, failed: bool) -> list[Action]:
        """What `next_move` said has been done, or could not be."""
        self.residence.moved(number, failed=failed)
        actions: list[Action] = []
        if self.residence.place(number) is Place.IN:
            actions = self._ready(number, arbiter, now)
        else:
            actions = self._hold(number, arbiter, now)
            if self._is_waited_for(number, arbiter):
                # Some came while it went, and their calls wait.
                self.residence.want(number, now + NOT_URGENT)
        return actions

    def start_after(self, number: int) -> Bytes:
        """How much must have landed before its first segment starts, so that no segment waits."""
        unit = self.units[number]
        return start_after(unit.layout, unit.segments_ns, self.residence.pace.ns_per_byte)

    def _hold(self, number: int, arbiter: Arbiter, now: Nanoseconds) -> list[Action]:
        self.units[number].is_ready = False
        events = [ReplicaHeld(replica, self.residence.expect(number, now)) for replica in self._served(number)]
        return [action for event in events for action in arbiter.handle(event, now)]

    def _ready(self, number: int, arbiter: Arbiter, now: Nanoseconds) -> list[Action]:
        self.units[number].is_ready = True
        return [action for replica in self._served(number) for action in arbiter.handle(ReplicaReady(replica), now)]

    def _served(self, number: int) -> Sequence[int]:
        return sorted(self.units[number].replicas & self._serving)

    def _is_waited_for(self, number: int, arbiter: Arbiter) -> bool:
        return any(arbiter.waits(replica) for replica in self.units[number].replicas)
