"""SchedulerService: decode, tell or ask the core, encode."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import structlog

from services._proto.apportion.v1 import scheduler_pb2 as pb
from services._proto.apportion.v1 import scheduler_pb2_grpc
from services.common.access.callers import calling
from services.common.errors import Reason, Refusal, invalid
from services.scheduler import convert, encode, quota_messages
from services.scheduler.core.events import ExecutorAttached, ExecutorDetached, ExecutorReported
from services.scheduler.core.layouts import LayoutRefused
from services.scheduler.core.objectives import missing
from services.scheduler.core.reservations import Promise
from services.scheduler.deciding import Deciding
from services.scheduler.streams import Stream, Streams

MOST_MILLIDEVICES = 64_000
log = structlog.get_logger()


class SchedulerServicer(scheduler_pb2_grpc.SchedulerServiceServicer):
    """The scheduler's RPCs. Failures are Refusals, which the server's interceptor turns into statuses."""

    def __init__(
        self, deciding: Deciding, streams: Streams, *, report_interval_s: float = 1.0, bookmark_s: float = 5.0
    ) -> None:
        self._deciding, self._streams = deciding, streams
        self._report_interval_ms, self._bookmark_s = int(report_interval_s * 1000), bookmark_s
        self._closing = False

    def close(self) -> None:
        """Ends every watch and stream, so that the server can stop."""
        self._closing = True
        self._streams.end_all()
        self._deciding.wake()

    async def Attach(
        self, request_iterator: AsyncIterator[pb.AttachRequest], _context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.AttachResponse]:
        """An executor's stream: hello first, then reports; commands back."""
        first = await anext(aiter(request_iterator), pb.AttachRequest())
        if first.WhichOneof("event") != "hello":
            raise Refusal(Reason.PROTOCOL, "hello: the first message of a stream must carry it", field="hello")
        hello = convert.hello(first.hello)
        stream = Stream(hello.executor_id)
        yield pb.AttachResponse(welcome=self._welcome())
        self._deciding.tell(ExecutorAttached(hello), lambda: self._streams.join(stream))
        reading = asyncio.create_task(self._read(request_iterator, stream, hello.incarnation))
        try:
            while (command := await stream.next()) is not None:
                yield encode.command(command)
        finally:
            self._deciding.tell(ExecutorDetached(hello.executor_id), lambda: self._streams.leave(stream))
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def WatchRoutes(
        self, request: pb.WatchRoutesRequest, _context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.WatchRoutesResponse]:
        """A snapshot, or what came after a revision; then every change; a bookmark where there is none."""
        epoch, routes, revision = (
            self._deciding.scheduler.epoch,
            self._deciding.scheduler.routes,
            request.after_revision,
        )
        if (request.epoch, revision) == (0, 0):
            await self._until(lambda: self._deciding.scheduler.catalogue_known)
            revision, snapshot = routes.snapshot()
            for part in encode.snapshot(epoch, revision, snapshot):
                yield part
        elif request.epoch != epoch:
            # What it has from the scheduler before this one is better than what is known so far.
            await self._until(lambda: self._deciding.settled)
            raise _compacted(f"epoch {request.epoch} is over, this is {epoch}")
        while not self._closing:
            changed = self._deciding.changed()
            changes = routes.after(revision)
            if changes is None:
                raise _compacted(f"revision {revision} is no longer held, {routes.revision} is the latest")
            for change in changes:
                revision = change.revision
                yield encode.change(epoch, change)
            if not changes and not await self._wait(changed, self._bookmark_s):
                yield encode.bookmark(epoch, revision)

    async def GetFleet(self, _request: pb.GetFleetRequest, _context: grpc.aio.ServicerContext) -> pb.GetFleetResponse:
        """The fleet as it is known."""
        return encode.fleet(self._deciding.scheduler.epoch, self._deciding.scheduler.fleet())

    async def ReportRequests(
        self, request: pb.ReportRequestsRequest, _context: grpc.aio.ServicerContext
    ) -> pb.ReportRequestsResponse:
        """A frontend's counts, and what it may admit from now on."""
        scheduler = self._deciding.scheduler
        self._deciding.tell(convert.frontend_report(request))
        answer = scheduler.report_quotas(quota_messages.quota_report(request), self._deciding.now())
        return quota_messages.add_answer(pb.ReportRequestsResponse(epoch=scheduler.epoch), answer)

    async def GetQuotas(self, request: pb.GetQuotasRequest, _context: grpc.aio.ServicerContext) -> pb.GetQuotasResponse:
        """Quotas and what is used of them."""
        uses = self._deciding.scheduler.quotas(self._deciding.now())
        wanted = request.tenant or calling().tenant
        seen = (each for each in uses if wanted in ("", each.tenant) and calling().sees(each.tenant))
        found = [quota_messages.quota_use(each) for each in seen]
        return pb.GetQuotasResponse(quotas=found)

    async def CheckReservation(
        self, request: pb.CheckReservationRequest, _context: grpc.aio.ServicerContext
    ) -> pb.CheckReservationResponse:
        """Whether a reservation could be promised now."""
        asked = request.reservation.millidevices
        if not request.tenant:
            raise invalid("tenant", "must not be empty")
        if asked > MOST_MILLIDEVICES:
            raise invalid("reservation.millidevices", f"must be at most {MOST_MILLIDEVICES}, and is {asked}")
        promise = self._deciding.scheduler.check_reservation(request.tenant, asked)
        _refuse_oversold(request.tenant, promise)
        free_after, capacity = encode.share(promise.free_after), encode.share(promise.capacity or 0)
        return pb.CheckReservationResponse(free_after=free_after, capacity=capacity)

    async def SetExecutorLayout(
        self, request: pb.SetExecutorLayoutRequest, _context: grpc.aio.ServicerContext
    ) -> pb.SetExecutorLayoutResponse:
        """Brings a layout into force."""
        try:
            pinned = self._deciding.scheduler.pin_layout(request.executor_id, request.layout)
        except LayoutRefused as refused:
            raise invalid(refused.field, str(refused)) from None
        self._deciding.handle(pinned)
        log.info(
            "audit", actor=str(calling()), action="SetExecutorLayout", object=f"{request.executor_id} {request.layout}"
        )
        return pb.SetExecutorLayoutResponse()

    async def GetObjective(
        self, request: pb.GetObjectiveRequest, _context: grpc.aio.ServicerContext
    ) -> pb.GetObjectiveResponse:
        """Which objective a model can be promised."""
        if not self._deciding.scheduler.catalogue_known:
            raise Refusal(Reason.NOT_SERVING, "the catalogue is not known yet", retry_after_s=1.0)
        question = convert.question(request)
        if not calling().sees(question.key.tenant):
            raise missing(question.key)
        version, found = self._deciding.scheduler.objective(question)
        return pb.GetObjectiveResponse(answers=[encode.objective(each) for each in found], version=version)

    def _welcome(self) -> pb.AttachWelcome:
        return pb.AttachWelcome(epoch=self._deciding.scheduler.epoch, report_interval_ms=self._report_interval_ms)

    async def _read(self, requests: AsyncIterator[pb.AttachRequest], stream: Stream, incarnation: str) -> None:
        """Takes an executor's reports in; its stream ends when they do."""
        ending: Refusal | None = None
        try:
            async for request in requests:
                if request.WhichOneof("event") != "report":
                    raise Refusal(Reason.PROTOCOL, "report: every message after hello must carry one", field="report")
                event = ExecutorReported(stream.executor_id, convert.report(request.report, incarnation))
                self._deciding.tell(event, lambda: self._streams.holds(stream))
        except Refusal as refusal:
            ending = refusal
        finally:
            stream.end(ending)

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            if self._closing:
                raise Refusal(Reason.NOT_SERVING, "the scheduler is stopping")
            await self._deciding.changed().wait()

    async def _wait(self, event: asyncio.Event, most_s: float) -> bool:
        try:
            await asyncio.wait_for(event.wait(), most_s)
        except TimeoutError:
            return False
        return True


def _compacted(why: str) -> Refusal:
    return Refusal(Reason.REVISION_COMPACTED, f"after_revision: {why}; take a new snapshot", field="after_revision")


def _refuse_oversold(tenant: str, promise: Promise) -> None:
    if promise.refusal is None:
        return
    if promise.capacity is None:
        raise Refusal(Reason.NOT_SERVING, f"reservation: {promise.refusal}", retry_after_s=5.0)
    facts = {"subject": tenant, "asked": promise.asked, "free": promise.free, "capacity": promise.capacity}
    raise Refusal(Reason.OVERSOLD, f"reservation: {promise.refusal}", facts=facts)
