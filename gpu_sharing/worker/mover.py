"""The mover: one thread that brings weights to the device and lets them go, as residence decides."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

from gpu_sharing.memory.berths import Berth, Space
from gpu_sharing.memory.ledger import Ledger, LedgerFull
from gpu_sharing.memory.residence import Act, Move
from gpu_sharing.memory.streaming import Layout
from gpu_sharing.runtimes.base import LoadedModel
from gpu_sharing.runtimes.movable import Movable
from gpu_sharing.units import Bytes, Nanoseconds
from gpu_sharing.worker.messages import Load, Moved
from gpu_sharing.worker.outbox import Outbox
from gpu_sharing.worker.requests import Requests
from gpu_sharing.worker.residency import Residency, Unit

Decided = TypeVar("Decided")

PATIENCE_S = 60.0
"""How long a load waits for others' weights to leave."""
_LOOK_S = 0.5
_AFTER_FAILURE_S = 0.5


class Gate:
    """Lets a segment run once its weights can be counted on. Called on the lane's thread, and on those that measure."""

    def __init__(self, space: Space, berth: Berth, layout: Layout) -> None:
        self._space, self._berth, self._layout = space, berth, layout

    def __call__(self, segment: int) -> None:
        if not self._berth.is_there:
            self._space.await_bytes(self._berth, self._layout.needed(segment))


class Mover:
    """Moves weights on the thread that calls `run`; the loader asks it for places, and waits for them."""

    def __init__(
        self,
        residency: Residency,
        ledger: Ledger,
        space: Space,
        outbox: Outbox,
        *,
        clock: Callable[[], Nanoseconds],
        patience_s: float = PATIENCE_S,
    ) -> None:
        """ledger: of what never leaves the device; the rest of its capacity is for weights that move."""
        self.residency = residency
        self._ledger, self._space, self._outbox, self._clock = ledger, space, outbox, clock
        self._patience_s = patience_s
        self._requests: Requests | None = None
        self._berths: dict[int, Berth] = {}
        self._wake = threading.Event()
        self._changed = threading.Condition()
        self._stopping = False

    def wake(self) -> None:
        """Something may have to be moved. Any thread; returns at once."""
        self._wake.set()

    def attach(self, requests: Requests) -> None:
        """Whose arbiter is told. Called once, before any thread runs."""
        self._requests = requests

    def stop(self) -> None:
        """Ends the thread once what it is at is done."""
        self._stopping = True
        self._wake.set()

    # The loader's side.

    def adopt(self, load: Load, model: LoadedModel, beside_bytes: Bytes = 0) -> bool:
        """Takes the weights of a model that was just loaded into its care, and has them in for as long as the replica loads.

        beside_bytes: what stays reserved for the replica, beside its weights.
        False: it stays as it is, since its weights cannot be moved or the host has no room for them. LedgerFull where the
        device could never hold them beside what is kept; then the model is of no use any more.
        """
        weights = model.weights() if isinstance(model, Movable) else None
        if weights is None or not weights.layout.size_bytes:
            return False
        berth = self._space.take(weights.layout.size_bytes, load.tenant)
        if berth is None:
            return False
        try:
            weights.save(berth.host)
            weights.drop()
            self.reserve(load.replica, beside_bytes)
            self._decided(
                lambda: self._berth(self.residency.add(load.replica, weights.layout, berth.size_bytes), berth)
            )
        except BaseException as error:
            self._space.give_back(berth)
            if isinstance(error, ValueError):
                raise LedgerFull(
                    berth.size_bytes, self.residency.residence.capacity_bytes, self._ledger.capacity_bytes
                ) from error
            raise
        self.pin(load.replica)
        weights.lie_over(berth.memory)
        assert isinstance(model, Movable)
        model.gate = Gate(self._space, berth, weights.layout)
        return True

    def _berth(self, unit: Unit, berth: Berth) -> None:
        self._berths[unit.number] = berth

    def join(self, replica: int, like: int) -> None:
        """The replica, which is loading, shares the weights of another, which are brought in; nothing where those do not move."""
        if self._decided(lambda: self.residency.join(replica, like)) is not None:
            self.pin(replica)

    def pin(self, replica: int) -> None:
        """Returns once the replica's weights are there, to stay until it serves. LedgerFull where they do not come in time."""
        if not self._waited(lambda: self.residency.pin(replica)):
            raise LedgerFull(0, self.residency.residence.excess_bytes, self._ledger.capacity_bytes)

    def leave(self, replica: int) -> None:
        """The replica is gone; its weights too, where nobody else has them."""
        unit = self._decided(lambda: self.residency.leave(replica))
        if unit is None:
            self.wake()
            return
        gone: Unit = unit
        if self._waited(lambda: self.residency.forget(gone)):
            self._space.give_back(self._berths.pop(gone.number))
        self.wake()

    def reserve(self, replica: int, asked_bytes: Bytes) -> None:
        """Sets what the replica takes that never leaves, and has weights moved away for it. LedgerFull where that does not fit."""
        before = self._ledger.reserved(replica)
        self._ledger.reserve(replica, asked_bytes)
        try:
            self._decided(lambda: self.residency.residence.resize(self._ledger.free_bytes))
        except ValueError:
            self._ledger.reserve(replica, before)
            free = self._ledger.free_bytes + before - self.residency.residence.floor_bytes
            raise LedgerFull(asked_bytes, max(0, free), self._ledger.capacity_bytes) from None
        if not self._waited(lambda: self.residency.residence.excess_bytes <= 0):
            raise LedgerFull(asked_bytes, 0, self._ledger.capacity_bytes)

    def release(self, replica: int) -> None:
        """It takes nothing any more."""
        self._ledger.release(replica)
        self._decided(lambda: self.residency.residence.resize(self._ledger.free_bytes))

    def _decided(self, work: Callable[[], Decided]) -> Decided:
        assert self._requests is not None
        return self._requests.decide(lambda _arbiter, _now: ([], work()))

    def _waited(self, holds: Callable[[], bool]) -> bool:
        ends = time.monotonic() + self._patience_s
        with self._changed:
            while not self._decided(holds):
                self.wake()
                if time.monotonic() >= ends or self._stopping:
                    return False
                self._changed.wait(0.05)
        return True

    # The thread.

    def run(self) -> None:
        """Until `stop`."""
        self._space.enter()
        assert self._requests is not None
        while not self._stopping:
            move = self._requests.decide(self.residency.next_move)
            if move is None:
                self._wake.wait(_LOOK_S)
                self._wake.clear()
                continue
            self._do(move, self._requests)
            with self._changed:
                self._changed.notify_all()

    def _do(self, move: Move, requests: Requests) -> None:
        berth, began, error = self._berths[move.model], self._clock(), None
        try:
            if move.act is Act.FILL:
                self._fill(move.model, berth, requests)
            else:
                self._space.empty(berth)
        except Exception as broken:
            traceback.print_exc()
            error = broken
            berth.failed = f"its weights could not be brought in: {broken}"
        took = self._clock() - began
        if error is None and move.act is Act.FILL:
            self.residency.residence.pace.see(berth.size_bytes, took)
        replicas = tuple(sorted(self.residency.units[move.model].replicas))
        requests.decide(
            lambda arbiter, now: (self.residency.moved(move.model, arbiter, now, failed=error is not None), None)
        )
        why = move.why if error is None else berth.failed
        is_in = move.act is Act.FILL and error is None
        self._outbox.send([Moved(replicas, is_in, berth.size_bytes, took, why)])
        if error is not None:
            time.sleep(_AFTER_FAILURE_S)

    def _fill(self, number: int, berth: Berth, requests: Requests) -> None:
        self._space.fill(berth)
        start_after, is_ready = self.residency.start_after(number), False
        for offset, length in self.residency.units[number].layout.pieces(berth.size_bytes):
            landed = self._space.copy(berth, offset, length)
            if not is_ready and landed >= start_after:
                is_ready = True
                requests.decide(lambda arbiter, now: (self.residency.ready(number, arbiter, now), None))
        self._space.settle(berth)
