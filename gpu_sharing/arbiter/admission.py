"""May this request wait here? PURE."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from gpu_sharing.arbiter.request import Request
from gpu_sharing.units import Nanoseconds


class Refused(NamedTuple):
    """Why not: a reason of the contract, a sentence for people, and the numbers that led to it."""

    reason: str
    message: str
    facts: dict[str, str]


class Admission(Protocol):
    """Answers the question. Pure: the same question has the same answer."""

    def refuse(self, request: Request, *, waiting: int, now: Nanoseconds) -> Refused | None:
        """Why the request is refused; None: it is admitted. waiting: requests its replica has waiting."""
        ...


class BoundedQueue:
    """Admits what is not late yet, while the replica has fewer than `queue_limit` requests waiting."""

    def __init__(self, queue_limit: int) -> None:
        """Raises ValueError for a limit below 1."""
        if queue_limit < 1:
            raise ValueError(f"queue_limit: must be at least 1, is {queue_limit}")
        self.queue_limit = queue_limit

    def refuse(self, request: Request, *, waiting: int, now: Nanoseconds) -> Refused | None:
        """See `Admission`."""
        if is_late(request, now):
            return late(request, now)
        if waiting >= self.queue_limit:
            message = f"{waiting} requests are waiting for this model; at most {self.queue_limit} may"
            return Refused("OVERLOADED", message, {"waiting": str(waiting), "queue_limit": str(self.queue_limit)})
        return None


def is_late(request: Request, now: Nanoseconds) -> bool:
    """Whether the deadline is past."""
    return request.deadline is not None and request.deadline <= now


def late(request: Request, now: Nanoseconds) -> Refused:
    """The answer to a request that is past its deadline."""
    waited_us = (now - request.arrived) // 1_000
    over_us = (now - (request.deadline or now)) // 1_000
    message = f"the deadline passed {over_us} us ago, after {waited_us} us of waiting; it was not started"
    return Refused(
        "DEADLINE_EXCEEDED", message, {"stage": "queue", "waited_us": str(waited_us), "over_us": str(over_us)}
    )
