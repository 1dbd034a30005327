"""When a stream's next message is due: under load a little later, so that what comes in between shares it."""

from __future__ import annotations

import asyncio

NS_PER_S = 1_000_000_000
WEIGHT = 8
"""One interval counts for an eighth of the rate."""
SPARSE_NS = 2_000_000
"""Calls that come further apart than this are sent as they come."""


class Pace:
    """The pause after each message of one stream.

    A message costs both sides several times what one more call in it costs. So where several calls are in hand and many come
    in a second, the next message waits for about `gather` more of them, and at most `most_s`: an idle stream has no pause, a
    busy one a short one, and no call waits for others that are unlikely to come.

    busy: calls in hand from which there is a pause at all: a few callers in turn have none.
    """

    __slots__ = ("_apart_ns", "_busy", "_gather", "_last_ns", "_most_ns")

    def __init__(self, *, busy: int = 3, gather: int = 6, most_s: float = 0.003) -> None:
        self._busy, self._gather, self._most_ns = busy, gather, int(most_s * NS_PER_S)
        self._apart_ns = self._most_ns
        self._last_ns = 0

    def pause_s(self, in_message: int, in_hand: int, now: int) -> float:
        """How long to wait after a message of so many calls, sent `now`; 0: not at all. Told of every message."""
        if in_message:
            apart_ns = (now - self._last_ns) // in_message
            self._apart_ns += (min(apart_ns, 4 * self._most_ns) - self._apart_ns) // WEIGHT
            self._last_ns = now
        if in_hand < self._busy or self._apart_ns > SPARSE_NS:
            return 0.0
        return min(self._most_ns, self._gather * self._apart_ns) / NS_PER_S


class Pause:
    """A pause between two messages, which ends early where the other side has nothing left to do: as Nagle's algorithm sends
    what has gathered once nothing is unanswered (RFC 896), a busy peer gets few large messages and an idle one never waits.
    One task waits at a time."""

    __slots__ = ("_over",)

    def __init__(self) -> None:
        self._over: asyncio.Future[None] | None = None

    async def wait(self, at_most_s: float) -> None:
        """Until `end`, or until the time has passed. AssertionError where somebody waits already."""
        assert self._over is None, "two wait on one pause"
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        timer = loop.call_later(at_most_s, self.end)
        try:
            await self._over
        finally:
            timer.cancel()
            self._over = None

    def end(self) -> None:
        """Nothing is worth waiting for any more."""
        if self._over is not None and not self._over.done():
            self._over.set_result(None)
