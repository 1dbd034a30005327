"""Who has been promised how much of a lane. PURE.

A tenant whose reservation shrinks, or who leaves, may have work to do yet that was promised: its old part is free for others
only once all that it bought is due (its finish).
"""

from __future__ import annotations

from gpu_sharing.units import Millidevices, Nanoseconds


class Oversold(ValueError):
    """More bandwidth was to be granted than the lane has."""


class Grants:
    """Of one lane. Parts are named by their holders' numbers."""

    def __init__(self, capacity: Millidevices) -> None:
        """Raises ValueError for a capacity below 1."""
        if capacity < 1:
            raise ValueError(f"capacity: must be at least 1 millidevice, is {capacity}")
        self.capacity = capacity
        self._held: dict[int, Millidevices] = {}
        self._lingering: list[tuple[Nanoseconds, Millidevices]] = []

    @property
    def granted(self) -> Millidevices:
        """To all together."""
        return sum(self._held.values())

    def held(self, holder: int) -> Millidevices:
        """By one."""
        return self._held.get(holder, 0)

    def free_for(self, holder: int) -> Millidevices:
        """The most that it can hold."""
        return self.capacity - self.granted + self.held(holder)

    def grant(self, holder: int, bandwidth: Millidevices, *, finish: Nanoseconds, now: Nanoseconds) -> Nanoseconds:
        """From when it has this bandwidth. finish: when all is due that it has bought. Oversold where it does not fit."""
        if bandwidth > self.free_for(holder):
            raise Oversold(
                f"bandwidth: {bandwidth} millidevices do not fit: of {self.capacity}, others hold "
                f"{self.granted - self.held(holder)}"
            )
        more = bandwidth - self.held(holder)
        self._held[holder] = bandwidth
        if not bandwidth:
            del self._held[holder]
        if more < 0 and finish > now:
            self._lingering.append((finish, -more))
        return self._fits_from(now) if more > 0 else now

    def _fits_from(self, now: Nanoseconds) -> Nanoseconds:
        """The first moment at which what is held fits beside what lingers."""
        self._lingering = sorted((until, part) for until, part in self._lingering if until > now)
        over = self.granted + sum(part for _, part in self._lingering) - self.capacity
        moment = now
        for until, part in self._lingering:
            if over <= 0:
                break
            moment, over = until, over - part
        return moment
