"""An executor's end of the process that hosts all lanes of a GPU: each lane looks like a worker of its own."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gpu_sharing.units import MiB
from gpu_sharing.worker.client import OnEvents, WorkerClient, WorkerLost
from gpu_sharing.worker.config import WorkerConfig
from gpu_sharing.worker.hosting import PACKET_BYTES, HostConfig, HostReady, OpenLane, Told
from gpu_sharing.worker.process import cuda_environment, ending, environment

_TAIL_LINES = 40
_START_S = 120.0
"""The driver, torch and the contexts of every layout."""

Command = Callable[[int, HostConfig], Sequence[str]]


def host_command(control_fd: int, config: HostConfig) -> Sequence[str]:
    """How a host is started."""
    told = msgspec.json.encode(config).decode()
    return [sys.executable, "-m", "gpu_sharing.worker.host", str(control_fd), str(os.getpid()), told]


class LaneHost:
    """Starts the process with the first lane, and anew with the first after it was lost. Belongs to one event loop.

    ready: what the running process said of its layouts; None while none runs.
    """

    def __init__(
        self,
        config: HostConfig,
        *,
        command: Command = host_command,
        on_ready: Callable[[HostReady], None] = lambda _ready: None,
    ) -> None:
        """on_ready: told of each life of the process, once it has divided the device."""
        self._config, self._command, self._on_ready = config, command, on_ready
        self._process: _Process | None = None
        self._starting = asyncio.Lock()

    @property
    def ready(self) -> HostReady | None:
        """See the class."""
        return self._process.ready.result() if self._process is not None and self._process.is_ready else None

    async def start_worker(
        self, config: WorkerConfig, *, on_events: OnEvents, timeout_s: float = _START_S, meter_fd: int | None = None
    ) -> WorkerClient:
        """Opens a lane, as WorkerClient.start starts a worker. Raises what that raises."""
        process = await self._running(timeout_s)
        return await WorkerClient.start(
            config, on_events=on_events, timeout_s=timeout_s, meter_fd=meter_fd, spawn=process.open_lane
        )

    async def close(self) -> None:
        """Ends the process, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            await process.end(after_s=1.0)

    async def _running(self, timeout_s: float) -> _Process:
        async with self._starting:
            if self._process is None or self._process.is_gone:
                if self._process is not None:
                    await self._process.end(after_s=0.0)
                self._process = _Process(self._config, self._command)
                await self._process.started(timeout_s)
                self._on_ready(self._process.ready.result())
            return self._process


class _Process:
    """One life of the host. lanes: those that are open, by number."""

    def __init__(self, config: HostConfig, command: Command) -> None:
        self._loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            self._process = subprocess.Popen(
                list(command(theirs.fileno(), config)),
                pass_fds=(theirs.fileno(),),
                env={**environment(WorkerConfig(cores=())), **cuda_environment(config.backend)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        finally:
            theirs.close()
        self._control = ours
        self._tail: collections.deque[bytes] = collections.deque(maxlen=_TAIL_LINES)
        self.pid = self._process.pid
        self.ready: asyncio.Future[HostReady] = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self.lanes: dict[int, LaneProcess] = {}
        self._loop.add_reader(ours.fileno(), self._read)
        self._forwarding = asyncio.ensure_future(self._forward())

    @property
    def is_ready(self) -> bool:
        return self.ready.done() and not self.is_gone

    @property
    def is_gone(self) -> bool:
        return self.gone.done() or self._process.poll() is not None

    async def started(self, timeout_s: float) -> None:
        waited: list[asyncio.Future[Any]] = [self.ready, self.gone]
        await asyncio.wait(waited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not self.ready.done():
            ended = await self.end(after_s=1.0 if self.gone.done() else 0.0)
            reason = ended if self.gone.done() else f"not ready within {timeout_s} s"
            raise WorkerLost(f"lane host {self.pid}: {reason}\n{self.tail()}".rstrip())

    def open_lane(self, config: WorkerConfig, inputs_fd: int, outputs_fd: int, meter_fd: int) -> LaneProcess:
        """Sends the host a lane's descriptors, which are closed here."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MiB)
        ours.setblocking(False)
        lane = self.lanes[config.lane] = LaneProcess(self, ours)
        try:
            asked = msgspec.json.encode(OpenLane(config))
            socket.send_fds(self._control, [asked], [theirs.fileno(), inputs_fd, outputs_fd, meter_fd])
        except OSError as error:
            # The lane's socket closes with `theirs`, and that is how its client learns of it.
            self._tail.append(f"the host cannot be reached: {error}\n".encode())
        finally:
            theirs.close()
            for fd in (inputs_fd, outputs_fd, meter_fd):
                os.close(fd)
        return lane

    async def end(self, after_s: float) -> str:
        """Waits for the process at most so long, then kills it; how it ended."""
        if self._control.fileno() >= 0:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
        await asyncio.to_thread(self._reap, after_s)
        if not self.gone.done():
            self.gone.set_result(None)
        for lane in self.lanes.values():
            lane.ended.set()
        await asyncio.wait([self._forwarding], timeout=1.0)
        return ending(self._process.returncode)

    def tail(self) -> str:
        """The last lines that it wrote."""
        return b"".join(self._tail).decode("utf-8", "replace")

    def _reap(self, after_s: float) -> None:
        try:
            self._process.wait(after_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        try:
            data = self._control.recv(PACKET_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._control.fileno())
            if not self.gone.done():
                self.gone.set_result(None)
            return
        try:
            told: Told = msgspec.json.decode(data, type=Told)
        except msgspec.MsgspecError as error:
            self._tail.append(f"the host talked rubbish: {error}\n".encode())
            self._process.kill()
            return
        if isinstance(told, HostReady):
            if not self.ready.done():
                self.ready.set_result(told)
        elif told.lane in self.lanes:
            self.lanes[told.lane].closed = True
            self.lanes[told.lane].ended.set()

    async def _forward(self) -> None:
        reader = asyncio.StreamReader()
        await self._loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._process.stdout)
        while data := await reader.read(1 << 16):
            self._tail.extend(data.splitlines(keepends=True))
            sys.stderr.write(data.decode("utf-8", "replace"))
            sys.stderr.flush()


class LaneProcess:
    """One lane of a host, as a WorkerClient sees a process. closed: its loop has ended by itself. ended: so, or with the host."""

    def __init__(self, host: _Process, ours: socket.socket) -> None:
        self._host = host
        self.socket = ours
        self.pid = host.pid
        self.closed = False
        self.ended = asyncio.Event()

    async def forward_stderr(self) -> None:
        """The host's is forwarded already."""

    def stderr_tail(self) -> str:
        """The host's last lines."""
        return self._host.tail()

    async def kill(self, after_s: float = 0.0) -> str:
        """Waits at most after_s for the lane to end, then ends the host and with it every lane: nothing less frees a thread."""
        if not self.closed and after_s > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), after_s)
        if self.closed:
            return "its lane has ended"
        return await self._host.end(after_s=0.0 if not self._host.is_gone else 1.0)

    def close(self) -> None:
        """Lets go of the socket."""
        self.socket.close()
