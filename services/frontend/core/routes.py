"""What the frontend knows of models and replicas, as plain values."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Tensor(msgspec.Struct, frozen=True):
    """One input or output. shape: the whole shape, batch axis included; None where the extent varies."""

    name: str
    datatype: str
    shape: tuple[int | None, ...]
    batch_axis: int | None = None
    optional: bool = False


class Signature(msgspec.Struct, frozen=True):
    """What a version takes and gives. max_batch_size: rows of one batch; 0: requests run one at a time."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch_size: int = 0


class State(StrEnum):
    """Where a version stands for its callers."""

    LOADING = "loading"
    READY = "ready"
    REFUSED = "refused"
    UNPLACED = "unplaced"
    UNLOADED = "unloaded"
    """By request, until it is loaded by request."""


class Link(StrEnum):
    """How the executor of a replica can be reached now, the best first."""

    UP = "up"
    CONNECTING = "connecting"
    """Calls wait for the connection, and fail with it."""
    DOWN = "down"


class Replica(msgspec.Struct, eq=False):
    """A replica that serves, with what this frontend knows of its load.

    outstanding: requests of this frontend that it has not answered. waiting_requests, expected_wait_us: its own report.
    """

    replica_id: int
    executor_id: str
    address: str
    outstanding: int = 0
    waiting_requests: int = 0
    expected_wait_us: int = 0


class Version(msgspec.Struct, frozen=True, eq=False):
    """One version of a model. message: why it does not serve. signature: None until it was inspected."""

    version: int
    state: State
    message: str = ""
    signature: Signature | None = None
    replicas: tuple[Replica, ...] = ()


class Route(msgspec.Struct, eq=False):
    """How to reach a model.

    objective_ns: from arrival to answer; None: the class `batch`. versions: by number, ascending.
    splits: (version, parts per million) of the requests that name none.
    revision: the model's in the catalogue by which this was decided; 0: not told.
    """

    tenant: str
    model: str
    objective_ns: int | None
    versions: dict[int, Version]
    splits: tuple[tuple[int, int], ...] = ()
    revision: int = 0
    picks: int = 0
    """Requests that named no version, counted: the count chooses among the splits."""
