"""Device time by model, counted over the lives of workers and of executors, each nanosecond once.

A worker counts from nothing; what it counts is told twice, by the page that it writes at every slice and by its messages,
and the larger of the two holds. When its life is over its last counts are added to what is settled. What is settled is what
the executor's book keeps, beside the pages of lives that are not over: the executor that comes after this one, however
this one ended, adds those pages up in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from gpu_sharing.units import ComputeUnits, Nanoseconds
from gpu_sharing.worker.messages import Reading, Statistics, Used

Model: TypeAlias = tuple[str, str]
"""(tenant, model)"""

UNKNOWN: Model = ("", "")
"""Whose device time is that no book has an owner for."""
_MOST_COUNTED = 1 << 40
"""Requests or batches that one life of a worker is believed."""


class Total(msgspec.Struct):
    """What one model of one tenant has used. compute_unit_ns: device time times the lane's compute units."""

    device_ns: Nanoseconds = 0
    compute_unit_ns: int = 0
    requests: int = 0
    batches: int = 0

    def add(self, used: Used, compute_units: ComputeUnits) -> None:
        """Adds what a replica used on a lane of so many compute units."""
        self.device_ns += used.device_ns
        self.compute_unit_ns += used.device_ns * compute_units
        self.requests += used.requests
        self.batches += used.batches


@dataclass
class LaneUse:
    """A lane's last counts. busy_ns: since this executor started, over all its workers. used: of the worker's life that is
    not over, by replica; lived_from: when that began."""

    compute_units: ComputeUnits
    busy_ns: Nanoseconds = 0
    waiting: int = 0
    memory_used_bytes: int = 0
    life_busy_ns: Nanoseconds = 0
    lived_from: Nanoseconds = 0
    used: dict[int, Used] = field(default_factory=dict)


class UsageLedger:
    """Adds up what workers count. compute_units: of each lane. settled: what earlier lives used. models: whose replica is
    whose; whoever made the ledger adds to it."""

    def __init__(
        self,
        compute_units: Mapping[int, ComputeUnits],
        settled: Mapping[Model, Total] | None = None,
        models: dict[int, Model] | None = None,
    ) -> None:
        self.lanes = {lane: LaneUse(units) for lane, units in compute_units.items()}
        self.settled: dict[Model, Total] = dict(settled or {})
        self.models: dict[int, Model] = {} if models is None else models

    @property
    def totals(self) -> dict[Model, Total]:
        """What each model used, in lives that are over and in those that are not. A copy."""
        totals = {key: msgspec.structs.replace(total) for key, total in list(self.settled.items())}
        for use in self.lanes.values():
            for replica, used in list(use.used.items()):
                totals.setdefault(self.models.get(replica, UNKNOWN), Total()).add(used, use.compute_units)
        return totals

    def started(self, lane: int, now: Nanoseconds) -> None:
        """The lane has a new worker, which counts from nothing."""
        self.lanes[lane].lived_from = now

    def take(self, lane: int, statistics: Statistics, now: Nanoseconds) -> None:
        """Counts what a worker's message says."""
        use = self.lanes[lane]
        self._count(use, statistics.used, now)
        self._busy(use, statistics.busy_ns, now)
        use.waiting, use.memory_used_bytes = statistics.waiting, statistics.memory_used_bytes

    def read(self, lane: int, reading: Reading, now: Nanoseconds) -> None:
        """Counts what a worker's page says: every slice that has ended."""
        use = self.lanes[lane]
        self._count(use, reading.used, now)
        self._busy(use, sum(used.device_ns for used in use.used.values()), now)

    def ended(self, lane: int, reading: Reading | None, now: Nanoseconds) -> None:
        """The lane's worker is gone: its last counts are settled. reading: its page, if there is one.

        The slice that ran then is charged up to now, since the lane was its until its worker was lost.
        """
        use = self.lanes[lane]
        if reading is not None:
            self.read(lane, charged(reading, now), now)
        settle(self.settled, use.used.values(), self.models, use.compute_units)
        use.life_busy_ns, use.waiting, use.memory_used_bytes, use.used = 0, 0, 0, {}

    def _count(self, use: LaneUse, told: Iterable[Used], now: Nanoseconds) -> None:
        """A worker's counts only grow: what is less than is known already changes nothing. It may be hostile: what it says of
        replicas that there never were is left out, and nobody uses a lane for longer than its worker has lived."""
        most_ns = max(0, now - use.lived_from)
        for used in told:
            if used.replica not in self.models:
                continue
            before = use.used.get(used.replica, Used(used.replica, 0, 0, 0, 0))
            use.used[used.replica] = Used(
                used.replica,
                max(before.device_ns, min(used.device_ns, most_ns)),
                max(before.requests, min(used.requests, _MOST_COUNTED)),
                max(before.batches, min(used.batches, _MOST_COUNTED)),
                0,
            )

    def _busy(self, use: LaneUse, busy_ns: Nanoseconds, now: Nanoseconds) -> None:
        told = min(busy_ns, max(0, now - use.lived_from))
        if told > use.life_busy_ns:
            use.busy_ns += told - use.life_busy_ns
            use.life_busy_ns = told


def charged(reading: Reading, died_at: Nanoseconds | None = None) -> Reading:
    """A dead worker's counts, the slice that it died in among them.

    died_at: when its loss was noticed; None: not known, and it is charged up to the worker's last sign of life.
    """
    running = reading.running
    if running is None:
        return reading
    ran_ns = max(0, (running.alive if died_at is None else died_at) - running.began)
    used = (
        msgspec.structs.replace(each, device_ns=each.device_ns + ran_ns) if each.replica == running.replica else each
        for each in reading.used
    )
    return Reading(tuple(used))


def settle(
    settled: dict[Model, Total], used: Iterable[Used], models: Mapping[int, Model], compute_units: ComputeUnits
) -> None:
    """Adds the last counts of a life that is over to what is settled; what nobody is known to have used as UNKNOWN's."""
    for each in used:
        if each.device_ns or each.requests:
            settled.setdefault(models.get(each.replica, UNKNOWN), Total()).add(each, compute_units)
