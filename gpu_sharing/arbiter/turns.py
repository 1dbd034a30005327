"""Who had the lane lately, so that a batch can tell what its requests waited for. PURE."""

from __future__ import annotations

from collections import deque

from gpu_sharing.measurements import Turn
from gpu_sharing.units import MS, Nanoseconds

MOST_TURNS = 32
"""Stretches that are remembered."""
MOST_GAP: Nanoseconds = 1 * MS
"""Between two batches of one stretch: what lies between slices in any case, and no time that the lane had nothing to do."""


class Turns:
    """The last stretches of a lane's time, as [replica, batch, began, ended], oldest first. batch: the last of the stretch."""

    __slots__ = ("_turns",)

    def __init__(self) -> None:
        self._turns: deque[list[int]] = deque(maxlen=MOST_TURNS)

    def note(self, replica: int, batch: int, began: Nanoseconds, ended: Nanoseconds) -> None:
        """A slice has run; slices are noted in their order."""
        turns = self._turns
        if turns and turns[-1][1] == batch:
            turns[-1][3] = ended
            return
        if len(turns) > 1 and turns[-1][0] == replica == turns[-2][0] and turns[-1][2] - turns[-2][3] < MOST_GAP:
            # A replica that runs batch after batch has one stretch for its last batch and one for all those before it.
            done = turns.pop()
            turns[-1][1], turns[-1][3] = done[1], done[3]
        turns.append([replica, batch, began, ended])

    def others(self, batch: int, since: Nanoseconds) -> tuple[Turn, ...]:
        """What ended after `since`, the stretches of this batch apart; the latest last."""
        found: list[Turn] = []
        for replica, number, began, ended in reversed(self._turns):
            if ended <= since:
                break
            if number != batch:
                found.append(Turn(replica, began, ended))
        found.reverse()
        return tuple(found)
