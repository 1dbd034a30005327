"""What the arbiter is told, what it answers, and the slices it hands out. PURE."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from gpu_sharing.measurements import Batch, ProfilePoint
from gpu_sharing.units import Millidevices, Nanoseconds

# Events.


class ReplicaAdded(msgspec.Struct, frozen=True):
    """A model is loaded. Where its bandwidth does not fit, `handle` raises grants.Oversold, and nothing has changed.

    max_batch_size: rows a batch may hold; 0: requests run one at a time.
    bandwidth: what its tenant has been promised of this lane, in all: replicas of one tenant share it.
    weight: the tenant's, for what is left over; at least 1.
    points: seed estimates.
    tenant: None: one of its own.
    queue_limit: requests of it that may wait, where the lane's limit is higher; 0: not said.
    """

    replica: int
    max_batch_size: int
    bandwidth: Millidevices = 0
    weight: int = 1
    points: tuple[ProfilePoint, ...] = ()
    tenant: str | None = None
    queue_limit: int = 0


class ReplicaUpdated(msgspec.Struct, frozen=True):
    """Its tenant's share has changed. Of more than is free, the tenant has what is free, and the rest once it becomes so.

    The largest of what its serving replicas were told counts.
    """

    replica: int
    bandwidth: Millidevices
    weight: int


class ReplicaRemoved(msgspec.Struct, frozen=True):
    """No new requests for this replica; what it has may finish until `drain_until`. Answered by ReplicaGone."""

    replica: int
    drain_until: Nanoseconds


class ReplicaHeld(msgspec.Struct, frozen=True):
    """Its weights are not on the device: no batch of it may start until ReplicaReady; those in flight go on.

    ready_at: when it could be there at the earliest, which is part of every admission until then. May come again, with another.
    """

    replica: int
    ready_at: Nanoseconds


class ReplicaReady(msgspec.Struct, frozen=True):
    """Its batches may start again."""

    replica: int


class Arrived(msgspec.Struct, frozen=True):
    """A request has come. request: a `Request`. shape_bucket: as in the profile's points, for estimates."""

    request: Any
    shape_bucket: str = ""


class Cancelled(msgspec.Struct, frozen=True):
    """Nobody waits for this call any more. A call that is not known any more is ignored."""

    call: int


class SliceDone(msgspec.Struct, frozen=True):
    """The batch's earliest slice that is out has run for `took`. finished: it was its last, and the outputs are there."""

    batch: int
    took: Nanoseconds
    finished: bool


class AllLaunched(msgspec.Struct, frozen=True):
    """The slice handed out last is its batch's last one, which is known before it has run: the batch takes no more slices."""

    batch: int


class BatchFailed(msgspec.Struct, frozen=True):
    """The batch's slices that are out have run for `took` and broke it. message: for the callers.

    final: none of its calls is to be tried again, since what broke it cost the lane more than a slice.
    """

    batch: int
    took: Nanoseconds
    message: str
    final: bool = False


class TimePassed(msgspec.Struct, frozen=True):
    """Nothing else happened: drop what is late."""


Event: TypeAlias = (
    ReplicaAdded
    | ReplicaUpdated
    | ReplicaRemoved
    | ReplicaHeld
    | ReplicaReady
    | Arrived
    | Cancelled
    | SliceDone
    | AllLaunched
    | BatchFailed
    | TimePassed
)

# Actions.


class Drop(msgspec.Struct, frozen=True):
    """Answer this call with a failure. batch: the one it rode in, if it did.

    facts: the numbers that led here. `revoked` is "true" where the call had been admitted, and what is guaranteed took its time.
    """

    call: int
    reason: str
    message: str
    facts: dict[str, str] = {}
    batch: Batch | None = None


class Complete(msgspec.Struct, frozen=True):
    """Answer these calls with their rows of the batch's outputs. Calls of the batch that are not named have been dropped."""

    batch: Batch
    calls: tuple[int, ...]


class Abandon(msgspec.Struct, frozen=True):
    """Nobody waits for this batch: let go of it without running it to its end."""

    batch: int


class ReplicaGone(msgspec.Struct, frozen=True):
    """The replica has no request left and gets none: it may be unloaded. device_ns: all that it has used."""

    replica: int
    device_ns: Nanoseconds = 0


Action: TypeAlias = Drop | Complete | Abandon | ReplicaGone


class Slice(msgspec.Struct, frozen=True):
    """Run the batch's next segment. first: it has not started. calls: in the order of their rows.

    predicted: device time of the whole batch, by the estimate; None: nothing is known yet.
    """

    batch: int
    replica: int
    calls: tuple[int, ...]
    first: bool
    predicted: Nanoseconds | None


# Snapshots.


class ReplicaStatistics(msgspec.Struct, frozen=True):
    """What one replica has used since it was added. requests: those that rode in a batch."""

    replica: int
    device_ns: Nanoseconds
    requests: int
    batches: int
    waiting: int


class TenantStatistics(msgspec.Struct, frozen=True):
    """What one tenant has used of the lane since the start, and what became of its requests.

    bandwidth: granted now. guaranteed_ns, surplus_ns, gap_ns: device time within its reservation, by its weight, and where
    nobody else wanted it. guaranteed, surplus, gap: requests admitted on these terms; refused, revoked: the others.
    """

    tenant: str
    bandwidth: Millidevices
    weight: int
    waiting: int = 0
    guaranteed_ns: Nanoseconds = 0
    surplus_ns: Nanoseconds = 0
    gap_ns: Nanoseconds = 0
    guaranteed: int = 0
    surplus: int = 0
    gap: int = 0
    refused: int = 0
    revoked: int = 0

    @property
    def device_ns(self) -> Nanoseconds:
        """In all."""
        return self.guaranteed_ns + self.surplus_ns + self.gap_ns


class ArbiterStatistics(msgspec.Struct, frozen=True):
    """One lane, now. busy_ns: device time since the start; tenants, present or gone, add up to it.

    replicas: those that serve or drain. longest_slice_ns: lately; 0: not known.
    """

    busy_ns: Nanoseconds
    waiting: int
    in_flight: int
    replicas: tuple[ReplicaStatistics, ...]
    tenants: tuple[TenantStatistics, ...] = ()
    longest_slice_ns: Nanoseconds = 0
