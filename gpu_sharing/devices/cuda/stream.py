"""A lane's stream: what is launched on it is bounded and timed by events."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, NamedTuple

from gpu_sharing.devices.base import Mark
from gpu_sharing.devices.cuda.driver import Driver, Handle, call
from gpu_sharing.units import MS, Nanoseconds

AHEAD = 2
"""Segments launched and not ended, at most: one that runs and one that follows without a gap."""


class _Pair(NamedTuple):
    start: Handle
    end: Handle


class CudaStream:
    """Segments are launched between `begin` and `end`, and end in that order. One thread, the first that calls `begin`.

    ahead: how many may be out.
    """

    def __init__(self, driver: Driver, stream: Handle, primary: Handle, *, ahead: int = AHEAD) -> None:
        """Raises ValueError for a bound below 1."""
        if ahead < 1:
            raise ValueError(f"ahead: must be at least 1, is {ahead}")
        self.ahead = ahead
        self.stream = stream
        self._driver, self._primary = driver, primary
        self._owner: int | None = None
        self._free: list[_Pair] = []
        self._begun: _Pair | None = None
        self._out: deque[tuple[Mark, _Pair]] = deque()
        self._marks = 0

    @property
    def out(self) -> int:
        """Segments launched and not waited for."""
        return len(self._out)

    def own(self) -> None:
        """The calling thread owns the stream from now on. RuntimeError where another one does."""
        thread = threading.get_ident()
        if self._owner is None:
            self._owner = thread
            self._do("cuCtxSetCurrent", self._primary)
        elif self._owner != thread:
            raise RuntimeError(f"stream {int(self.stream)} belongs to thread {self._owner}, and {thread} uses it")

    def begin(self) -> None:
        """A segment is launched next. RuntimeError on another thread, and where as many are out as may be."""
        self.own()
        if self._begun is not None or len(self._out) >= self.ahead:
            raise RuntimeError(f"{len(self._out)} segments are out, {self.ahead} may be")
        self._begun = self._free.pop() if self._free else _Pair(self._event(), self._event())
        self._do("cuEventRecord", self._begun.start, self.stream)

    def end(self) -> Mark:
        """The segment has been launched."""
        pair = self._launched()
        self._marks += 1
        self._out.append((Mark(self._marks), pair))
        return Mark(self._marks)

    def wait(self) -> tuple[Mark, Nanoseconds]:
        """Waits for the oldest segment that is out: its mark, and how long the device took. CudaError where it broke.

        On an idle stream the time it took to launch the segment counts as well: the device waited for it.
        """
        self.own()
        mark, pair = self._out.popleft()
        try:
            self._do("cuEventSynchronize", pair.end)
            took_ms: float = self._do("cuEventElapsedTime", pair.start, pair.end)
        finally:
            self._free.append(pair)
        return mark, max(1, round(took_ms * MS))

    def drop(self) -> None:
        """The segment could not be launched whole. What was launched of it still runs; it is waited for."""
        if self._begun is None:
            return
        pair = self._launched()
        try:
            self._do("cuEventSynchronize", pair.end)
        finally:
            self._free.append(pair)

    def close(self) -> None:
        """Destroys the events. The stream is its lanes'."""
        pairs = [*self._free, *(pair for _, pair in self._out)]
        self._free, self._out = [], deque()
        for pair in pairs:
            for event in pair:
                self._do("cuEventDestroy", event)

    def _launched(self) -> _Pair:
        pair, self._begun = self._begun, None
        if pair is None:
            raise RuntimeError("no segment was begun")
        self._do("cuEventRecord", pair.end, self.stream)
        return pair

    def _event(self) -> Handle:
        # A wait that spins would take a core from the services for every lane.
        return self._do("cuEventCreate", self._driver.CUevent_flags.CU_EVENT_BLOCKING_SYNC)

    def _do(self, name: str, *arguments: Any) -> Any:
        return call(self._driver, name, *arguments)
