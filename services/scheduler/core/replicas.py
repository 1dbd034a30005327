"""A replica's life, as a table: what the scheduler thinks of it, what its executor reports, what follows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from services.scheduler.core.catalogue import Ref
from services.scheduler.core.events import Terms
from services.scheduler.core.reports import Seen


class Phase(Enum):
    """Where a replica stands for the scheduler. GONE is the end: it is forgotten."""

    ORDERED = "ordered"  # told to load, not reported yet
    LOADING = "loading"
    READY = "ready"
    LEAVING = "leaving"  # to be unloaded, and held until no report lists it
    GONE = "gone"


class Effect(Enum):
    """What a step means to the rest of the scheduler."""

    NONE = "none"
    SERVES = "serves"
    REFUSED = "refused"
    FAILED = "failed"
    VANISHED = "vanished"


STEPS: dict[tuple[Phase, Seen], tuple[Phase, Effect]] = {
    # The order may still be on its way: an absence says nothing yet.
    (Phase.ORDERED, Seen.ABSENT): (Phase.ORDERED, Effect.NONE),
    (Phase.ORDERED, Seen.LOADING): (Phase.LOADING, Effect.NONE),
    (Phase.ORDERED, Seen.READY): (Phase.READY, Effect.SERVES),
    (Phase.ORDERED, Seen.DRAINING): (Phase.LEAVING, Effect.NONE),
    (Phase.ORDERED, Seen.REFUSED): (Phase.LEAVING, Effect.REFUSED),
    (Phase.ORDERED, Seen.FAILED): (Phase.LEAVING, Effect.FAILED),
    (Phase.LOADING, Seen.ABSENT): (Phase.GONE, Effect.VANISHED),
    (Phase.LOADING, Seen.LOADING): (Phase.LOADING, Effect.NONE),
    (Phase.LOADING, Seen.READY): (Phase.READY, Effect.SERVES),
    (Phase.LOADING, Seen.DRAINING): (Phase.LEAVING, Effect.NONE),
    (Phase.LOADING, Seen.REFUSED): (Phase.LEAVING, Effect.REFUSED),
    (Phase.LOADING, Seen.FAILED): (Phase.LEAVING, Effect.FAILED),
    (Phase.READY, Seen.ABSENT): (Phase.GONE, Effect.VANISHED),
    # Its worker died and the executor loads it again.
    (Phase.READY, Seen.LOADING): (Phase.LOADING, Effect.NONE),
    (Phase.READY, Seen.READY): (Phase.READY, Effect.NONE),
    (Phase.READY, Seen.DRAINING): (Phase.LEAVING, Effect.NONE),
    (Phase.READY, Seen.REFUSED): (Phase.LEAVING, Effect.REFUSED),
    (Phase.READY, Seen.FAILED): (Phase.LEAVING, Effect.FAILED),
    # Whatever it still does: it has been told to go.
    (Phase.LEAVING, Seen.ABSENT): (Phase.GONE, Effect.NONE),
    (Phase.LEAVING, Seen.LOADING): (Phase.LEAVING, Effect.NONE),
    (Phase.LEAVING, Seen.READY): (Phase.LEAVING, Effect.NONE),
    (Phase.LEAVING, Seen.DRAINING): (Phase.LEAVING, Effect.NONE),
    (Phase.LEAVING, Seen.REFUSED): (Phase.LEAVING, Effect.NONE),
    (Phase.LEAVING, Seen.FAILED): (Phase.LEAVING, Effect.NONE),
}


@dataclass(slots=True)
class Replica:
    """One replica. Times are moments in seconds.

    memory_bytes: measured where a report told, else estimated.
    told: the terms its executor was last told; None: they must be told again.
    sent_at: when its last Load or Unload was sent; None: still to be sent.
    served: whether it has been READY at any time.
    """

    replica_id: int
    ref: Ref
    executor_id: str
    lane: int
    memory_bytes: int
    phase: Phase = Phase.ORDERED
    told: Terms | None = None
    sent_at: float | None = None
    served: bool = False
    ready_at: float = 0.0
    why: str = ""
    drain_s: float = 0.0

    @property
    def live(self) -> bool:
        """Whether it serves or is on its way to."""
        return self.phase is not Phase.LEAVING

    def observe(self, seen: Seen, now: float) -> Effect:
        """Takes in what a report says of it."""
        before = self.phase
        self.phase, effect = STEPS[before, seen]
        if effect is Effect.SERVES:
            self.served, self.ready_at = True, now
        if self.phase is Phase.LEAVING and before is not Phase.LEAVING:
            # Told to go as well, so that it goes whatever its executor meant; idempotent there.
            self.sent_at, self.why = None, f"its executor reports it {seen.value}"
        return effect

    def overdue(self, now: float, resend_s: float) -> bool:
        """Whether its last Load or Unload is still to be sent, or has had no effect for too long."""
        return self.sent_at is None or now >= self.sent_at + self.drain_s + resend_s

    def leave(self, why: str, drain_s: float) -> None:
        """Sends it away; idempotent."""
        if self.phase is not Phase.LEAVING:
            self.phase, self.sent_at, self.why, self.drain_s = Phase.LEAVING, None, why, drain_s
