"""The stream to the scheduler: reports up, commands down, for ever. Requests do not depend on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import grpc
import structlog

from services._proto.apportion.v1.scheduler_pb2 import AttachRequest, AttachResponse, LoadReplica, SetLayout
from services._proto.apportion.v1.scheduler_pb2_grpc import SchedulerServiceStub
from services.common.channel import backoff
from services.common.errors import Reason
from services.common.status import from_rpc_error
from services.executor.convert import changed_from, wanted_from
from services.executor.core.replica_events import Happened, Unwanted
from services.executor.reports import Reports

log = structlog.get_logger()

LEAST_INTERVAL_S = 0.05
"""Changes that follow one another sooner than this go into one report."""
MOST_DELAY_S = 1.0
"""Between tries to attach: a scheduler that starts again waits for its executors, but not for long."""
_NS_PER_US = 1_000


class Attachment:
    """Keeps this executor attached. changed: set when a report is due; handle: takes what the scheduler wants."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        reports: Reports,
        address: str,
        changed: asyncio.Event,
        handle: Callable[[Happened], None],
        set_layout: Callable[[int, bool], None] = lambda _layout, _pinned: None,
        fold: Callable[[str, tuple[str, str], int], None] = lambda _name, _model, _life: None,
    ) -> None:
        """set_layout: brings one into force, pinned or not. fold: ends a life of a model's counts under a name."""
        self._stub = SchedulerServiceStub(channel)  # type: ignore[no-untyped-call]
        self._reports, self._address, self._changed, self._handle = reports, address, changed, handle
        self._obey_layout, self._fold = set_layout, fold
        self._interval_s = 1.0
        self._epoch = 0
        self._current = False
        self.attached = asyncio.Event()
        """Set while a scheduler has welcomed us."""
        self.said_goodbye = asyncio.Event()
        """Set once a report that says `draining` has gone out."""

    async def run(self) -> None:
        """Attaches again and again, until cancelled."""
        delays = backoff(first_s=0.1, most_s=MOST_DELAY_S)
        while True:
            try:
                await self._attach()
                why = "the scheduler ended the stream"
            except grpc.RpcError as error:
                refusal = from_rpc_error(error)
                why = refusal.message if refusal else str(error.code())
                if refusal is not None and refusal.reason is Reason.REPLACED:
                    log.warning("another executor has this executor's id", message=why)
            except Exception as error:
                # Whatever it was, this executor must not be left without a scheduler for ever.
                why = str(error) or type(error).__name__
                log.error("what the scheduler said could not be followed", exc_info=error)
            if self.attached.is_set():
                self.attached.clear()
                log.warning("detached from the scheduler; serving goes on", reason=why)
                delays = backoff(first_s=0.1, most_s=MOST_DELAY_S)
            await asyncio.sleep(next(delays))

    async def _attach(self) -> None:
        stream = self._stub.Attach(self._outgoing())
        try:
            async for response in stream:
                self.take(response)
        finally:
            stream.cancel()

    async def _outgoing(self) -> AsyncIterator[AttachRequest]:
        self._changed.clear()
        yield self._reports.hello(self._address)
        await self.attached.wait()
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._interval_s)
                await asyncio.sleep(LEAST_INTERVAL_S)
            self._changed.clear()
            report = self._reports.report()
            yield report
            if report.report.draining:
                self.said_goodbye.set()

    def take(self, response: AttachResponse) -> None:
        """A message of the scheduler. Commands of an epoch older than one already seen change nothing."""
        match response.WhichOneof("event"):
            case "welcome":
                self._interval_s = max(LEAST_INTERVAL_S, (response.welcome.report_interval_ms or 1000) / 1000)
                self._epoch = max(self._epoch, response.welcome.epoch)
                self._current = response.welcome.epoch >= self._epoch
                self.attached.set()
                log.info("attached to the scheduler", epoch=response.welcome.epoch)
            case _ if not self.attached.is_set() or not self._current:
                log.warning("a command of an older scheduler was ignored")
            case "load":
                self._load(response.load)
            case "unload":
                unload = response.unload
                self._handle(Unwanted(unload.replica_id, unload.drain_us * _NS_PER_US))
            case "layout":
                self._set_layout(response.layout)
            case "fold":
                fold = response.fold
                self._fold(fold.incarnation, (fold.key.tenant, fold.key.name), fold.life)
            case "update":
                self._handle(changed_from(response.update))

    def _set_layout(self, wanted: SetLayout) -> None:
        try:
            self._obey_layout(wanted.layout, wanted.pinned)
        except ValueError as error:
            log.error("the scheduler wants a layout that there is not", layout=wanted.layout, error=str(error))

    def _load(self, load: LoadReplica) -> None:
        try:
            wanted = wanted_from(load)
        except ValueError as error:
            log.error(
                "the scheduler wants a replica that cannot be understood", replica=load.replica_id, error=str(error)
            )
            return
        self._handle(wanted)
