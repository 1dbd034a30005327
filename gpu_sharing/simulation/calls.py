"""Requests, answers and slices of a simulated lane. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from gpu_sharing.simulation.models import EXACT, Error, SimulatedModel
from gpu_sharing.units import Millidevices, Nanoseconds


class SimulatedRequest(msgspec.Struct, frozen=True):
    """One request, as `gpu_sharing.arbiter.request.Request` wants it."""

    call: int
    replica: int
    arrived: Nanoseconds
    rows: int = 1
    deadline: Nanoseconds | None = None
    objective: Nanoseconds | None = None
    priority: int = 0
    shape_key: bytes = b""


class Answer(NamedTuple):
    """How a call ended. reason: "OK", or why not. started: of its batch; None where it was in none."""

    request: SimulatedRequest
    moment: Nanoseconds
    reason: str
    message: str = ""
    started: Nanoseconds | None = None


class SliceRan(NamedTuple):
    """Who had the lane, and when. calls: those of the batch."""

    lane: int
    replica: int
    batch: int
    started: Nanoseconds
    ended: Nanoseconds
    calls: tuple[int, ...]


@dataclass(slots=True, frozen=True)
class Hosting:
    """One replica on a lane: its model, its share, and how far its costs are from their estimates."""

    replica: int
    model: SimulatedModel
    bandwidth: Millidevices = 0
    weight: int = 1
    error: Error = EXACT
