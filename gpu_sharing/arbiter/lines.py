"""Servers in the order of keys that change. PURE."""

from __future__ import annotations

import heapq
from typing import Any

from gpu_sharing.arbiter.servers import Server
from gpu_sharing.units import Nanoseconds

_SPARE = 256


class Line:
    """A heap of servers, least key first; each is in it once at most. Whoever was put first goes first among equals."""

    def __init__(self) -> None:
        self._heap: list[tuple[Any, int, Server]] = []
        self._current: dict[int, int] = {}
        self._stamp = 0

    def put(self, key: Any, server: Server) -> None:
        """The server's key is this from now on."""
        self._stamp += 1
        self._current[server.number] = self._stamp
        heapq.heappush(self._heap, (key, self._stamp, server))
        if len(self._heap) > 4 * len(self._current) + _SPARE:
            self._heap = [entry for entry in self._heap if self._current.get(entry[2].number) == entry[1]]
            heapq.heapify(self._heap)

    def discard(self, server: Server) -> None:
        """The server is in line no longer, if it was."""
        self._current.pop(server.number, None)

    def first(self) -> tuple[Any, Server] | None:
        """The server with the least key, and the key; None where the line is empty."""
        heap = self._heap
        while heap:
            key, stamp, server = heap[0]
            if self._current.get(server.number) == stamp:
                return key, server
            heapq.heappop(heap)
        return None


class Paced:
    """Servers that each may go from a start on, in the order of their deadlines once they may."""

    def __init__(self) -> None:
        self._early = Line()
        self._ripe = Line()

    def put(self, start: Nanoseconds, deadline: Nanoseconds, server: Server, now: Nanoseconds) -> None:
        """The server's start and deadline are these from now on."""
        if start <= now:
            self._early.discard(server)
            self._ripe.put(deadline, server)
        else:
            self._ripe.discard(server)
            self._early.put((start, deadline), server)

    def discard(self, server: Server) -> None:
        """The server is in line no longer, if it was."""
        self._early.discard(server)
        self._ripe.discard(server)

    def first(self, now: Nanoseconds) -> tuple[Nanoseconds, Server] | None:
        """Of those that may go now, the server with the earliest deadline, and the deadline; None where there is none."""
        while (early := self._early.first()) is not None and early[0][0] <= now:
            (_, deadline), server = early
            self._early.discard(server)
            self._ripe.put(deadline, server)
        return self._ripe.first()
