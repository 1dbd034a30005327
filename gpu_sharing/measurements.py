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

    def on(self, compute_units: ComputeUnits) -> tuple[ProfilePoint, ...]:
        """What was measured on lanes of this size. How long a batch takes on others says nothing of it."""
        return tuple(point for point in self.points if point.compute_units == compute_units)

    def joined(self, newer: Profile) -> Profile:
        """Both together, of one artefact and kind of device. What the newer one measured at the same place counts, and where
        the model is cut differently by now it counts alone."""
        if [each.name for each in self.segments] != [each.name for each in newer.segments]:
            return newer
        points = {_place(point): point for point in (*self.points, *newer.points)}
        return msgspec.structs.replace(newer, points=tuple(points[place] for place in sorted(points)))


def _place(point: ProfilePoint) -> tuple[ComputeUnits, str, int]:
    return point.compute_units, point.shape_bucket, point.rows


class Turn(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A stretch of a lane's time that one replica had, its slices one after the other, by moments of the monotonic clock."""

    replica: int
    began: Nanoseconds
    ended: Nanoseconds


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """The batch a call rode in, by moments of the monotonic clock.

    waited_for_others: time that it could have started by, had it not waited for more requests.
    preempted: time in between given to other batches.
    segment_ends: of each of its slices.
    expected: what batches like it take on this lane as a rule (the median); 0: nothing was known.
    predicted: the estimate that it was formed by, which is seldom exceeded; 0: nothing was known.
    tier: on what terms it ran: "guaranteed", "surplus" or "gap".
    others: who had the lane while its requests waited and between its slices, the latest last; what lies far back is not told.
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
    expected: Nanoseconds = 0
    predicted: Nanoseconds = 0
    tier: str = ""
    others: tuple[Turn, ...] = ()
