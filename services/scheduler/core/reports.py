"""What executors say of themselves."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from services.common.objectives import lane_worth
from services.scheduler.core.catalogue import Key, Profile, Ref


class Seen(Enum):
    """A replica as its executor's latest report has it; ABSENT where the report does not list it."""

    ABSENT = "absent"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Lane:
    """Where slices run one after another. compute_units: SMs or cores. memory_bytes: what models there may take; 0: not told."""

    number: int
    worker: int
    compute_units: int
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """A way to divide a device that it is prepared for: lanes by their numbers, which share no compute unit."""

    name: str
    lanes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Device:
    """What an executor has. memory_bytes 0: not told, and not checked. backend: a number that the core only passes on.

    lanes: of all layouts. layouts: one of them is in force at a time; none told: all lanes are one layout.
    quantum_ns: what a slice may take; 0: any time. arrival_order: nobody is promised anything there.
    """

    kind: str
    compute_units: int
    memory_bytes: int
    lanes: tuple[Lane, ...]
    backend: int = 0
    backend_reason: str = ""
    quantum_ns: int = 0
    arrival_order: bool = False
    layouts: tuple[Layout, ...] = ()

    def in_layout(self, layout: int) -> tuple[Lane, ...]:
        """The lanes of a layout."""
        if not self.layouts:
            return self.lanes
        return tuple(lane for lane in self.lanes if lane.number in self.layouts[layout].lanes)

    def capacity(self, number: int) -> int:
        """What a lane is worth in millidevices: its part of the device's compute units; 0 for a lane it has not.

        Lanes that overlap (plain streams, where each sees the whole device) share what the device is worth, so that the
        lanes of one layout are never worth more than 1000 together. A lane is worth the same in each of its layouts.
        """
        layouts = range(len(self.layouts) or 1)
        most = max(sum(lane.compute_units for lane in self.in_layout(layout)) for layout in layouts)
        whole = max(self.compute_units, most, 1)
        return next((lane_worth(lane.compute_units, whole) for lane in self.lanes if lane.number == number), 0)

    def lane(self, number: int) -> Lane | None:
        """The lane of that number, if the device has it."""
        return next((lane for lane in self.lanes if lane.number == number), None)


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """A replica as its executor sees it. bandwidth: millidevices granted to its tenant on the lane."""

    replica_id: int
    ref: Ref
    lane: int
    state: Seen
    message: str = ""
    signature: bytes | None = None
    profile: Profile | None = None
    memory_bytes: int = 0
    waiting_requests: int = 0
    bandwidth: int = 0
    stage: str = ""
    crashes: int = 0


@dataclass(frozen=True, slots=True)
class LaneReport:
    """A lane's state. busy_ppm: device time in use since the last report."""

    lane: int
    busy_ppm: int = 0
    waiting_requests: int = 0


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Device time of one model, counted since `incarnation` began: what it counts is told whole, every time. life: of the
    model's counts; a later one begins at nothing."""

    key: Key
    incarnation: str
    device_ns: int = 0
    compute_unit_ns: int = 0
    requests: int = 0
    batches: int = 0
    life: int = 0


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """The same of all models that a tenant ever had. lives: the latest that began under this name."""

    tenant: str
    incarnation: str
    device_ns: int = 0
    compute_unit_ns: int = 0
    requests: int = 0
    batches: int = 0
    lives: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """Everything an executor holds, whole: what it does not list, it does not have. measured_us: when, by its own clock.

    layout: the one in force. layout_pinned: an operator wants it so. usage: by model, as far as they are told apart; tenants: all
    that was used; none: of an executor that tells every model that there ever was.
    """

    replicas: tuple[ReplicaReport, ...] = ()
    lanes: tuple[LaneReport, ...] = ()
    usage: tuple[UsageReport, ...] = ()
    memory_used_bytes: int = 0
    draining: bool = False
    layout: int = 0
    layout_pinned: bool = False
    measured_us: int = 0
    tenants: tuple[TenantUsage, ...] = ()


@dataclass(frozen=True, slots=True)
class Hello:
    """An executor's first words. incarnation: new at every start of its process."""

    executor_id: str
    incarnation: str
    address: str
    device: Device
    report: Report = Report()
