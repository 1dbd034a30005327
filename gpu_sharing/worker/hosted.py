"""A loaded model in a worker, and what is known of it."""

from __future__ import annotations

from gpu_sharing.measurements import Profile
from gpu_sharing.runtimes.base import Interruptible, LoadedModel
from gpu_sharing.runtimes.profile import shape_bucket
from gpu_sharing.units import ComputeUnits, Nanoseconds
from gpu_sharing.worker.messages import Load, Submit

_BUCKETS_KEPT = 4096
_WEIGHT = 8
"""One batch counts for an eighth."""


class Hosted:
    """One replica. label: how messages to callers name it; watched: how those about a segment that does not return do.
    points: of its profile, those from lanes as large as this one. stop: ends the segment that runs; None: nothing can.
    batch_ns: what its batches took of late, from the first slice to the end of the last; None: none has run."""

    def __init__(self, load: Load, model: LoadedModel, profile: Profile, compute_units: ComputeUnits) -> None:
        self.load = load
        self.model = model
        self.profile = profile
        self.points = profile.on(compute_units)
        self.label = f"model {load.model!r} version {load.version}"
        self.watched = f"replica {load.replica}, {self.label}: a segment"
        self.stop = model.interrupt if isinstance(model, Interruptible) else None
        self.batch_ns: Nanoseconds | None = None
        self._buckets: dict[bytes, str] = {}

    def ran(self, took: Nanoseconds) -> None:
        """A batch has taken so long. Only its lane's thread calls this."""
        before = self.batch_ns
        self.batch_ns = took if before is None else before + (took - before) // _WEIGHT

    def bucket(self, submit: Submit) -> str:
        """The request's shapes as the profile's points name them."""
        bucket = self._buckets.get(submit.shape_key)
        if bucket is None:
            signature = self.model.signature
            bucket = shape_bucket(signature, {signature.inputs[ref.index].name: ref.shape for ref in submit.inputs})
            if len(self._buckets) >= _BUCKETS_KEPT:
                self._buckets.clear()
            self._buckets[submit.shape_key] = bucket
        return bucket
