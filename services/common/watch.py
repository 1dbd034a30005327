"""Following a watch: a snapshot, then changes in the order of revisions, through every reconnection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from typing import Generic, TypeVar

import grpc
import structlog

from services.common.channel import backoff
from services.common.errors import Reason
from services.common.status import from_rpc_error

Message = TypeVar("Message")
Position = TypeVar("Position")
log = structlog.get_logger()


class Follower(Generic[Message, Position]):
    """Keeps a local copy up to date for ever.

    start: the position that asks for a snapshot.
    opens: begins a stream after a position.
    applies: takes one message in and returns the position after it. It must not fail on what it does not know; where it
    does, that is logged and the copy is built anew from a snapshot, less and less often.
    """

    def __init__(
        self,
        name: str,
        start: Position,
        opens: Callable[[Position], AsyncIterable[Message]],
        applies: Callable[[Message], Position],
    ) -> None:
        self._name, self._start, self._position = name, start, start
        self._opens, self._applies = opens, applies
        self.synced = asyncio.Event()
        """Set while the copy follows the source; unset while it is only what was known last."""

    async def run(self) -> None:
        """Follows until cancelled."""
        delays, breakages = backoff(first_s=0.1, most_s=2.0), backoff(first_s=1.0, most_s=30.0)
        anew = False
        while True:
            # A position that is no longer held is kept until a snapshot has come in its place: a source that has started
            # again meanwhile must not take us for one that knows nothing yet.
            wait_s, opened, anew = None, self._start if anew else self._position, False
            try:
                async for message in self._opens(opened):
                    self._position = self._applies(message)
                    self.synced.set()
                    delays = backoff(first_s=0.1, most_s=2.0)
            except grpc.RpcError as error:
                refusal = from_rpc_error(error)
                if refusal is not None and refusal.reason is Reason.REVISION_COMPACTED:
                    anew = True
                else:
                    log.info("watch interrupted", watch=self._name, error=str(error.code()))
            except Exception as error:
                log.error("watch broke", watch=self._name, exc_info=error)
                self._position, wait_s = self._start, next(breakages)
            self.synced.clear()
            await asyncio.sleep(next(delays) if wait_s is None else wait_s)
