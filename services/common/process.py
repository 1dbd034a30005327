"""How every service's process runs: on uvloop until it is told to stop, with a ready file, and with its collector tuned."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from services.common.settings import ServiceSettings

log = structlog.get_logger()

SETTLED_S = 10.0
"""How long after its start a process holds about what it will hold from then on."""
GC_THRESHOLDS = (2_000, 100, 20)
"""Every 2,000 allocations in place of 700: a look at so many objects that are circles takes up to a millisecond, during which all
requests wait. gRPC leaves five for every call that it serves."""
MIDDLE_ROUNDS, OLD_ROUNDS = 20, 400
YOUNG_S = 60.0
"""Young objects are looked at no less often than that, however few there are: gRPC leaves a circle behind for every call that it
serves, and where calls are rare it would take half an hour until there are as many as the threshold says."""


class StartupError(Exception):
    """The service cannot start; the message is one line that says what to do."""


def write_ready(settings: ServiceSettings, **addresses: str) -> None:
    """Tells whoever started this process that it is ready, and where: an atomic write of `ready_file`."""
    log.info("ready", **addresses)
    if settings.ready_file is None:
        return
    target = Path(settings.ready_file)
    partial = target.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps({"pid": os.getpid(), **addresses}))
    partial.replace(target)


def settle() -> None:
    """Takes what there is by now, modules and tables that stay, out of the garbage collector's rounds, and has it look at
    young objects less often: a request leaves next to no circles, and a full round over everything would hold up all requests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def tend() -> None:
    """Settles the process once it holds what it will hold, and has the collector look at young objects from then on; cancel it."""
    await asyncio.sleep(SETTLED_S)
    settle()
    for number in itertools.count(1):
        await asyncio.sleep(YOUNG_S)
        gc.collect(generation_due(number))


def generation_due(number: int) -> int:
    """Up to which generation the round of that number goes, from 1 on: older ones more seldom."""
    if number % OLD_ROUNDS == 0:
        return 2
    return 1 if number % MIDDLE_ROUNDS == 0 else 0


def run(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Runs a service's `main(stop)` on uvloop until it returns; SIGTERM and SIGINT set `stop`.

    A StartupError ends the process with status 2 and its one line.
    """
    import uvloop

    async def body() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        tending = asyncio.create_task(tend())
        try:
            await main(stop)
        finally:
            tending.cancel()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(body())
    except StartupError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


async def first_done(*tasks: asyncio.Task[Any]) -> None:
    """Waits until one task ends and raises its error, if it had one; the others are cancelled."""
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    for task in done:
        task.result()
