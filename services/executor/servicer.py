"""ExecutorService: ties streams to sessions, and does nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from services._proto.apportion.v1.executor_pb2 import (
    STREAM_KIND_BULK,
    STREAM_KIND_PRIMARY,
    CloseRegionRequest,
    CloseRegionResponse,
    ExecuteHello,
    ExecuteRequest,
    ExecuteResponse,
    ExecuteWelcome,
    GetStatisticsRequest,
    GetStatisticsResponse,
    OpenRegionRequest,
    OpenRegionResponse,
)
from services._proto.apportion.v1.executor_pb2_grpc import ExecutorServiceServicer
from services.executor.calls import Calls
from services.executor.convert import statistics_to
from services.executor.outbox import Outbox
from services.executor.session import Session, protocol
from services.executor.settings import ExecutorSettings
from services.executor.spans import Spans

BULK_WAIT_S = 10.0
"""How long a bulk stream may wait for the primary one of its session."""


class ExecuteService(ExecutorServiceServicer):
    """Serves Execute. tenants: by replica, of all that were ever here."""

    def __init__(
        self,
        settings: ExecutorSettings,
        incarnation: str,
        calls: Calls,
        spans: Spans,
        tenants: dict[int, str],
    ) -> None:
        self._settings, self._incarnation = settings, incarnation
        self._calls, self._spans, self._tenants = calls, spans, tenants
        self._sessions: dict[bytes, Session] = {}
        self._opened = asyncio.Event()
        self._kinds: set[tuple[bytes, int]] = set()

    @property
    def sessions(self) -> list[Session]:
        """The sessions whose primary stream is open."""
        return list(self._sessions.values())

    async def Execute(self, requests: AsyncIterator[ExecuteRequest], context: Any) -> AsyncIterator[ExecuteResponse]:  # noqa: ARG002
        """See the contract."""
        hello = await _hello(requests)
        place = (hello.session, hello.kind)
        if place in self._kinds:
            raise protocol("hello: this session has a stream of this kind already")
        self._kinds.add(place)
        try:
            yield self._welcome()
            bulk = hello.kind == STREAM_KIND_BULK
            session = await self._joined(hello) if bulk else self._new(hello)
            try:
                async for response in _converse(session, requests, bulk=bulk):
                    yield response
            finally:
                self._leave(hello, session, bulk=bulk)
        finally:
            self._kinds.discard(place)

    async def GetStatistics(self, request: GetStatisticsRequest, context: Any) -> GetStatisticsResponse:  # noqa: ARG002
        """See the contract."""
        found = self._calls.statistics.find(request.tenant, request.model)
        return statistics_to(request.tenant, self._incarnation, found, time.time_ns() - time.monotonic_ns())

    async def OpenRegion(self, request: OpenRegionRequest, context: Any) -> OpenRegionResponse:  # noqa: ARG002
        """See the contract."""
        return OpenRegionResponse(memory_bytes=await self._calls.regions.open(request, self._sessions.__contains__))

    async def CloseRegion(self, request: CloseRegionRequest, context: Any) -> CloseRegionResponse:  # noqa: ARG002
        """See the contract."""
        self._calls.regions.close(request.region)
        return CloseRegionResponse()

    def _new(self, hello: ExecuteHello) -> Session:
        settings = self._settings
        session = self._sessions[hello.session] = Session(
            self._calls,
            self._spans,
            self._tenants,
            inline_bytes=settings.inline_bytes,
            chunk_bytes=settings.chunk_bytes,
            tenant_credit_bytes=settings.tenant_credit_bytes,
            result_credit_bytes=hello.tenant_credit_bytes,
        )
        for serving in self._calls.serving.values():
            session.load(serving.replica, serving.outstanding, 0)
        self._opened.set()
        return session

    async def _joined(self, hello: ExecuteHello) -> Session:
        """The session that a bulk stream belongs to; it may come before the primary one."""
        end = time.monotonic() + BULK_WAIT_S
        while hello.session not in self._sessions:
            self._opened.clear()
            left = end - time.monotonic()
            if left <= 0:
                raise protocol(f"hello: no primary stream of this session within {BULK_WAIT_S} s")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._opened.wait(), left)
        return self._sessions[hello.session]

    def _leave(self, hello: ExecuteHello, session: Session, *, bulk: bool) -> None:
        if bulk:
            session.bulk_lost()
            return
        del self._sessions[hello.session]
        self._calls.regions.session_ended(hello.session)
        session.end()

    def _welcome(self) -> ExecuteResponse:
        return ExecuteResponse(
            welcome=ExecuteWelcome(
                executor_id=self._settings.executor_id,
                incarnation=self._incarnation,
                inline_bytes=self._settings.inline_bytes,
                tenant_credit_bytes=self._settings.tenant_credit_bytes,
                opens_regions=self._calls.regions.opens,
            )
        )


async def _hello(requests: AsyncIterator[ExecuteRequest]) -> ExecuteHello:
    first = await anext(requests, None)
    if first is None or not first.HasField("hello"):
        raise protocol("the first message of a stream carries hello")
    if first.infers or first.chunks or first.cancels or first.verdicts or first.credits:
        raise protocol("the first message of a stream carries hello and nothing else")
    hello = first.hello
    if len(hello.session) != 16:
        raise protocol(f"hello.session: 16 bytes needed, {len(hello.session)} given")
    if hello.kind not in (STREAM_KIND_PRIMARY, STREAM_KIND_BULK):
        raise protocol("hello.kind: neither PRIMARY nor BULK")
    return hello


async def _converse(
    session: Session, requests: AsyncIterator[ExecuteRequest], *, bulk: bool
) -> AsyncIterator[ExecuteResponse]:
    """Reads in a task, writes here, until either side is done. Raises what reading raised."""
    outbox = session.bulk if bulk else session.primary
    reader = asyncio.create_task(_read(session, requests, outbox, bulk=bulk))
    try:
        while (response := await outbox.next()) is not None:
            yield response
            if not bulk:
                await session.pause(response, time.monotonic_ns())
        if reader.done():
            reader.result()
        if not bulk and session.broken is not None:
            raise session.broken
    finally:
        reader.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await reader


async def _read(session: Session, requests: AsyncIterator[ExecuteRequest], outbox: Outbox, *, bulk: bool) -> None:
    try:
        async for request in requests:
            if bulk:
                await session.take_chunks(request)
            else:
                session.take(request, time.monotonic_ns())
    except TimeoutError:
        raise protocol("a chunk came without its Infer") from None
    finally:
        outbox.close()
