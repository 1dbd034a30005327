"""An executor's end of one worker: starts it, sends it commands, hands on its events, notices its loss. asyncio."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from gpu_sharing.memory.arena import Arena, ArenaView, create_memory, read_only
from gpu_sharing.units import Bytes
from gpu_sharing.worker import wire
from gpu_sharing.worker.config import WorkerConfig
from gpu_sharing.worker.messages import Command, Done, Event, Ready, Release, Stop
from gpu_sharing.worker.meter import PAGE_BYTES
from gpu_sharing.worker.process import WorkerProcess

__all__ = ["WorkerClient", "WorkerConfig", "WorkerLost"]

OnEvents = Callable[[Sequence[Event]], None]


class Running(Protocol):
    """What runs a worker's loop, and can be ended: a process of its own (WorkerProcess), or one that lanes share (LaneProcess)."""

    socket: socket.socket
    pid: int

    async def forward_stderr(self) -> None: ...
    def stderr_tail(self) -> str: ...
    async def kill(self, after_s: float = 0.0) -> str: ...
    def close(self) -> None: ...


Spawn = Callable[[WorkerConfig, int, int, int], Running]

_NS_PER_S = 1_000_000_000
_RELEASED_WITHIN_S = 0.005
_PART_HELD = 64
"""Answers that are read, but not released yet, are at most this part of the outputs' arena."""


class WorkerLost(Exception):
    """The worker could not be started. The message says why and ends with what it last wrote to its standard error."""


class WorkerClient:
    """One worker process. Belongs to the event loop it was started on.

    ready: what the worker said of its device.
    pid: its process.
    inputs: the arena that requests' tensors are written to. The client never frees it: whoever allocated for a call
        frees once its Done or Failed has come, or the worker is lost.
    outputs: read-only; where the TensorRefs of Done point. They stay until Release is sent.
    lost: resolves with the reason once the process has exited or talked rubbish; never an exception. Nothing it held can be
        answered any more: calls are failed by whoever sent them. The arenas stay until `stop`, which is still to be awaited.
    """

    def __init__(self, process: Running, inputs: Arena, outputs: ArenaView, on_events: OnEvents) -> None:
        """Use `start`."""
        self._loop = asyncio.get_running_loop()
        self._process = process
        self._on_events = on_events
        self._outgoing: list[Command] = []
        self._released_bytes = 0
        self._release: asyncio.TimerHandle | None = None
        self._flushes = False
        self._transport: asyncio.Transport | None = None
        self._frames: _Frames | None = None
        self._ending: asyncio.Task[None] | None = None
        self._first: asyncio.Future[Ready] = self._loop.create_future()
        self._outputs = outputs
        self.pid = process.pid
        self.inputs = inputs
        self.outputs = outputs.view
        self.lost: asyncio.Future[str] = self._loop.create_future()

    @property
    def ready(self) -> Ready:
        """What the worker said of its device when it started."""
        return self._first.result()

    @classmethod
    async def start(
        cls,
        config: WorkerConfig,
        *,
        on_events: OnEvents,
        timeout_s: float = 30.0,
        meter_fd: int | None = None,
        spawn: Spawn = WorkerProcess.spawn,
    ) -> WorkerClient:
        """Starts a worker and waits until its loop runs. spawn: makes its process, and closes the descriptors here.

        meter_fd: the meter page it is to write (gpu_sharing.worker.meter), which stays the caller's; None: one that
        nobody reads.

        on_events: called on the loop with the events of one frame, in order, Ready not among them; must not raise.
        Raises WorkerLost, with the end of what it wrote to standard error, where the worker exits before it is ready or is
        not ready within timeout_s; ValueError for arenas that are not whole pages.
        """
        inputs = Arena.create(config.input_arena_bytes, "inputs")
        outputs_fd = create_memory(config.output_arena_bytes, "outputs")
        outputs = ArenaView(read_only(outputs_fd), config.output_arena_bytes)
        inputs_fd = read_only(inputs.fd)
        meter = create_memory(PAGE_BYTES, "meter") if meter_fd is None else os.dup(meter_fd)
        process = spawn(config, inputs_fd, outputs_fd, meter)
        client = cls(process, inputs, outputs, on_events)
        try:
            await client._connect(timeout_s)
        except BaseException:
            await client._let_go()
            raise
        return client

    def send(self, command: Command) -> None:
        """Sends a command, in one frame with all others of this turn of the loop. Does nothing once the worker is lost."""
        if self._transport is None:
            return
        if not self._flushes:
            self._flushes = True
            self._loop.call_soon(self._flush)
        self._outgoing.append(command)

    def release(self, call: int, length_bytes: Bytes) -> None:
        """Sends a Release of so small an answer with the next command: by itself it would wake the worker for nothing.

        It goes within a few milliseconds all the same, and at once where much of the arena waits for it.
        """
        self._released_bytes += length_bytes
        if self._released_bytes * _PART_HELD > self._outputs.capacity_bytes:
            self.send(Release(call))
            return
        if self._transport is not None:
            self._outgoing.append(Release(call))
            if self._release is None:
                self._release = self._loop.call_later(_RELEASED_WITHIN_S, self._release_late)

    def kill(self, reason: str) -> None:
        """Ends the process at once, also one that does not answer; `lost` resolves with the reason."""
        if self._frames is not None:
            self._frames.give_up(reason)

    async def stop(self, grace_s: float) -> None:
        """Asks the worker to finish within grace_s, then kills it; returns once it is gone and its memory let go."""
        self.send(Stop(grace_ns=int(grace_s * _NS_PER_S)))
        await asyncio.wait([self.lost], timeout=grace_s + 1.0)
        await self._let_go()

    async def _connect(self, timeout_s: float) -> None:
        await self._process.forward_stderr()
        transport, frames = await self._loop.create_unix_connection(lambda: _Frames(self), sock=self._process.socket)
        self._transport, self._frames = transport, frames
        waited: list[asyncio.Future[Any]] = [self._first, self.lost]
        await asyncio.wait(waited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not self._first.done():
            reason = self.lost.result() if self.lost.done() else f"not ready within {timeout_s} s"
            await self._process.kill()
            raise WorkerLost(f"worker {self.pid}: {reason}\n{self._process.stderr_tail()}".rstrip())

    def _release_late(self) -> None:
        self._release = None
        if not self._flushes:
            self._flush()

    def _flush(self) -> None:
        commands, self._outgoing = self._outgoing, []
        self._flushes, self._released_bytes = False, 0
        if self._transport is not None and commands:
            # The transport buffers what the socket does not take, so the loop never waits for the worker.
            self._transport.write(wire.encode(commands))

    def _received(self, events: list[Event]) -> None:
        """The events of one frame. wire.WireError where they break the contract."""
        if not self._first.done():
            if not events or not isinstance(events[0], Ready):
                raise wire.WireError("the first event was not Ready")
            self._first.set_result(events[0])
            events = events[1:]
        for event in events:
            if isinstance(event, Done):
                self._check_outputs(event)
        if events:
            self._on_events(events)

    def _check_outputs(self, done: Done) -> None:
        for ref in done.outputs:
            if ref.offset < 0 or ref.length_bytes < 0 or ref.offset + ref.length_bytes > self._outputs.capacity_bytes:
                raise wire.WireError(f"an output of call {done.call} lies outside the arena: {ref}")

    def _disconnected(self, reason: str | None) -> None:
        """The socket is closed. reason: what was wrong with what came; None where the worker closed it."""
        self._transport = None
        if self._release is not None:
            self._release.cancel()
        self._ending = asyncio.ensure_future(self._end(reason))

    async def _end(self, reason: str | None) -> None:
        exit_status = await self._process.kill(after_s=0.0 if reason else 2.0)
        if not self.lost.done():
            self.lost.set_result(reason or exit_status)

    async def _let_go(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        await self._process.kill()
        self._process.close()
        if not self.lost.done():
            self.lost.set_result("stopped")
        self.inputs.close()
        self._outputs.close()


class _Frames(asyncio.Protocol):
    """Cuts the stream into frames."""

    def __init__(self, client: WorkerClient) -> None:
        self._client = client
        self._decoder = wire.events()
        self._transport: asyncio.Transport | None = None
        self._problem: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's by what they do, not by their class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._problem is not None:
            return
        try:
            for events in self._decoder.feed(data):
                self._client._received(events)
        except wire.WireError as error:
            self.give_up(f"talked rubbish: {error}")
        except Exception as error:
            # Calls whose answers went missing would wait for ever: losing the worker answers them.
            self.give_up(f"killed, since its events could not be taken: {error!r}")
            asyncio.get_running_loop().call_exception_handler({"message": "on_events raised", "exception": error})

    def give_up(self, problem: str) -> None:
        """Ends the connection, and with it the worker, for this reason."""
        self._problem = problem
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the process's end says more
        self._client._disconnected(self._problem)
