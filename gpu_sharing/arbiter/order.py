"""Which request goes first? PURE."""

from __future__ import annotations

from typing import TypeAlias

from gpu_sharing.arbiter.request import Request
from gpu_sharing.units import Nanoseconds

Rank: TypeAlias = tuple[bool, int, Nanoseconds, Nanoseconds, int]
Urgency: TypeAlias = tuple[bool, Nanoseconds]


def rank(request: Request) -> Rank:
    """The place among one replica's requests: a total order, least first.

    Class `batch` comes last; then higher priority, earlier objective (in class `batch`: deadline), earlier arrival.
    """
    is_batch = request.objective is None
    due = request.deadline if is_batch else request.objective
    return (is_batch, -request.priority, NEVER if due is None else due, request.arrived, request.call)


def urgency(request: Request) -> Urgency:
    """The place among different replicas' heads: earliest objective first, class `batch` last and all alike.

    Priority is not in it: it orders a tenant's own requests, never two tenants'. Equal urgencies do not preempt one
    another, so class `batch` never preempts class `batch`.
    """
    return (True, 0) if request.objective is None else (False, request.objective)


NEVER: Nanoseconds = 1 << 63
"""Later than every moment of the clock."""
