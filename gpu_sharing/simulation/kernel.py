"""A virtual clock and what happens at each of its moments. PURE."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from typing import TypeAlias

from gpu_sharing.units import Nanoseconds

Action: TypeAlias = Callable[[], None]


class Timer:
    """Something that will happen, unless it is cancelled."""

    __slots__ = ("_action",)

    def __init__(self, action: Action) -> None:
        self._action: Action | None = action

    def cancel(self) -> None:
        """It will not happen. Does nothing where it has happened already."""
        self._action = None

    def fire(self) -> bool:
        """Happens; False where it was cancelled."""
        action, self._action = self._action, None
        if action is None:
            return False
        action()
        return True


class Kernel:
    """The loop: moments ascend; what falls on one moment happens in the order in which it was asked for."""

    def __init__(self, start: Nanoseconds = 0) -> None:
        self.now: Nanoseconds = start
        self.happened = 0
        self._heap: list[tuple[Nanoseconds, int, Timer]] = []
        self._sequence = 0

    def at(self, moment: Nanoseconds, action: Action) -> Timer:
        """Does `action` at that moment. ValueError for a moment that is past."""
        if moment < self.now:
            raise ValueError(f"{moment} is before now, {self.now}")
        timer = Timer(action)
        heapq.heappush(self._heap, (moment, self._sequence, timer))
        self._sequence += 1
        return timer

    def after(self, delay: Nanoseconds, action: Action) -> Timer:
        """Does `action` once `delay` has passed."""
        return self.at(self.now + delay, action)

    def run(self, until: Nanoseconds | None = None) -> None:
        """Until nothing is left to happen, or `until`, at which the clock then stands."""
        while self._heap and (until is None or self._heap[0][0] <= until):
            moment, _, timer = heapq.heappop(self._heap)
            self.now = moment
            self.happened += timer.fire()
        if until is not None:
            self.now = max(self.now, until)


class Trace:
    """Everything that was seen, in order. Two runs with equal digests were the same run, to the byte."""

    def __init__(self, *, keep: bool = False) -> None:
        """keep: the lines too, not only their digest."""
        self._hash = hashlib.sha256()
        self._keep = keep
        self.lines: list[str] = []

    def write(self, moment: Nanoseconds, *words: object) -> None:
        """One line."""
        line = " ".join(map(str, (moment, *words)))
        self._hash.update(line.encode() + b"\n")
        if self._keep:
            self.lines.append(line)

    def digest(self) -> str:
        """SHA-256 of all lines so far, in hexadecimal."""
        return self._hash.hexdigest()
