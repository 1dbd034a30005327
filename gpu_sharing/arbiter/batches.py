"""A batch on its way through its segments. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gpu_sharing.arbiter.calls import Call, Tier
from gpu_sharing.arbiter.order import Urgency
from gpu_sharing.arbiter.replicas import Replica
from gpu_sharing.arbiter.turns import Turns
from gpu_sharing.measurements import Batch
from gpu_sharing.units import Nanoseconds

_TIERS = ("guaranteed", "surplus", "gap")
_CANCELLED = ("CANCELLED", "cancelled while it ran; its result was discarded")


class Plan(NamedTuple):
    """A batch to be formed. calls: all of one kind, in order. predicted: the estimate of its device time; None: not known."""

    calls: Sequence[Call]
    rows: int
    predicted: Nanoseconds | None


@dataclass(slots=True)
class BatchInFlight:
    """One batch, from its forming until its last segment. started: of its first slice; None before.

    tier: of its calls; those of SURPLUS may ride in a GUARANTEED one. due: the earliest of its calls'.
    funded, used: device time that its tenant's reservation has paid for it, and has spent on it.
    expected: of the average duration, what is still to come. longest: of its slices.
    interrupted: another batch has run since its last slice.
    out: its slices that have been handed out and have not ended. sealed: it takes no more.
    discarded_because: reason and message for those of its calls that are doomed.
    numbers: of its calls, in the order of their rows.
    usual: what batches like it take as a rule; 0: nothing is known.
    """

    number: int
    home: Replica
    calls: list[Call]
    rows: int
    tier: Tier
    urgency: Urgency
    due: Nanoseconds
    shape_bucket: str
    predicted: Nanoseconds | None
    funded: Nanoseconds = 0
    used: Nanoseconds = 0
    expected: Nanoseconds = 0
    longest: Nanoseconds = 0
    started: Nanoseconds | None = None
    segment_ends: list[Nanoseconds] = field(default_factory=list)
    device_ns: Nanoseconds = 0
    preempted: Nanoseconds = 0
    preemptions: int = 0
    interrupted: bool = False
    out: int = 0
    sealed: bool = False
    discarded_because: tuple[str, str] = _CANCELLED
    numbers: tuple[int, ...] = ()
    usual: Nanoseconds = 0

    def __post_init__(self) -> None:
        self.numbers = tuple([call.number for call in self.calls])

    def begin_slice(self, now: Nanoseconds) -> None:
        """Its next segment starts."""
        if self.started is None:
            self.started = now
        elif self.interrupted and self.segment_ends:
            self.preemptions += 1
            self.preempted += max(0, now - self.segment_ends[-1])
        self.interrupted = False
        self.out += 1

    def end_slice(self, took: Nanoseconds, started: Nanoseconds) -> None:
        """Its earliest segment that was out has run for `took`."""
        self.out -= 1
        self.segment_ends.append(started + took)
        self.device_ns += took
        self.longest = max(self.longest, took)

    @property
    def replica(self) -> int:
        """Whose batch it is."""
        return self.home.replica

    @property
    def overruns(self) -> bool:
        """What its tenant's reservation has paid for it has been used up."""
        return self.used >= self.funded

    @property
    def left(self) -> Nanoseconds:
        """Device time that it still needs, by the estimate; 0 where none is known."""
        return max(0, (self.predicted or 0) - self.device_ns)

    @property
    def is_abandoned(self) -> bool:
        """Nobody waits for any of its calls."""
        return all(call.is_doomed for call in self.calls)

    def record(self, lane: int, turns: Turns) -> Batch:
        """What callers and traces are told of it. turns: of its lane."""
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
            expected=self.usual,
            predicted=self.predicted or 0,
            tier=_TIERS[self.tier],
            others=turns.others(self.number, min([call.request.arrived for call in self.calls])),
        )
