"""What goes wrong, and when. PURE."""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

import msgspec
import numpy as np


class Fault(Enum):
    """How a segment can end other than by finishing. The value is what its caller is told."""

    RAISES = "RuntimeError: the segment raised"
    OUT_OF_MEMORY = "OutOfMemoryError: the tenant's pool is full"
    HANGS = "the segment never returned"


class FaultRates(msgspec.Struct, frozen=True):
    """How often each segment of one replica goes wrong, 0 to 1."""

    raises: float = 0.0
    out_of_memory: float = 0.0
    hangs: float = 0.0


Nth: TypeAlias = dict[tuple[int, int], Fault]
"""By (replica, how many of its segments have run before)."""


class FaultPlan:
    """Faults by chance and by appointment."""

    def __init__(self, rates: dict[int, FaultRates] | None = None, nth: Nth | None = None) -> None:
        """rates: by replica."""
        self._rates = rates or {}
        self._nth = nth or {}
        self._ran: dict[int, int] = {}

    def next(self, replica: int, chance: np.random.Generator) -> Fault | None:
        """What becomes of the replica's next segment; None: it finishes."""
        ran = self._ran[replica] = self._ran.get(replica, -1) + 1
        appointed = self._nth.get((replica, ran))
        rates = self._rates.get(replica)
        if appointed is not None or rates is None:
            return appointed
        drawn = float(chance.random())
        for rate, fault in (
            (rates.raises, Fault.RAISES),
            (rates.out_of_memory, Fault.OUT_OF_MEMORY),
            (rates.hangs, Fault.HANGS),
        ):
            if drawn < rate:
                return fault
            drawn -= rate
        return None
