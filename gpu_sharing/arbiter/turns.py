"""Who had the lane lately, so that a batch can tell what its requests waited for. PURE."""

from __future__ import annotations

from collections import deque

from gpu_sharing.measurements import Turn
from gpu_sharing.units import MS, Nanoseconds

MOST_TURNS = 16
"""Stretches that are remembered: what they cost a batch on a busy lane stays below two microseconds."""
MOST_GAP: Nanoseconds = 1 * MS
"""Between two batches of one stretch: what lies between slices in any case, and no time that the lane had nothing to do."""


class Turns:
    """The last stretches of a lane's time, oldest first, each with the batch that ran last in it."""

    __slots__ = ("_batches", "_turns")

    def __init__(self) -> None:
        self._turns: deque[Turn] = deque(maxlen=MOST_TURNS)
        self._batches: deque[int] = deque(maxlen=MOST_TURNS)

    def note(self, replica: int, batch: int, began: Nanoseconds, ended: Nanoseconds) -> None:
        """A slice has run; slices are noted in their order."""
        turns, batches = self._turns, self._batches
        if turns:
            last = turns[-1]
            if batches[-1] == batch:
                turns[-1] = Turn(replica, last.began, ended)
                return
            if last.replica == replica and len(turns) > 1:
                before = turns[-2]
                if before.replica == replica and last.began - before.ended < MOST_GAP:
                    # A replica that runs batch after batch has one stretch for its last batch and one for all before it.
                    turns[-2], batches[-2] = Turn(replica, before.began, last.ended), batches[-1]
                    turns[-1], batches[-1] = Turn(replica, began, ended), batch
                    return
        turns.append(Turn(replica, began, ended))
        batches.append(batch)

    def others(self, batch: int, since: Nanoseconds) -> tuple[Turn, ...]:
        """What ended after `since`, the stretches of this batch apart; the latest last."""
        turns, batches = self._turns, self._batches
        if len(turns) > 1 and batches[-1] == batch and turns[-2].ended <= since:
            # As on any lane that is not busy: nobody was waited for.
            return ()
        found: list[Turn] = []
        for turn, number in zip(reversed(turns), reversed(batches), strict=True):
            if turn.ended <= since:
                break
            if number != batch:
                found.append(turn)
        found.reverse()
        return tuple(found)
