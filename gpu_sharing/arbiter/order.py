"""Which request goes first? PURE."""

from __future__ import annotations

from typing import TypeAlias

from gpu_sharing.arbiter.request import NEVER, Request, due
from gpu_sharing.units import Nanoseconds

Rank: TypeAlias = tuple[bool, int, Nanoseconds, Nanoseconds, int]
Urgency: TypeAlias = tuple[bool, Nanoseconds]
Turn: TypeAlias = tuple[Nanoseconds, int]

__all__ = ["NEVER", "Rank", "Turn", "Urgency", "rank", "turn", "urgency"]


def rank(request: Request) -> Rank:
    """The place among one tenant's requests on the same terms: a total order, least first.

    Class `batch` comes last; then higher priority, earlier due (objective or deadline), earlier arrival.
    """
    return (request.objective is None, -request.priority, due(request), request.arrived, request.call)


def turn(request: Request) -> Turn:
    """The place in order of arrival: a total order, least first."""
    return (request.arrived, request.call)


def urgency(request: Request) -> Urgency:
    """What decides whether it interrupts a batch of its own tenant: earliest due first, class `batch` last and all alike.

    Priority is not in it, so that no flood of high priority suspends batch after batch. Equal urgencies do not interrupt one
    another, so class `batch` never interrupts class `batch`.
    """
    return (True, 0) if request.objective is None else (False, due(request))
