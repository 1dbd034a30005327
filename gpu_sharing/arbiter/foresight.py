"""How much longer than expected does what was admitted from surplus take? PURE.

An expected wait counts what is there and what has been seen lately. Work within reservations that comes in bursts, time between
slices that no estimate knows of, and tenants who begin to claim their part of the surplus all make waits longer. By how much is
learnt from what came of earlier expectations, and expected waits are made as much longer.
"""

from __future__ import annotations

from gpu_sharing.units import SECOND, Nanoseconds

MOST = 4.0
"""Waits are expected to be at most this many times longer."""

_UP, _DOWN = 0.4, 0.002
"""How fast it is learnt that waits are longer, and shorter, than thought: so much faster up that few are longer in the end."""

_NEAR = 0.5
"""Expectations that come to less than this part of what was allowed tell nothing: what matters is who is turned away, and waits
that are short beside the objective are often much longer than expected, and nobody minds."""

_MEMORY: Nanoseconds = 10 * SECOND
"""With nothing seen for so long, most of it is forgotten: a lane that admits nothing would never learn better."""


class Foresight:
    """Of one lane."""

    __slots__ = ("_at", "_excess")

    def __init__(self) -> None:
        self._excess = 0.0
        self._at: Nanoseconds = 0

    def factor(self, now: Nanoseconds) -> float:
        """Waits are to be expected so many times longer: between 1 and MOST."""
        idle = now - self._at
        return 1.0 + (self._excess * _MEMORY / (_MEMORY + idle) if idle > 0 else self._excess)

    def see(
        self, expected: Nanoseconds, took: Nanoseconds, allowed: Nanoseconds, grain: Nanoseconds, now: Nanoseconds
    ) -> None:
        """What was expected to be done after a time took another. allowed: until the objective. grain: what is too short to tell
        anything of."""
        factor = self.factor(now)
        if expected * factor < _NEAR * allowed:
            return
        excess = factor - 1.0
        seen = min(MOST, max(1.0, (took + grain) / max(1, expected + grain))) - 1.0
        self._excess = excess + (seen - excess) * (_UP if seen > excess else _DOWN)
        self._at = now
