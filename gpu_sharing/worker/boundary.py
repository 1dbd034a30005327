"""What a lane and its arbiter say to each other at a boundary. PURE: threaded and simulated lanes both go through here."""

from __future__ import annotations

from typing import NamedTuple

from gpu_sharing.arbiter import Arbiter
from gpu_sharing.arbiter.events import Action, BatchFailed, Slice, SliceDone, TimePassed
from gpu_sharing.units import Nanoseconds


class Turn(NamedTuple):
    """What to do first, and the slice to run then; no slice: wait until something happens."""

    actions: list[Action]
    slice: Slice | None


class Ran(NamedTuple):
    """What became of a slice. finished: it was its batch's last. failure: it broke the batch; for the callers.

    final: it had to be stopped; what was in it is not to be run again.
    """

    batch: int
    took: Nanoseconds
    finished: bool = False
    failure: str | None = None
    final: bool = False


def next_turn(arbiter: Arbiter, now: Nanoseconds) -> Turn:
    """Ask: the next slice, and what has become late by now."""
    actions = arbiter.handle(TimePassed(), now)
    return Turn(actions, arbiter.next_slice(now))


def tell(arbiter: Arbiter, ran: Ran, now: Nanoseconds) -> list[Action]:
    """Tell: what the slice took and whether it broke."""
    if ran.failure is not None:
        return arbiter.handle(BatchFailed(ran.batch, ran.took, ran.failure, ran.final), now)
    return arbiter.handle(SliceDone(ran.batch, ran.took, ran.finished), now)
