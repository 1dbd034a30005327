"""A batch on its way through its segments. PURE."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpu_sharing.arbiter.calls import Call
from gpu_sharing.arbiter.order import Urgency
from gpu_sharing.measurements import Batch
from gpu_sharing.units import Nanoseconds

_CANCELLED = ("CANCELLED", "cancelled while it ran; its result was discarded")


@dataclass(slots=True)
class BatchInFlight:
    """One batch, from its forming until its last segment. started: of its first slice; None before.

    interrupted: another batch has run since its last slice.
    discarded_because: reason and message for those of its calls that are doomed.
    """

    number: int
    replica: int
    calls: list[Call]
    rows: int
    urgency: Urgency
    shape_bucket: str
    predicted: Nanoseconds | None
    started: Nanoseconds | None = None
    slice_started: Nanoseconds = 0
    segment_ends: list[Nanoseconds] = field(default_factory=list)
    device_ns: Nanoseconds = 0
    preempted: Nanoseconds = 0
    preemptions: int = 0
    interrupted: bool = False
    discarded_because: tuple[str, str] = _CANCELLED

    def begin_slice(self, now: Nanoseconds) -> None:
        """Its next segment starts."""
        if self.started is None:
            self.started = now
        elif self.interrupted:
            self.preemptions += 1
            self.preempted += now - self.segment_ends[-1]
        self.interrupted = False
        self.slice_started = now

    def end_slice(self, took: Nanoseconds) -> None:
        """Its segment has run for `took`."""
        self.segment_ends.append(self.slice_started + took)
        self.device_ns += took

    @property
    def is_abandoned(self) -> bool:
        """Nobody waits for any of its calls."""
        return all(call.is_doomed for call in self.calls)

    def record(self, lane: int) -> Batch:
        """What callers and traces are told of it."""
        started = self.started or 0
        return Batch(
            number=self.number,
            lane=lane,
            rows=self.rows,
            requests=len(self.calls),
            started=started,
            ended=self.segment_ends[-1] if self.segment_ends else started,
            # A batch is formed from what waits when its turn comes: none waits for others to come.
            waited_for_others=0,
            preempted=self.preempted,
            preemptions=self.preemptions,
            segment_ends=tuple(self.segment_ends),
        )
