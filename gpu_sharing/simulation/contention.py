"""How much lanes of one device slow each other down. PURE."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol


class Contention(Protocol):
    """Answers the question, in thousandths: exact, so that runs repeat to the byte."""

    def slowdown_permille(self, lane: int, running: Mapping[int, float]) -> int:
        """How long a segment on `lane` takes beside the others, of what it takes alone; 1000: no longer.

        running: the memory share of what runs now on each busy lane, `lane` among them.
        """
        ...


class SharedMemory:
    """One memory behind all lanes: its part of the time grows once they ask together for more than there is.

    A segment with memory share m asks for m of the bandwidth. Where all that run ask for s > 1, the part m takes s times as long.
    """

    def slowdown_permille(self, lane: int, running: Mapping[int, float]) -> int:
        """See `Contention`."""
        asked = sum(running.values())
        share = running[lane]
        return 1000 if asked <= 1.0 else round(1000 * (1.0 - share + share * asked))


class Pairwise:
    """Each busy neighbour adds a part of its own, as measured between two lanes."""

    def __init__(self, added_permille: Mapping[tuple[int, int], int]) -> None:
        """added_permille: by (slowed lane, busy neighbour); pairs left out add nothing."""
        self._added = dict(added_permille)

    def slowdown_permille(self, lane: int, running: Mapping[int, float]) -> int:
        """See `Contention`."""
        return 1000 + sum(self._added.get((lane, other), 0) for other in running if other != lane)


def overlapping(lanes: Sequence[Collection[int]]) -> Pairwise:
    """Lanes that have units in common, as those of two layouts do while one takes the other's place: a busy neighbour takes half
    of what is shared. lanes: the units of each."""
    pairs = ((one, other) for one in range(len(lanes)) for other in range(len(lanes)) if one != other)
    return Pairwise(
        {(one, other): 1000 * len(set(lanes[one]) & set(lanes[other])) // len(lanes[one]) for one, other in pairs}
    )


NONE = Pairwise({})
"""Partitions that share nothing."""
