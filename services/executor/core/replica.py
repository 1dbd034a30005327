"""One replica: where it stands, where it may go from there, and the command that loads it."""

from __future__ import annotations

from enum import Enum

from gpu_sharing.measurements import Profile
from gpu_sharing.tensors import Signature
from gpu_sharing.units import Bytes
from gpu_sharing.worker.messages import Load
from services.executor.core.replica_events import Wanted


class Phase(Enum):
    """Where a replica stands."""

    FETCHING = "fetching"
    WAITING = "waiting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    REFUSED = "refused"
    FAILED = "failed"


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.FETCHING: frozenset({Phase.WAITING, Phase.FAILED, Phase.REFUSED}),
    Phase.WAITING: frozenset({Phase.LOADING}),
    Phase.LOADING: frozenset({Phase.READY, Phase.WAITING, Phase.DRAINING, Phase.REFUSED, Phase.FAILED}),
    Phase.READY: frozenset({Phase.WAITING, Phase.DRAINING}),
    Phase.DRAINING: frozenset(),
    Phase.REFUSED: frozenset(),
    Phase.FAILED: frozenset({Phase.FETCHING}),
}
"""From each phase, where a replica may go; any phase may also end with the replica forgotten."""


OVER = (Phase.REFUSED, Phase.FAILED)
"""Nothing of these is in a worker."""


class Replica:
    """A replica and what is known of it. Read by reports; changed by Replicas alone."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.phase = Phase.FETCHING
        self.message = self.stage = ""
        self.path: str | None = None
        self.format = wanted.format or ""
        self.signature: Signature | None = None
        self.profile: Profile | None = None
        self.memory_bytes: Bytes = 0
        self.crashes = 0

    def load(self) -> Load:
        """The command that loads it; what an earlier load has found out is not measured again."""
        wanted = self.wanted
        return Load(
            replica=wanted.replica,
            tenant=wanted.tenant,
            model=wanted.model,
            version=wanted.version,
            digest=wanted.digest,
            path=self.path or "",
            format=self.format,
            bandwidth=wanted.bandwidth,
            weight=wanted.weight,
            max_batch_size=wanted.max_batch_size,
            batch_axes=wanted.batch_axes,
            warmup=wanted.warmup,
            objective_ns=wanted.objective_ns,
            signature=self.signature or wanted.signature,
            profile=self.profile or wanted.profile,
            queue_limit=wanted.queueing.max_waiting,
        )

    def move(self, phase: Phase, *, message: str = "", stage: str = "") -> None:
        """Goes to another phase. Raises AssertionError, with what is known of it, where there is no way."""
        if phase not in TRANSITIONS[self.phase]:
            raise AssertionError(
                f"replica {self.wanted.replica}: no way from {self.phase.value} to {phase.value} "
                f"(stage {self.stage!r}, crashes {self.crashes}, message {message!r})"
            )
        self.phase, self.message, self.stage = phase, message, stage
