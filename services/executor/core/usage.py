"""Device time by model, counted over the lives of workers: a worker's counts start anew with it, ours do not."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpu_sharing.units import ComputeUnits, Nanoseconds
from gpu_sharing.worker.messages import Statistics, Used


@dataclass
class Total:
    """What one model of one tenant has used. compute_unit_ns: device time times the lane's compute units."""

    device_ns: Nanoseconds = 0
    compute_unit_ns: int = 0
    requests: int = 0
    batches: int = 0


@dataclass
class LaneUse:
    """A lane's last counts. busy_ns: since this executor started, over all its workers."""

    compute_units: ComputeUnits
    busy_ns: Nanoseconds = 0
    waiting: int = 0
    memory_used_bytes: int = 0
    last_busy_ns: Nanoseconds = 0
    last_used: dict[int, Used] = field(default_factory=dict)


class UsageLedger:
    """Adds up what workers count. compute_units: of each lane."""

    def __init__(self, compute_units: dict[int, ComputeUnits]) -> None:
        self.lanes = {lane: LaneUse(units) for lane, units in compute_units.items()}
        self.totals: dict[tuple[str, str], Total] = {}

    def take(self, lane: int, statistics: Statistics, models: dict[int, tuple[str, str]]) -> None:
        """Counts what is new since this worker's last word. models: (tenant, model) by replica, for those that are known.

        A worker's counts only grow; what shrinks is taken as unchanged.
        """
        use = self.lanes[lane]
        use.busy_ns += max(0, statistics.busy_ns - use.last_busy_ns)
        use.last_busy_ns = statistics.busy_ns
        use.waiting, use.memory_used_bytes = statistics.waiting, statistics.memory_used_bytes
        for used in statistics.used:
            before = use.last_used.get(used.replica, Used(used.replica, 0, 0, 0, 0))
            use.last_used[used.replica] = used
            key = models.get(used.replica)
            if key is None:
                continue
            total = self.totals.setdefault(key, Total())
            device_ns = max(0, used.device_ns - before.device_ns)
            total.device_ns += device_ns
            total.compute_unit_ns += device_ns * use.compute_units
            total.requests += max(0, used.requests - before.requests)
            total.batches += max(0, used.batches - before.batches)

    def worker_lost(self, lane: int) -> None:
        """The lane's next worker counts from nothing."""
        use = self.lanes[lane]
        use.last_busy_ns, use.waiting, use.memory_used_bytes, use.last_used = 0, 0, 0, {}
