"""Where a call is on its way, on what terms, and the only steps it can take. PURE."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Any, TypeAlias

from gpu_sharing.arbiter.order import Urgency, urgency
from gpu_sharing.arbiter.replicas import Replica
from gpu_sharing.arbiter.request import Request, due
from gpu_sharing.units import Nanoseconds

Kind: TypeAlias = tuple[int, bytes] | tuple[int, bytes, int]
"""Replica and shape key: calls of one kind may share a batch. With the call's number: it shares with none."""


class Tier(IntEnum):
    """On what terms a call waits, best first.

    GUARANTEED: within its tenant's reservation. SURPLUS: from what is left over, and expected to be in time.
    GAP: from what is left over when nobody else wants it: class `batch`, and what cannot be in time any more.
    """

    GUARANTEED = 0
    SURPLUS = 1
    GAP = 2


class State(Enum):
    """Where a call is. DOOMED: in a batch, with nobody waiting for it."""

    NEW = "new"
    WAITING = "waiting"
    RUNNING = "running"
    DOOMED = "doomed"
    ANSWERED = "answered"


class Step(Enum):
    """What can happen to a call."""

    ADMIT = "admit"
    REFUSE = "refuse"
    DEMOTE = "demote"
    JOIN = "join a batch"
    AGAIN = "wait to run again"
    DROP = "drop"
    REVOKE = "revoke"
    CANCEL = "cancel"
    ANSWER = "answer"


TRANSITIONS: dict[tuple[State, Step], State] = {
    (State.NEW, Step.ADMIT): State.WAITING,
    (State.NEW, Step.REFUSE): State.ANSWERED,
    (State.WAITING, Step.DEMOTE): State.WAITING,
    (State.WAITING, Step.JOIN): State.RUNNING,
    (State.WAITING, Step.DROP): State.ANSWERED,
    (State.WAITING, Step.REVOKE): State.ANSWERED,
    (State.WAITING, Step.CANCEL): State.ANSWERED,
    (State.RUNNING, Step.AGAIN): State.WAITING,
    (State.RUNNING, Step.CANCEL): State.DOOMED,
    (State.RUNNING, Step.ANSWER): State.ANSWERED,
    (State.DOOMED, Step.CANCEL): State.DOOMED,
    (State.DOOMED, Step.ANSWER): State.ANSWERED,
}

_AFTER: dict[str, dict[str, State]] = {
    step.value: {before.value: after for (before, taken), after in TRANSITIONS.items() if taken is step}
    for step in Step
}
# By their values, whose hashes are at hand: calls take steps all the time.


class Call:
    """One request and where it is.

    number, rows, is_fill: of its request; is_fill: class `batch`.
    place: among its tenant's calls of one tier, least first. batch: the number of the one it rides in.
    is_again: its first batch broke, and it runs alone now.
    cost: the device time that it would take alone, as the estimate's p99 or a guess has it; what a reservation pays for it.
    alone: the same on average; 0 where nothing is known. packed: its part of a full batch, on average.
    expected: of what was admitted from surplus, when it should be done by what was known then; None: nothing was expected.
    """

    __slots__ = (
        "alone", "batch", "cost", "due", "expected", "is_again", "is_fill", "kind", "number", "packed", "place", "replica",
        "request", "rows", "shape_bucket", "state", "story", "tier", "urgency",
    )  # fmt: skip

    def __init__(self, request: Request, shape_bucket: str, replica: Replica, place: Any) -> None:
        self.request = request
        self.number = request.call
        self.rows = request.rows
        self.is_fill = request.objective is None
        self.shape_bucket = shape_bucket
        self.state = State.NEW
        self.tier = Tier.SURPLUS
        self.batch: int | None = None
        self.story: list[Step] = []
        self.is_again = False
        self.kind: Kind = (request.replica, request.shape_key)
        self.due = due(request)
        self.urgency: Urgency = urgency(request)
        self.place = place
        self.replica = replica
        self.cost: Nanoseconds = 0
        self.alone: Nanoseconds = 0
        self.packed: Nanoseconds = 0
        self.expected: Nanoseconds | None = None

    def run_again(self) -> None:
        """Its batch broke: it waits once more, for one of its own."""
        self.take(Step.AGAIN)
        self.is_again, self.batch, self.expected = True, None, None
        self.kind = (self.request.replica, self.request.shape_key, self.request.call)

    @property
    def is_doomed(self) -> bool:
        """Nobody waits for it."""
        return self.state is State.DOOMED

    def take(self, step: Step) -> None:
        """Takes a step of the table. AssertionError, with the call's story, for any other."""
        state = _AFTER[step._value_].get(self.state._value_)
        if state is None:
            story = ", ".join(past.value for past in self.story)
            raise AssertionError(
                f"call {self.request.call} is {self.state.value} and cannot {step.value}; so far: {story}"
            )
        self.state = state
        self.story.append(step)
