"""A device in virtual time: lanes that run one segment each, contention between them, memory, faults. PURE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from gpu_sharing.memory.ledger import Ledger
from gpu_sharing.simulation.contention import NONE, Contention
from gpu_sharing.simulation.kernel import Kernel, Timer
from gpu_sharing.units import Bytes, ComputeUnits, GiB, Nanoseconds

OnEnd: TypeAlias = Callable[[Nanoseconds], None]

_FULL = 1000


@dataclass(slots=True)
class _Running:
    """work: thousandths of nanoseconds still to do alone. slowdown: permille, since `updated`."""

    work: int
    memory_share: float
    started: Nanoseconds
    updated: Nanoseconds
    on_end: OnEnd
    slowdown: int = _FULL
    timer: Timer | None = None


class SimulatedLanes:
    """One device: a ledger of its memory, and lanes that run one segment at a time.

    busy_ns: by lane, the time during which it ran something.
    """

    def __init__(
        self,
        kernel: Kernel,
        compute_units: tuple[ComputeUnits, ...] = (1,),
        *,
        memory_bytes: Bytes = 16 * GiB,
        contention: Contention = NONE,
    ) -> None:
        """compute_units: of each lane. A segment's costs hold for the lane it runs on."""
        self.compute_units = compute_units
        self.ledger = Ledger(memory_bytes)
        self.busy_ns = [0] * len(compute_units)
        self._kernel = kernel
        self._contention = contention
        self._running: dict[int, _Running] = {}

    def begin(self, lane: int, cost: Nanoseconds, memory_share: float, on_end: OnEnd) -> None:
        """Runs a segment that takes `cost` alone. on_end: told what it took. ValueError where the lane is busy."""
        if lane in self._running:
            raise ValueError(f"lane {lane} is busy")
        now = self._kernel.now
        self._running[lane] = _Running(cost * _FULL, memory_share, now, now, on_end)
        self._pace()

    def hang(self, lane: int) -> None:
        """The lane's segment never ends by itself, from now on."""
        running = self._running[lane]
        if running.timer is not None:
            running.timer.cancel()
            running.timer = None
        running.slowdown = 0

    def kill(self, lane: int) -> Nanoseconds:
        """Ends what the lane runs, telling nobody; how long that had run. The lane may begin anew."""
        running = self._running.pop(lane)
        if running.timer is not None:
            running.timer.cancel()
        took = self._account(lane, running)
        self._pace()
        return took

    def _end(self, lane: int) -> None:
        running = self._running.pop(lane)
        took = self._account(lane, running)
        self._pace()
        running.on_end(took)

    def _account(self, lane: int, running: _Running) -> Nanoseconds:
        took = self._kernel.now - running.started
        self.busy_ns[lane] += took
        return took

    def _pace(self) -> None:
        """Who runs has changed, and with it how fast each one goes on."""
        shares = {lane: running.memory_share for lane, running in self._running.items()}
        for lane, running in self._running.items():
            if running.timer is None and running.slowdown == 0:
                continue
            slowdown = self._contention.slowdown_permille(lane, shares)
            if running.timer is None or slowdown != running.slowdown:
                self._repace(lane, running, slowdown)

    def _repace(self, lane: int, running: _Running, slowdown: int) -> None:
        now = self._kernel.now
        done = (now - running.updated) * _FULL * _FULL // running.slowdown
        running.work = max(0, running.work - done)
        running.updated, running.slowdown = now, slowdown
        if running.timer is not None:
            running.timer.cancel()
        left = -(-running.work * slowdown // (_FULL * _FULL))
        running.timer = self._kernel.after(left, lambda: self._end(lane))
