"""What there is: executors, the replicas they hold, and each lane's and device's ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from gpu_sharing.partitioning.patience import Patience
from services.scheduler.core.catalogue import Key, Ref
from services.scheduler.core.rates import Rates
from services.scheduler.core.replicas import Phase, Replica
from services.scheduler.core.reports import Hello, Lane, Report


class LaneId(NamedTuple):
    """A lane's name in the whole fleet."""

    executor_id: str
    lane: int

    def __str__(self) -> str:
        return f"{self.executor_id} lane {self.lane}"


class Counted(NamedTuple):
    """A life of a model's counts, under one of its executor's names."""

    incarnation: str
    key: Key
    life: int


@dataclass(slots=True)
class Division:
    """How an executor's device is divided. layout: the one in force, which its executor may still have to be told.

    pinned: an operator wants it so. sent_at: when its executor was last told; None: it is to be told.
    before: the layout that is being left; None: none is. avoided_until: by layout, since a change to it came to nothing.
    """

    layout: int = 0
    pinned: bool = False
    sent_at: float | None = None
    why: str = "as its executor says"
    before: int | None = None
    avoided_until: dict[int, float] = field(default_factory=dict)
    patience: Patience = field(default_factory=Patience)
    rates: Rates = field(default_factory=Rates)


@dataclass(slots=True)
class Executor:
    """An executor and what it holds.

    grants: millidevices by lane and tenant. A tenant is granted once per lane, however many of its models live there.
    detached_at: the moment its stream ended; None while it is attached.
    lost: its stream has been gone for longer than the grace.
    gone: counts that it tells of models that are not in the catalogue, and since when; or when it was told to fold them.
    """

    hello: Hello
    report: Report
    detached_at: float | None = None
    lost: bool = False
    replicas: dict[int, Replica] = field(default_factory=dict)
    grants: dict[int, dict[str, int]] = field(default_factory=dict)
    division: Division = field(default_factory=Division)
    gone: dict[Counted, float] = field(default_factory=dict)

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The lanes of the layout in force."""
        return self.hello.device.in_layout(self.division.layout)

    def in_force(self, lane: int) -> bool:
        """Whether a lane is in the layout in force; those of no device are not."""
        return any(each.number == lane for each in self.lanes)

    @property
    def left_behind(self) -> list[Replica]:
        """Replicas on lanes that are not in the layout in force, those that drain too."""
        if not self.hello.device.layouts:
            return []
        return [replica for replica in self.replicas.values() if not self.in_force(replica.lane)]

    @property
    def executor_id(self) -> str:
        """Its name."""
        return self.hello.executor_id

    @property
    def attached(self) -> bool:
        """Whether commands reach it."""
        return self.detached_at is None

    @property
    def usable(self) -> bool:
        """Whether what it holds counts: not when it is lost, or about to stop."""
        return not self.lost and not self.report.draining

    @property
    def memory_taken_bytes(self) -> int:
        """Of its replicas, the leaving ones too."""
        return sum(replica.memory_bytes for replica in self.replicas.values())

    def granted(self, lane: int) -> int:
        """Millidevices granted on a lane."""
        return sum(self.grants.get(lane, {}).values())

    def free(self, lane: int) -> int:
        """Millidevices of a lane that nobody has been granted; never below 0."""
        return max(0, self.hello.device.capacity(lane) - self.granted(lane))

    def grant(self, lane: int, tenant: str) -> int:
        """What a tenant has on a lane."""
        return self.grants.get(lane, {}).get(tenant, 0)

    def adopt(self, replica: Replica, bandwidth: int) -> None:
        """Takes a replica in, and raises its tenant's grant to `bandwidth`, or to what the lane has left."""
        self.replicas[replica.replica_id] = replica
        tenant = replica.ref.key.tenant
        held = self.grant(replica.lane, tenant)
        self.grants.setdefault(replica.lane, {})[tenant] = held + min(max(0, bandwidth - held), self.free(replica.lane))

    def on_lane(self, lane: int) -> Iterator[Replica]:
        """The replicas of a lane."""
        return (replica for replica in self.replicas.values() if replica.lane == lane)

    def on_worker(self, worker: int) -> Iterator[Replica]:
        """The replicas of a worker's lanes."""
        lanes = {lane.number for lane in self.hello.device.lanes if lane.worker == worker}
        return (replica for replica in self.replicas.values() if replica.lane in lanes)


class Fleet:
    """All executors by id."""

    def __init__(self) -> None:
        self.executors: dict[str, Executor] = {}

    def usable(self) -> list[Executor]:
        """Executors that count, by id."""
        return [executor for _, executor in sorted(self.executors.items()) if executor.usable]

    def replicas(self) -> Iterator[Replica]:
        """Every replica of the fleet."""
        for executor in self.executors.values():
            yield from executor.replicas.values()

    def by_ref(self) -> dict[Ref, list[Replica]]:
        """Live replicas on usable executors, by what they hold, oldest first."""
        held: dict[Ref, list[Replica]] = {}
        for executor in self.usable():
            for replica in executor.replicas.values():
                if replica.live:
                    held.setdefault(replica.ref, []).append(replica)
        for replicas in held.values():
            replicas.sort(key=lambda replica: replica.replica_id)
        return held

    def forget_gone(self) -> None:
        """Drops what is gone from the ledgers."""
        for executor in self.executors.values():
            gone = [number for number, replica in executor.replicas.items() if replica.phase is Phase.GONE]
            for number in gone:
                del executor.replicas[number]

    def regrant(self, demand: Callable[[Replica], int | None]) -> None:
        """Brings every grant to what its tenant's replicas demand: the largest demand on the lane, granted once.

        demand: millidevices that a replica's tenant needs on its lane; None: whatever it has now.
        What is too much is taken back first; then tenants that need more get it, by name, as far as the lane goes, so
        that the sum on a lane never exceeds its capacity.
        """
        for executor in self.executors.values():
            wanted: dict[int, dict[str, int]] = {}
            for replica in executor.replicas.values():
                tenant, lane = replica.ref.key.tenant, wanted.setdefault(replica.lane, {})
                needed = demand(replica)
                needed = executor.grant(replica.lane, tenant) if needed is None else needed
                lane[tenant] = max(lane.get(tenant, 0), needed)
            before, executor.grants = executor.grants, {}
            for number, tenants in wanted.items():
                held = before.get(number, {})
                executor.grants[number] = {name: min(held.get(name, 0), most) for name, most in tenants.items()}
                for name, most in sorted(tenants.items()):
                    grants = executor.grants[number]
                    grants[name] += min(most - grants[name], executor.free(number))
