"""What is measured: a batch as it ran, and a model's profile."""

from __future__ import annotations

import msgspec

from gpu_sharing.units import Bytes, ComputeUnits, Nanoseconds


class ProfilePoint(msgspec.Struct, frozen=True):
    """How long a batch of `rows` takes at one shape. shape_bucket: the shapes without the batch axis, as text.

    segments_ns: the median of each of its segments, in order; empty where they are not known. The longest is how long the
    batch may keep others from their turn.
    """

    rows: int
    shape_bucket: str
    compute_units: ComputeUnits
    p50_ns: Nanoseconds
    p99_ns: Nanoseconds
    runs: int
    activation_bytes: Bytes = 0
    segments_ns: tuple[Nanoseconds, ...] = ()


class SegmentCost(msgspec.Struct, frozen=True):
    """One segment of a model, in the runtime's own words, and its cost at one row."""

    name: str
    p50_ns: Nanoseconds


class Profile(msgspec.Struct, frozen=True):
    """Measured on load, kept per (digest, device kind)."""

    digest: str
    device_kind: str
    weight_bytes: Bytes
    points: tuple[ProfilePoint, ...] = ()
    segments: tuple[SegmentCost, ...] = ()

    def on(self, compute_units: ComputeUnits) -> Profile:
        """What was measured on so many compute units."""
        return msgspec.structs.replace(
            self, points=tuple(point for point in self.points if point.compute_units == compute_units)
        )

    def beside(self, earlier: Profile | None) -> Profile:
        """With the points of an earlier profile that were measured on other numbers of compute units."""
        mine = {point.compute_units for point in self.points}
        others = [point for point in earlier.points if point.compute_units not in mine] if earlier is not None else []
        points = sorted([*others, *self.points], key=lambda point: point.compute_units)
        return msgspec.structs.replace(self, points=tuple(points))


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """The batch a call rode in, by moments of the monotonic clock.

    joined_from: when the batch could have started, had it not waited for others (0 where it did not wait).
    preempted: time in between given to other batches.
    segments: end of each of its slices.
    """

    number: int
    lane: int
    rows: int
    requests: int
    started: Nanoseconds
    ended: Nanoseconds
    waited_for_others: Nanoseconds
    preempted: Nanoseconds
    preemptions: int
    segment_ends: tuple[Nanoseconds, ...] = ()
