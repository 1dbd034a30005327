"""How far the catalogue has got: told by this process's own commits, asked from the database for those of others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from services.common.errors import Refusal

log = structlog.get_logger()


class Head:
    """The highest revision known to be committed. It never goes back."""

    def __init__(self) -> None:
        self.revision = 0
        self._moved = asyncio.Event()
        self._waiting = 0
        self._anybody = asyncio.Event()
        self.closed = False
        """Set when the registry stops: watchers end instead of waiting."""

    def advance(self, revision: int) -> None:
        """Says that `revision` is committed."""
        if revision > self.revision:
            self.revision = revision
            self._wake()

    def close(self) -> None:
        """Ends all waiting."""
        self.closed = True
        self._wake()

    async def wait_past(self, revision: int, timeout_s: float) -> bool:
        """Waits for a commit after `revision`, at most `timeout_s`; whether there is one."""
        self._waiting += 1
        self._anybody.set()
        try:
            async with asyncio.timeout(timeout_s):
                while self.revision <= revision and not self.closed:
                    await self._moved.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting -= 1
        return self.revision > revision

    async def poll(self, ask: Callable[[], Awaitable[int]], every_s: float) -> None:
        """Asks the database every so often while anybody waits; until cancelled."""
        while True:
            if not self._waiting:
                self._anybody.clear()
                await self._anybody.wait()
            await asyncio.sleep(every_s)
            with suppress(Refusal):
                self.advance(await ask())

    def _wake(self) -> None:
        # Who waits holds the old event; who comes later gets a fresh one.
        self._moved.set()
        self._moved = asyncio.Event()
