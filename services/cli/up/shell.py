"""Does what the supervisor decides: processes, signals, files and the terminal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from services.cli.options import OPERATOR, certificate
from services.cli.up import core, probe
from services.cli.up.files import Folder, last_error, rotate
from services.cli.up.plan import Plan
from services.common.settings import ServiceSettings

POLL_S = 0.03


class Shell:
    """One mesh of local processes.

    says: prints one line for people; announces: called once, when the mesh answers.
    """

    def __init__(
        self, plan: Plan, folder: Folder, *, says: Callable[[str], None], announces: Callable[[dict[str, str]], None]
    ) -> None:
        self._plan, self._folder, self._says, self._announces = plan, folder, says, announces
        self._supervisor = core.Supervisor(plan.services)
        self._events: asyncio.Queue[core.Event] = asyncio.Queue()
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._addresses: dict[str, core.Addresses] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._lifeline = os.pipe()
        self._finish: core.Finish | None = None

    async def run(self) -> core.Finish:
        """Runs the mesh until it is told to stop, or cannot start. Nothing runs afterwards."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._events.put_nowait, core.StopAsked())
        self._events.put_nowait(core.Begin())
        try:
            while self._finish is None:
                await self._step(await self._next())
        finally:
            for task in self._tasks:
                task.cancel()
            self._folder.mesh.unlink(missing_ok=True)
            for end in self._lifeline:
                os.close(end)
        return self._finish

    async def _next(self) -> core.Event:
        wake_at = self._supervisor.wake_at()
        wait_s = None if wake_at is None else max(0.0, (wake_at - time.monotonic_ns()) / 1e9)
        try:
            return await asyncio.wait_for(self._events.get(), wait_s)
        except TimeoutError:
            return core.Tick()

    async def _step(self, event: core.Event) -> None:
        if isinstance(event, core.Ready):
            self._addresses[event.name] = event.addresses
        for action in self._supervisor.handle(event, time.monotonic_ns()):
            await self._perform(action)

    async def _perform(self, action: core.Action) -> None:
        match action:
            case core.Start():
                await self._start(action)
            case core.Terminate(name):
                self._signal(name, signal.SIGTERM)
            case core.Kill(name):
                self._signal(name, signal.SIGKILL)
            case core.Probe():
                self._spawn(self._probe())
            case core.Publish():
                pids = {name: process.pid for name, process in self._processes.items()}
                self._folder.publish(os.getpid(), self._plan.mesh_addresses(self._addresses), pids, self._plan.certs)
            case core.Announce():
                self._announces(self._plan.mesh_addresses(self._addresses))
            case core.Notice(text):
                self._says(text)
            case core.Finish():
                self._finish = action

    async def _start(self, action: core.Start) -> None:
        name, log, ready = action.name, self._folder.log(action.name), self._folder.ready(action.name)
        ready.unlink(missing_ok=True)
        rotate(log)
        environment = self._plan.environment(action, ready, os.environ)
        with log.open("ab") as output:
            start = output.tell()
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.cli.up.child",
                str(self._lifeline[0]),
                self._plan.module(name),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                # A session of its own: Ctrl-C in the terminal reaches `up` alone, which stops them in order.
                start_new_session=True,
                pass_fds=(self._lifeline[0],),
            )
        self._processes[name] = process
        self._spawn(self._watch(name, process, log, start))
        self._spawn(self._await_ready(name, process, ready))

    async def _watch(self, name: str, process: asyncio.subprocess.Process, log: Path, start: int) -> None:
        status = await process.wait()
        # What the service itself started must not outlive it.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        error = await asyncio.to_thread(last_error, log, start) if status else None
        self._events.put_nowait(core.Exited(name, status, error))

    async def _await_ready(self, name: str, process: asyncio.subprocess.Process, ready: Path) -> None:
        while process.returncode is None:
            addresses = probe.read_ready(ready)
            if addresses is not None:
                self._events.put_nowait(core.Ready(name, addresses))
                return
            await asyncio.sleep(POLL_S)

    async def _probe(self) -> None:
        addresses = self._plan.mesh_addresses(self._addresses)
        credentials = ServiceSettings().credentials
        if self._plan.certs is not None:
            credentials = credentials._replace(tls=certificate(self._plan.certs, OPERATOR))
        await probe.until_answering(
            addresses["scheduler"], addresses["frontend"], credentials, executors=self._plan.executors, says=self._says
        )
        self._events.put_nowait(core.Answering())

    def _signal(self, name: str, number: signal.Signals) -> None:
        process = self._processes.get(name)
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(number)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
