"""The executors' streams: one an executor, and the newest wins."""

from __future__ import annotations

import asyncio

import structlog

from services.common.errors import Reason, Refusal
from services.scheduler.core.events import Command

log = structlog.get_logger()


class Stream:
    """Commands on their way to one executor."""

    def __init__(self, executor_id: str) -> None:
        self.executor_id = executor_id
        self._commands: asyncio.Queue[Command | Refusal | None] = asyncio.Queue()

    def send(self, command: Command) -> None:
        """Puts a command behind those before it."""
        self._commands.put_nowait(command)

    def end(self, refusal: Refusal | None) -> None:
        """Ends the stream: with a refusal, or because its executor did."""
        self._commands.put_nowait(refusal)

    async def next(self) -> Command | None:
        """The next command; None where the stream has ended. Raises the refusal it was ended with."""
        item = await self._commands.get()
        if isinstance(item, Refusal):
            raise item
        return item


class Streams:
    """Which stream reaches which executor."""

    def __init__(self) -> None:
        self._streams: dict[str, Stream] = {}

    def join(self, stream: Stream) -> bool:
        """Makes this the executor's stream; an older one ends with REPLACED. True."""
        older = self._streams.get(stream.executor_id)
        if older is not None:
            older.end(Refusal(Reason.REPLACED, f"a newer stream of executor {stream.executor_id} took its place"))
        self._streams[stream.executor_id] = stream
        return True

    def holds(self, stream: Stream) -> bool:
        """Whether this is its executor's stream still."""
        return self._streams.get(stream.executor_id) is stream

    def leave(self, stream: Stream) -> bool:
        """Takes the stream out; whether it was its executor's stream still."""
        held = self.holds(stream)
        if held:
            del self._streams[stream.executor_id]
        return held

    def end_all(self) -> None:
        """Ends every stream in peace: the scheduler stops."""
        for stream in self._streams.values():
            stream.end(None)

    def send(self, command: Command) -> None:
        """Sends a command where there is a stream; what is lost, the executor's next hello brings to light."""
        stream = self._streams.get(command.executor_id)
        if stream is None:
            log.info("command lost", executor=command.executor_id, why="its stream has just ended")
        else:
            stream.send(command)
