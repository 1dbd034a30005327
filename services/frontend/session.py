"""One connection to an executor: the primary stream for everything small, the bulk stream for chunks."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Awaitable, Callable, Coroutine
from time import monotonic_ns
from typing import Any

import grpc
from google.rpc import status_pb2

from services._proto.apportion.v1 import executor_pb2 as pb
from services._proto.apportion.v1 import executor_pb2_grpc as stubs
from services.common.channel import Credentials, connect
from services.common.pacing import Pace, Pause
from services.common.status import from_status
from services.frontend.calls import Call, lost
from services.frontend.outbox import Outbox

WELCOME_TIMEOUT_S = 5.0
ABANDONED = 16_384
"""Abandoned calls whose tenant is remembered, since a large answer may still be on its way and its credit is due back."""


class ProtocolError(Exception):
    """The executor broke the rules of Execute."""


class Session:
    """Both streams of one connection, from welcome to the first of them that ends. The Carrier of its calls."""

    def __init__(self, address: str, hello: pb.ExecuteHello, credentials: Credentials) -> None:
        self.address = address
        self.welcome = pb.ExecuteWelcome()
        self._hello = pb.ExecuteHello()
        self._hello.CopyFrom(hello)
        self._hello.session = os.urandom(16)
        # The token goes on by hand: an interceptor would put a queue and a task between us and the stream.
        token, with_tls = credentials.mesh_token, credentials._replace(mesh_token=None)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None
        self._channels = tuple(connect(address, to="executor", credentials=with_tls) for _ in range(2))
        self._sent: dict[int, Call] = {}
        self._abandoned: dict[int, str] = {}
        self._outbox = Outbox(0, 0, self._sent)
        self._pace, self._pause = Pace(), Pause()

    async def open(self) -> None:
        """Says hello on both streams. Raises grpc.RpcError, TimeoutError or ProtocolError."""
        async with asyncio.timeout(WELCOME_TIMEOUT_S):
            self._primary = await self._greeted(self._channels[0], pb.STREAM_KIND_PRIMARY)
            answer = await self._primary.read()
            if answer is grpc.aio.EOF or not answer.HasField("welcome"):
                raise ProtocolError("its first message is no welcome")
            self.welcome = answer.welcome
            self._bulk = await self._greeted(self._channels[1], pb.STREAM_KIND_BULK)
        self._outbox = Outbox(self.welcome.inline_bytes, self.welcome.tenant_credit_bytes, self._sent)

    async def run(self, reports: Callable[[int, int, int], None]) -> None:
        """Sends and receives until one of the streams ends. Raises what ended it.

        reports: takes the executor's word on a replica (replica id, waiting requests, expected wait in µs).
        """
        self._reports = reports
        bodies: list[Coroutine[Any, Any, None]] = [
            self._write_primary(),
            self._write_bulk(),
            self._read(self._primary),
            self._read(self._bulk),
        ]
        tasks = [asyncio.ensure_future(body) for body in bodies]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            first = next(iter(done))
            if first.cancelled():
                raise ProtocolError("a stream was cancelled")
            first.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self, why: str) -> None:
        """Fails every call that is still here, then lets go of the connections."""
        self._outbox.close()
        for call in [*self._sent.values(), *self._outbox.unsent()]:
            call.finish(lost(self.address, why))
        self._sent.clear()
        for channel in self._channels:
            await channel.close(None)

    def statistics(self, request: pb.GetStatisticsRequest, timeout_s: float) -> Awaitable[pb.GetStatisticsResponse]:
        """GetStatistics, beside the streams. Raises grpc.RpcError."""
        stub = stubs.ExecutorServiceStub(self._channels[0])  # type: ignore[no-untyped-call]
        call: Awaitable[pb.GetStatisticsResponse] = stub.GetStatistics(
            request, timeout=timeout_s, metadata=self._metadata
        )
        return call

    @property
    def id(self) -> bytes:
        """By which both streams bear each other out, and what is bound to them."""
        return self._hello.session

    def open_region(self, request: pb.OpenRegionRequest, timeout_s: float) -> Awaitable[pb.OpenRegionResponse]:
        """OpenRegion, bound to this session. Raises grpc.RpcError."""
        request.session = self._hello.session
        stub = stubs.ExecutorServiceStub(self._channels[0])  # type: ignore[no-untyped-call]
        call: Awaitable[pb.OpenRegionResponse] = stub.OpenRegion(request, timeout=timeout_s, metadata=self._metadata)
        return call

    def close_region(self, request: pb.CloseRegionRequest, timeout_s: float) -> Awaitable[pb.CloseRegionResponse]:
        """CloseRegion. Raises grpc.RpcError."""
        stub = stubs.ExecutorServiceStub(self._channels[0])  # type: ignore[no-untyped-call]
        call: Awaitable[pb.CloseRegionResponse] = stub.CloseRegion(request, timeout=timeout_s, metadata=self._metadata)
        return call

    @property
    def outstanding(self) -> int:
        """Calls that wait for their answer."""
        return len(self._sent)

    @property
    def has_verdicts(self) -> bool:
        """Whether the executor is still to be told how calls ended."""
        return self._outbox.has_verdicts

    def submit(self, call: Call) -> None:
        """Sends a call as soon as may be."""
        call.carrier = self
        self._outbox.submit(call)

    def verdict(self, call: Call, violated: bool, keep: bool) -> None:
        """See Carrier."""
        self._outbox.verdict(call, violated, keep)

    def release(self, call: Call) -> None:
        """See Carrier."""
        if call.bulk_bytes:
            self._outbox.give_back(call.tenant, call.bulk_bytes)
            call.bulk_bytes = None

    def leave(self, call: Call) -> None:
        """See Carrier."""
        self._outbox.withdraw(call)
        if call.bulk_bytes is not None:
            self.release(call)
        elif call.number:
            if len(self._abandoned) >= ABANDONED:
                del self._abandoned[next(iter(self._abandoned))]
            self._abandoned[call.number] = call.tenant

    async def _greeted(self, channel: grpc.aio.Channel, kind: pb.StreamKind) -> Any:
        stub = stubs.ExecutorServiceStub(channel)  # type: ignore[no-untyped-call]
        stream = stub.Execute(metadata=self._metadata)
        self._hello.kind = kind
        await stream.write(pb.ExecuteRequest(hello=self._hello))
        return stream

    async def _write_primary(self) -> None:
        while True:
            message = await self._outbox.message()
            await self._primary.write(message)
            pause_s = self._pace.pause_s(len(message.infers), len(self._sent), monotonic_ns())
            if pause_s:
                await self._pause.wait(pause_s)

    async def _write_bulk(self) -> None:
        while True:
            await self._bulk.write(await self._outbox.chunk())

    async def _read(self, stream: Any) -> None:
        read = stream.read
        while (message := await read()) is not grpc.aio.EOF:
            now = monotonic_ns()
            for result in message.results:
                self._take_result(result, now)
            if not self._sent:
                self._pause.end()
            for chunk in message.chunks:
                self._take_chunk(chunk)
            for load in message.loads:
                self._reports(load.replica_id, load.waiting_requests, load.expected_wait_us)
            for credit in message.credits:
                self._outbox.granted(credit.tenant, credit.bytes)
        raise ProtocolError("it ended the stream")

    def _take_result(self, result: pb.Result, now: int) -> None:
        number = result.call
        outcome = result.WhichOneof("outcome")
        if outcome == "bulk_bytes":
            self._announced(number, result)
            return
        call = self._sent.pop(number, None)
        if call is None:
            self._abandoned.pop(number, None)
            return
        call.stages, call.received_ns = result.stages, now
        if outcome == "payload":
            call.finish(result.payload)
        else:
            call.finish(from_status(status_pb2.Status.FromString(result.status)))

    def _announced(self, number: int, result: pb.Result) -> None:
        call = self._sent.get(number)
        if call is not None:
            call.bulk_bytes = result.bulk_bytes
            call.stages = result.stages
            self._complete(call)
            return
        tenant = self._abandoned.pop(number, None)
        if tenant is not None:
            self._outbox.give_back(tenant, result.bulk_bytes)

    def _take_chunk(self, chunk: pb.Chunk) -> None:
        call = self._sent.get(chunk.call)
        if call is None:
            return
        if chunk.offset != call.received_bytes:
            raise ProtocolError(f"a chunk begins at {chunk.offset} where {call.received_bytes} was due")
        if call.answer is None:
            # The size is known as a rule. Written in place as it comes, so that no join of the whole holds up the loop.
            call.answer = io.BytesIO(bytes(call.bulk_bytes or 0))
        call.answer.write(chunk.data)
        call.received_bytes += len(chunk.data)
        self._complete(call)

    def _complete(self, call: Call) -> None:
        # Chunks travel on a connection of their own, so they may come before the result that announces them.
        if call.bulk_bytes is None or call.received_bytes < call.bulk_bytes:
            return
        del self._sent[call.number]
        call.received_ns = monotonic_ns()
        answer, call.answer = call.answer, None
        call.finish(answer.getvalue() if answer else b"")
