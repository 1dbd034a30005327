"""Where a call is on its way, and the only steps it can take. PURE."""

from __future__ import annotations

from enum import Enum

from gpu_sharing.arbiter.request import Request


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
    JOIN = "join a batch"
    DROP = "drop"
    CANCEL = "cancel"
    ANSWER = "answer"


TRANSITIONS: dict[tuple[State, Step], State] = {
    (State.NEW, Step.ADMIT): State.WAITING,
    (State.NEW, Step.REFUSE): State.ANSWERED,
    (State.WAITING, Step.JOIN): State.RUNNING,
    (State.WAITING, Step.DROP): State.ANSWERED,
    (State.WAITING, Step.CANCEL): State.ANSWERED,
    (State.RUNNING, Step.CANCEL): State.DOOMED,
    (State.RUNNING, Step.ANSWER): State.ANSWERED,
    (State.DOOMED, Step.CANCEL): State.DOOMED,
    (State.DOOMED, Step.ANSWER): State.ANSWERED,
}


class Call:
    """One request and where it is. batch: the number of the one it rides in."""

    __slots__ = ("batch", "request", "shape_bucket", "state", "story")

    def __init__(self, request: Request, shape_bucket: str) -> None:
        self.request = request
        self.shape_bucket = shape_bucket
        self.state = State.NEW
        self.batch: int | None = None
        self.story: tuple[Step, ...] = ()

    @property
    def is_doomed(self) -> bool:
        """Nobody waits for it."""
        return self.state is State.DOOMED

    def take(self, step: Step) -> None:
        """Takes a step of the table. AssertionError, with the call's story, for any other."""
        state = TRANSITIONS.get((self.state, step))
        if state is None:
            story = ", ".join(past.value for past in self.story)
            raise AssertionError(
                f"call {self.request.call} is {self.state.value} and cannot {step.value}; so far: {story}"
            )
        self.state = state
        self.story = (*self.story, step)
