"""Servers in the order of keys that change. PURE."""

from __future__ import annotations

import bisect
from typing import Any, TypeAlias

from gpu_sharing.arbiter.servers import Server
from gpu_sharing.units import Nanoseconds

_Entry: TypeAlias = tuple[Any, int, Server]


class Line:
    """Servers, least key first; each is in it once at most. Whoever was put first goes first among equals.

    A sorted list and not a heap: keys change at every boundary, and a heap would keep what they were until a decision has to
    take it out.
    """

    def __init__(self) -> None:
        self._order: list[_Entry] = []
        self._entries: dict[int, _Entry] = {}
        self._stamp = 0

    def put(self, key: Any, server: Server) -> None:
        """The server's key is this from now on."""
        self.discard(server)
        self._stamp += 1
        entry = self._entries[server.number] = (key, self._stamp, server)
        bisect.insort(self._order, entry)

    def discard(self, server: Server) -> None:
        """The server is in line no longer, if it was."""
        entry = self._entries.pop(server.number, None)
        if entry is not None:
            del self._order[bisect.bisect_left(self._order, entry)]

    def first(self) -> tuple[Any, Server] | None:
        """The server with the least key, and the key; None where the line is empty."""
        if not self._order:
            return None
        key, _, server = self._order[0]
        return key, server

    def second_key(self) -> Any:
        """The key behind the least; None where there is none."""
        return self._order[1][0] if len(self._order) > 1 else None


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

    def is_before_others(self, deadline: Nanoseconds) -> bool:
        """Whether the first of those that may go would still be first with this deadline. Ask `first` before."""
        other = self._ripe.second_key()
        return other is None or deadline < other
