"""A frontend's session: its two streams, its calls, its credits. What comes is acted on at once; what goes out waits for its
stream's writer, which takes everything that is ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import count

from gpu_sharing.measurements import Batch
from gpu_sharing.units import Nanoseconds
from gpu_sharing.worker.client import WorkerClient
from services._proto.apportion.v1.executor_pb2 import (
    Chunk,
    Credit,
    ExecuteRequest,
    ExecuteResponse,
    Infer,
    Load,
    Result,
)
from services.common.errors import Reason, Refusal
from services.common.pacing import Pace, Pause
from services.common.status import to_status
from services.executor.calls import Calls
from services.executor.core.credits import Credits
from services.executor.core.turns import Part, Transfer, Turns
from services.executor.core.wire import first_raw_start
from services.executor.decode import ALIGNMENT
from services.executor.inflight import Call, Phase, Serving, stages
from services.executor.outbox import Outbox
from services.executor.spans import Spans

MESSAGE_BYTES = 1 << 20
"""A message is sent on once it holds that much."""
CHUNK_WAIT_S = 10.0
"""How long a chunk may come before its Infer, which travels on the other stream."""

_keys = count(1)


class Session:
    """One frontend's session. tenant_credit_bytes: what its tenants may send; result_credit_bytes: what they may get.

    tenants: by replica, of all that were ever here.
    """

    def __init__(
        self,
        calls: Calls,
        spans: Spans,
        tenants: dict[int, str],
        *,
        inline_bytes: int,
        chunk_bytes: int,
        tenant_credit_bytes: int,
        result_credit_bytes: int,
    ) -> None:
        self.key = next(_keys)
        self._calls, self._spans, self._tenants = calls, spans, tenants
        self._inline_bytes, self._chunk_bytes = inline_bytes, chunk_bytes
        self._incoming = Credits(tenant_credit_bytes)
        self._outgoing = Credits(result_credit_bytes)
        self._turns = Turns(self._outgoing)
        self._open: dict[int, Call] = {}
        self._sending: dict[int, tuple[Call, Batch]] = {}
        self._last_call = 0
        self._arrived = asyncio.Event()
        self._results: list[Result] = []
        self._grants: dict[str, int] = {}
        self._loads: dict[int, tuple[int, int]] = {}
        self.primary = Outbox(self._fill_primary)
        self.bulk = Outbox(self._fill_bulk)
        self._pace, self._pause = Pace(busy=2), Pause()
        self.ended = False
        self.broken: Refusal | None = None
        """Why the session had to end from this side."""

    def take(self, request: ExecuteRequest, now: Nanoseconds) -> None:
        """A message of the primary stream. Raises Refusal (PROTOCOL) where it breaks the contract."""
        if request.HasField("hello") or request.chunks:
            raise protocol("the primary stream carries hello once and never chunks")
        for infer in request.infers:
            self._infer(infer, now)
        for cancel in request.cancels:
            self._cancel(cancel.call)
        for verdict in request.verdicts:
            self._spans.verdict(self.key, verdict.call, verdict.keep, now, violated=verdict.violated)
        for credit in request.credits:
            self._credit(credit.tenant, credit.bytes)
        self._arrived.set()

    async def take_chunks(self, request: ExecuteRequest) -> None:
        """A message of the bulk stream. Waits for the Infers of its chunks. Raises Refusal (PROTOCOL)."""
        if request.HasField("hello") or request.infers or request.cancels or request.verdicts or request.credits:
            raise protocol("the bulk stream carries hello once, then nothing but chunks")
        for chunk in request.chunks:
            if chunk.call > self._last_call:
                await self._wait_for(chunk.call)
            call = self._open.get(chunk.call)
            # Chunks of a call that is over or cancelled were on their way: they are let go.
            if call is not None and call.phase is Phase.RECEIVING:
                self._chunk(call, chunk.offset, chunk.data)

    def load(self, replica: int, waiting: int, wait_us: int) -> None:
        """Tells the frontend how busy a replica is."""
        self._loads[replica] = (waiting, wait_us)
        self.primary.wake()

    async def pause(self, message: ExecuteResponse, now: Nanoseconds) -> None:
        """Waits after this message of the primary stream, so that more results share the next one."""
        pause_s = self._pace.pause_s(len(message.results), len(self._open), now)
        if pause_s:
            await self._pause.wait(pause_s)

    def end(self) -> None:
        """The primary stream is over: every call is cancelled, and all memory is given back as workers let go of it."""
        self.ended = True
        self._spans.deserted(self.key, time.monotonic_ns())
        for call in list(self._open.values()):
            self._calls.cancel(call)
        for call, _ in self._sending.values():
            self._calls.sent(call)
        self._open.clear()
        self._sending.clear()
        self._results.clear()
        self._turns = Turns(self._outgoing)
        self._arrived.set()
        self.primary.close()
        self.bulk.close()

    def finish(self) -> None:
        """The executor stops: both streams end once what waits is sent."""
        self.bulk.close()
        self.primary.close()

    def bulk_lost(self) -> None:
        """The bulk stream is over before the session: what was half sent can never be completed."""
        if self.ended:
            return
        self.bulk = Outbox(self._fill_bulk)
        if self._sending:
            self.broken = Refusal(Reason.EXECUTOR_LOST, "the bulk stream ended with results on their way")
            self.primary.close()
        for call in list(self._open.values()):
            if call.phase is Phase.RECEIVING:
                lost = Refusal(Reason.EXECUTOR_LOST, "the bulk stream ended before the payload was complete")
                self._calls.refuse(call, lost)

    def answer(self, result: Result) -> None:
        """See Caller."""
        self._results.append(result)
        self.primary.wake()

    def transfer(self, call: Call, parts: Sequence[Part], batch: Batch) -> None:
        """See Caller."""
        self._sending[call.call] = (call, batch)
        self._open[call.call] = call
        self._announce(self._turns.add(Transfer(call.call, call.serving.tenant, parts)))

    def returned(self, call: Call) -> None:
        """See Caller."""
        self._open.pop(call.call, None)
        if not self._open:
            self._pause.end()
        if call.bulk_bytes:
            self._give_back(call.serving.tenant, call.bulk_bytes)

    def _infer(self, infer: Infer, now: Nanoseconds) -> None:
        number, bulk_bytes = infer.call, infer.bulk_bytes
        if number <= self._last_call:
            raise protocol(f"call {number} after call {self._last_call}: calls count up")
        self._last_call = number
        serving = self._calls.serving.get(infer.replica_id)
        if bulk_bytes:
            if infer.payload:
                raise protocol(f"call {number} has a payload and bulk_bytes: a payload comes one way only")
            self._draw(infer, serving)
        elif len(infer.payload) > self._inline_bytes:
            raise protocol(
                f"call {number} has {len(infer.payload)} bytes inline; more than {self._inline_bytes} go as chunks"
            )
        if serving is None:
            self._not_ready(infer)
            return
        call = self._calls.begin(self, infer, serving, now)
        if call is not None:
            self._open[number] = call

    def _draw(self, infer: Infer, serving: Serving | None) -> None:
        tenant = self._tenant(infer)
        if serving is not None and tenant != serving.tenant:
            raise protocol(
                f"call {infer.call} names tenant {tenant!r}; replica {infer.replica_id} is {serving.tenant!r}'s"
            )
        try:
            self._incoming.draw(tenant, infer.bulk_bytes)
        except ValueError as error:
            raise protocol(f"call {infer.call} exceeds its tenant's credit: {error}") from None

    def _tenant(self, infer: Infer) -> str:
        return infer.tenant or self._tenants.get(infer.replica_id, "")

    def _not_ready(self, infer: Infer) -> None:
        refusal = Refusal(
            Reason.MODEL_NOT_READY,
            f"replica {infer.replica_id} is not served here (any more)",
            facts={"replica_id": infer.replica_id},
        )
        self._results.append(Result(call=infer.call, status=to_status(refusal).SerializeToString()))
        self.primary.wake()
        if infer.bulk_bytes:
            self._give_back(self._tenant(infer), infer.bulk_bytes)

    def _cancel(self, number: int) -> None:
        call = self._open.get(number)
        if call is None:
            return
        if call.phase is Phase.ANSWERED:
            if self._turns.withdraw(number, call.serving.tenant):
                del self._open[number], self._sending[number]
                self._calls.sent(call)
            return
        self._calls.cancel(call)

    def _credit(self, tenant: str, amount: int) -> None:
        try:
            self._outgoing.grant(tenant, amount)
        except ValueError as error:
            raise protocol(f"credits: {error}") from None
        self._announce(self._turns.start(tenant))

    def _announce(self, started: Sequence[Transfer]) -> None:
        """Credit covers these: their results go out, and their chunks take turns."""
        now = time.monotonic_ns()
        for transfer in started:
            call, batch = self._sending[transfer.call]
            call.announced = now
            length = transfer.length
            self._results.append(Result(call=transfer.call, bulk_bytes=length, stages=stages(call, batch, now)))
        if started:
            self.primary.wake()
            self.bulk.wake()

    def _give_back(self, tenant: str, amount: int) -> None:
        self._incoming.grant(tenant, amount)
        self._grants[tenant] = self._grants.get(tenant, 0) + amount
        self.primary.wake()

    def sends_from(self, client: WorkerClient) -> bool:
        """Whether an answer that lies in this worker's memory is still being sent."""
        return any(call.serving.client is client for call, _ in self._sending.values())

    async def _wait_for(self, number: int) -> None:
        """Waits until the primary stream has come as far as this call."""
        async with asyncio.timeout(CHUNK_WAIT_S):
            while number > self._last_call and not self.ended:
                self._arrived.clear()
                await self._arrived.wait()

    def _chunk(self, call: Call, offset: int, data: bytes) -> None:
        """Writes a chunk where it belongs; the last one completes its call."""
        if offset != call.received_bytes or offset + len(data) > call.bulk_bytes:
            raise protocol(
                f"call {call.call}: a chunk of {len(data)} bytes at {offset}, "
                f"where byte {call.received_bytes} of {call.bulk_bytes} comes next"
            )
        if offset == 0:
            # Its block has room to spare: the first tensor is moved to where it is aligned.
            call.base += -(first_raw_start(data) or 0) % ALIGNMENT
        view = call.serving.client.inputs.view
        start = call.base + offset
        view[start : start + len(data)] = data
        call.received_bytes += len(data)
        if call.received_bytes == call.bulk_bytes:
            self._calls.complete(call)

    def _fill_primary(self) -> ExecuteResponse | None:
        if not (self._results or self._grants or self._loads):
            return None
        response = ExecuteResponse()
        size = taken = 0
        for result in self._results:
            taken += 1
            size += len(result.payload)
            if size >= MESSAGE_BYTES:
                break
        response.results.extend(self._results[:taken])
        del self._results[:taken]
        for tenant, amount in self._grants.items():
            response.credits.append(Credit(tenant=tenant, bytes=amount))
        for replica, (waiting, wait_us) in self._loads.items():
            response.loads.append(Load(replica_id=replica, waiting_requests=waiting, expected_wait_us=wait_us))
        self._grants.clear()
        self._loads.clear()
        return response

    def _fill_bulk(self) -> ExecuteResponse | None:
        response, size = ExecuteResponse(), 0
        while size < MESSAGE_BYTES and (cut := self._turns.next_chunk(self._chunk_bytes)) is not None:
            transfer, offset, data = cut
            response.chunks.append(Chunk(call=transfer.call, offset=offset, data=data))
            size += len(data)
            if not transfer.left:
                call, _ = self._sending.pop(transfer.call)
                self._open.pop(transfer.call, None)
                self._calls.sent(call)
        return response if size else None


def protocol(message: str) -> Refusal:
    """The refusal that ends a stream whose messages break the contract."""
    return Refusal(Reason.PROTOCOL, message)
