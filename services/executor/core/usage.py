"""Device time by model, counted over the lives of workers and of executors, each nanosecond once.

A worker counts from nothing; what it counts is told twice, by the page that it writes at every slice and by its messages,
and the larger of the two holds. When its life is over its last counts are added to what is settled. What is settled is what
the executor's book keeps, beside the pages of lives that are not over: the executor that comes after this one, however
this one ended, adds those pages up in the same way.

What is kept does not grow with the names that there ever were. A replica that is gone is settled while its worker lives on. A
model that is gone for good is folded: what it used goes on being counted as its tenant's, under no model's name, so that the
tenant's sum stays what it was. One of the same name that comes after it is counted in another *life*, from nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from gpu_sharing.units import ComputeUnits, Nanoseconds
from gpu_sharing.worker.messages import Reading, Statistics, Used

Model: TypeAlias = tuple[str, str]
"""(tenant, model)"""

UNKNOWN: Model = ("", "")
"""Whose device time is that no book has an owner for."""
FOLDED = ""
"""In place of a model's name: all those of the tenant that are not told apart any more."""
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

    def merge(self, other: Total) -> None:
        """Adds what another used."""
        self.device_ns += other.device_ns
        self.compute_unit_ns += other.compute_unit_ns
        self.requests += other.requests
        self.batches += other.batches


@dataclass
class LaneUse:
    """A lane's last counts. busy_ns: since this executor started, over all its workers. used: of the worker's life that is
    not over, by replica, without those whose last counts are settled already. over: of these, what the
    page still says; over_ns: of all of them. lived_from: when that life began."""

    compute_units: ComputeUnits
    busy_ns: Nanoseconds = 0
    waiting: int = 0
    memory_used_bytes: int = 0
    life_busy_ns: Nanoseconds = 0
    lived_from: Nanoseconds = 0
    used: dict[int, Used] = field(default_factory=dict)
    over: dict[int, Used] = field(default_factory=dict)
    over_ns: Nanoseconds = 0


class Lives:
    """Which life each model that is told apart is in. Numbers are given in ascending order and never twice under one book's
    name; last: the latest. A model without one has been counted since before there were numbers: 0."""

    def __init__(self, last: int = 0, numbers: Mapping[Model, int] | None = None) -> None:
        self.last = last
        self.numbers = dict(numbers or {})

    def begin(self, model: Model) -> None:
        """The model is told apart from now on, if it was not."""
        if model not in self.numbers:
            self.last += 1
            self.numbers[model] = self.last

    def of(self, model: Model) -> int:
        """The number of its life."""
        return self.numbers.get(model, 0)


class UsageLedger:
    """Adds up what workers count. compute_units: of each lane. settled: what earlier lives used. models: whose replica is
    whose; whoever made the ledger adds to it, or calls `owns`."""

    def __init__(
        self,
        compute_units: Mapping[int, ComputeUnits],
        settled: Mapping[Model, Total] | None = None,
        models: dict[int, Model] | None = None,
        lives: Lives | None = None,
    ) -> None:
        self.lanes = {lane: LaneUse(units) for lane, units in compute_units.items()}
        self.settled: dict[Model, Total] = dict(settled or {})
        self.models: dict[int, Model] = {} if models is None else models
        self.lives = Lives() if lives is None else lives

    def owns(self, replica: int, model: Model) -> bool:
        """What the replica uses is the model's; whether that is news."""
        if self.models.get(replica) == model:
            return False
        self.models[replica] = model
        if model not in self.settled:
            self.lives.begin(model)
        return True

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
        self._busy(use, use.over_ns + sum(used.device_ns for used in use.used.values()), now)

    def ended(self, lane: int, reading: Reading | None, now: Nanoseconds) -> None:
        """The lane's worker is gone: its last counts are settled. reading: its page, if there is one.

        The slice that ran then is charged up to now, since the lane was its until its worker was lost.
        """
        use = self.lanes[lane]
        if reading is not None:
            self.read(lane, charged(reading, now), now)
        settle(self.settled, use.used.values(), self.models, use.compute_units)
        use.life_busy_ns, use.waiting, use.memory_used_bytes, use.used = 0, 0, 0, {}
        use.over, use.over_ns = {}, 0

    def settle_gone(self, lane: int, gone: Collection[int], reading: Reading | None, now: Nanoseconds) -> list[int]:
        """Settles what replicas used that have left the lane's worker, which lives on; returns those that it knew.

        reading: the worker's page. A replica whose slice runs, as the page says, is not done yet, and is left out.
        """
        use = self.lanes[lane]
        listed: dict[int, Used] = {}
        if reading is not None:
            self.read(lane, reading, now)
            listed = {each.replica: each for each in reading.used}
        running = reading.running.replica if reading is not None and reading.running is not None else None
        done = [replica for replica in gone if replica in use.used and replica != running]
        last = [use.used.pop(replica) for replica in done]
        settle(self.settled, last, self.models, use.compute_units)
        use.over_ns += sum(used.device_ns for used in last)
        use.over |= {replica: listed[replica] for replica in done if replica in listed}
        if reading is not None:
            use.over = {replica: used for replica, used in use.over.items() if replica in listed}
        return done

    def can_fold(self, model: Model) -> bool:
        """Whether nothing that the model used is still to be settled."""
        return model[1] != FOLDED and model not in self.models.values()

    def fold(self, model: Model, life: int) -> bool:
        """Ends a life of a model that is gone: its tenant's sum stays what it was. False where it is another, or none, or not
        yet to be ended."""
        known = model in self.settled or model in self.lives.numbers
        if not known or self.lives.of(model) != life or not self.can_fold(model):
            return False
        self.lives.numbers.pop(model, None)
        self.settled.setdefault((model[0], FOLDED), Total()).merge(self.settled.pop(model, Total()))
        return True

    def fold_beyond(self, most: int) -> bool:
        """Folds the lives that began first, of models without a replica, where there are more than so many; whether any."""
        named = {model for model in (*self.settled, *self.lives.numbers) if model[1] != FOLDED}
        beyond = len(named) - most
        if beyond <= 0:
            return False
        oldest = sorted(named - set(self.models.values()), key=lambda model: (self.lives.of(model), model))
        return sum(self.fold(model, self.lives.of(model)) for model in oldest[:beyond]) > 0

    def _count(self, use: LaneUse, told: Iterable[Used], now: Nanoseconds) -> None:
        """A worker's counts only grow: what is less than is known already changes nothing. It may be hostile: what it says of
        replicas that there never were is left out, and nobody uses a lane for longer than its worker has lived."""
        most_ns = max(0, now - use.lived_from)
        for used in told:
            if used.replica not in self.models or used.replica in use.over:
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
