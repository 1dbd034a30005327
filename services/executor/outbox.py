"""What waits for a stream's writer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services._proto.apportion.v1.executor_pb2 import ExecuteResponse


class Outbox:
    """What waits for one stream's writer. closed: nothing will come any more."""

    def __init__(self, fill: Callable[[], ExecuteResponse | None]) -> None:
        self._fill = fill
        self._wake = asyncio.Event()
        self.closed = False

    def wake(self) -> None:
        """There is something to send."""
        self._wake.set()

    def close(self) -> None:
        """Ends the stream once what waits is sent."""
        self.closed = True
        self._wake.set()

    async def next(self) -> ExecuteResponse | None:
        """Everything that is ready, as soon as there is anything; None: the stream is over."""
        while True:
            response = self._fill()
            if response is not None:
                return response
            if self.closed:
                return None
            self._wake.clear()
            await self._wake.wait()
