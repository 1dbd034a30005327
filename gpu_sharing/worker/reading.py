"""Whose turn it is to read commands: the lane's while it runs nothing long, else the turn of a thread of its own.

To hand a command from one thread to another costs a wake-up and the interpreter's lock back and forth, which is more than a
tiny model's whole batch takes. So a lane that has nothing to run reads by itself. Before a slice that is not known to be
short it gives the turn back, since commands (a cancellation, a deadline) must be taken meanwhile; and it gets the turn when
the other thread would have to wake it anyway.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from gpu_sharing.units import MS, Nanoseconds

SHORT: Nanoseconds = 1 * MS
"""Nobody reads while a batch runs whose model's take no longer as a rule; slices one after the other are read between as often."""
UNLIKELY = 10
"""Nor where it may, once in a hundred times, take so many times as long."""


class Reading:
    """One thread calls `run`, the lane's the methods under its name, any the others.

    is_lanes: whether it is the lane's turn. rounds: how often the other thread has taken commands.
    """

    def __init__(self, read: Callable[[bool], bool], *, clock: Callable[[], Nanoseconds], shared: bool = True) -> None:
        """read: takes what has come, and waits for it where told to; False once nothing more will. shared: the lane may read."""
        self._read, self._clock, self._shared = read, clock, shared
        self._reads = threading.Lock()
        self._given_back = threading.Event()
        self._given_back.set()
        self._ended = False
        self._error: Exception | None = None
        self._looked: Nanoseconds = 0
        self._slice = self._seen = 0
        self.is_lanes = False
        self.rounds = 0

    def run(self) -> None:
        """Reads whenever it is this thread's turn, until nothing more comes. Raises what `read` raises."""
        while not self._ended:
            self._given_back.wait()
            with self._reads:
                if not self.is_lanes and not self._ended:
                    self._ended = not self._read(True)
                    self.rounds += 1
        self.keep()
        if self._error is not None:
            raise self._error

    def keep(self) -> None:
        """The lane reads no more."""
        self._shared = False
        self._give_back()

    # The lane's side.

    def offer(self) -> None:
        """The lane is about to be woken. Whoever calls this holds the lock that the lane waits on."""
        if self._shared:
            self._given_back.clear()
            self.is_lanes = True

    def look(self, rounds: int) -> None:
        """The lane had nothing to run after so many rounds: waits for commands, and takes them, where that is its turn."""
        if self.is_lanes:
            with self._reads:
                if self.is_lanes and self.rounds == rounds:
                    self._take(wait=True)

    def begin(self, usual: Nanoseconds | None, predicted: Nanoseconds | None) -> None:
        """A slice begins. usual: how long its model's batches take; predicted: what its batch takes at most; None: nobody knows."""
        if not self.is_lanes:
            return
        if usual is None or usual > SHORT or predicted is None or predicted > UNLIKELY * SHORT:
            self._give_back()
            return
        if self._clock() - self._looked > SHORT:
            with self._reads:
                self._take(wait=False)
        self._slice += 1

    def end(self) -> None:
        """The slice has ended."""
        self._slice += self._slice & 1

    # Another thread's.

    def beat(self) -> None:
        """Called now and then: a slice that has run since the last time was not as short as expected."""
        if self.is_lanes and self._slice & 1 and self._slice == self._seen:
            self._give_back()
        self._seen = self._slice

    def _take(self, *, wait: bool) -> None:
        try:
            self._ended = not self._read(wait)
        except Exception as error:
            # It is for the thread that runs the worker.
            self._error, self._ended = error, True
        self._looked = self._clock()
        if self._ended:
            self.keep()

    def _give_back(self) -> None:
        self.is_lanes = False
        self._given_back.set()
