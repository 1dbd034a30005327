"""When pools of torch's may end: while no thread of the process allocates from any, or captures.

torch synchronises as it ends a pool, and asserts that nobody does either meanwhile: in a destructor, so that the process would end.
So pools are held here, and let go of only while everybody else waits.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

_REFERENCES = 2
"""Of a pool that only the list and the question for them refer to."""


class Gate:
    """Any number of threads may be inside; whoever ends pools waits until none is, and new ones wait for that."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._ending = 0
        self._depth = threading.local()
        self._ended: list[Any] = []

    def enter(self) -> None:
        """The thread allocates from a pool from now on, or captures. May be nested."""
        depth = getattr(self._depth, "now", 0)
        self._depth.now = depth + 1
        if depth:
            return
        with self._changed:
            while self._ending:
                self._changed.wait()
            self._inside += 1

    def leave(self) -> None:
        """It does no more."""
        self._depth.now -= 1
        if self._depth.now:
            return
        with self._changed:
            self._inside -= 1
            if self._ending and not self._inside:
                self._changed.notify_all()

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, *_: object) -> None:
        self.leave()

    def end(self, pools: list[Any]) -> None:
        """Lets go of them, once no thread is inside; empties the list.

        One that somebody else still refers to (an exception's frames) goes with the next that ends, and so do all where the thread
        is inside itself.
        """
        if getattr(self._depth, "now", 0):
            self.leave_behind(pools)
            return
        with self._changed:
            self._ending += 1
            try:
                while self._inside:
                    self._changed.wait()
                self.leave_behind(pools)
                self._sweep()
            finally:
                self._ending -= 1
                self._changed.notify_all()

    def leave_behind(self, pools: list[Any]) -> None:
        """They go with the next that end. Never waits: for finalisers, which run anywhere."""
        self._ended += pools
        pools.clear()

    def _sweep(self) -> None:
        for at in range(len(self._ended) - 1, -1, -1):
            if sys.getrefcount(self._ended[at]) <= _REFERENCES:
                del self._ended[at]


GATE = Gate()
"""This process's: torch's allocator has no other."""
