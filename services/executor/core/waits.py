"""What a request waited for, told from who had the lane meanwhile. PURE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from gpu_sharing.measurements import Batch, Turn
from gpu_sharing.units import Nanoseconds

Owner = tuple[str, str]
"""Tenant and model."""


class Waits(NamedTuple):
    """batch: of the wait, while an earlier batch of the same replica ran, or more requests were waited for. neighbours: of the
    wait, while other tenants had the lane. interrupted: the same of the time from the batch's start to its end. turns: the
    stretches of others, clipped to the request's own time, and whose they were; None: of a replica that is gone.
    """

    batch: Nanoseconds
    neighbours: Nanoseconds
    interrupted: Nanoseconds
    turns: tuple[tuple[Turn, Owner | None], ...]


def waits(
    batch: Batch, handed: Nanoseconds, replica: int, owner: Owner, owners: Callable[[int], Owner | None]
) -> Waits:
    """What a request that was handed over then waited for until `batch` ran, and who came between. Never raises.

    replica, owner: its own. owners: those of the others. A replica that nobody knows is counted as nobody's: its time is the
    queue's.
    """
    own = max(0, min(batch.waited_for_others, batch.started - handed))
    neighbours = interrupted = 0
    turns: list[tuple[Turn, Owner | None]] = []
    for turn in batch.others:
        whose = owners(turn.replica)
        before = _overlap(turn, handed, batch.started)
        within = _overlap(turn, max(handed, batch.started), batch.ended)
        if turn.replica == replica:
            own += before
        elif whose is not None and whose[0] != owner[0]:
            neighbours += before
            interrupted += within
        if before or within:
            clipped = Turn(turn.replica, max(turn.began, handed), min(turn.ended, batch.ended))
            turns.append((clipped, whose))
    waited = max(0, batch.started - handed)
    own = min(own, waited)
    neighbours = min(neighbours, waited - own)
    return Waits(own, neighbours, min(interrupted, max(0, batch.preempted)), tuple(turns))


def neighbours(turns: Sequence[tuple[Turn, Owner | None]], tenant: str) -> dict[str, str]:
    """What each other tenant is called in a trace of `tenant`: "neighbour A" is the first that had the lane."""
    told: dict[str, str] = {}
    for _, whose in turns:
        if whose is not None and whose[0] != tenant and whose[0] not in told:
            told[whose[0]] = f"neighbour {letters(len(told))}"
    return told


def letters(number: int) -> str:
    """0: A, 25: Z, 26: AA …"""
    told = ""
    number += 1
    while number:
        number, letter = divmod(number - 1, 26)
        told = chr(ord("A") + letter) + told
    return told


def _overlap(turn: Turn, start: Nanoseconds, end: Nanoseconds) -> Nanoseconds:
    return max(0, min(turn.ended, end) - max(turn.began, start))
