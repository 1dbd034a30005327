"""What the arbiter needs to know of a request. PURE."""

from __future__ import annotations

from typing import Protocol

from gpu_sharing.units import Nanoseconds

NEVER: Nanoseconds = 1 << 63
"""Later than every moment of the clock."""


class Request(Protocol):
    """One request. `worker.messages.Submit` is one; a simulator brings its own.

    rows: extent at the batch axis.
    shape_key: requests of a replica with equal keys may share a batch.
    deadline: dropped past this moment; None: never.
    objective: the moment it should be answered by, which orders it; None: class `batch`.
    priority: higher goes first among one tenant's requests on the same terms.
    """

    @property
    def call(self) -> int: ...
    @property
    def replica(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def shape_key(self) -> bytes: ...
    @property
    def arrived(self) -> Nanoseconds: ...
    @property
    def deadline(self) -> Nanoseconds | None: ...
    @property
    def objective(self) -> Nanoseconds | None: ...
    @property
    def priority(self) -> int: ...


def due(request: Request) -> Nanoseconds:
    """The moment by which it should be answered: its objective or its deadline, whichever is earlier; NEVER: neither."""
    objective, deadline = request.objective, request.deadline
    if objective is None:
        return NEVER if deadline is None else deadline
    return objective if deadline is None or objective < deadline else deadline
