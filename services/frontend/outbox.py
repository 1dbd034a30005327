"""What is ready for an executor: everything small in as few messages as the stream takes, large payloads in turns."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic_ns

from services._proto.apportion.v1 import executor_pb2 as pb
from services.frontend.calls import CREDIT, EXECUTOR, TRANSPORT, Call
from services.frontend.core.credit import Credits

MESSAGE_BYTES = 1 << 20
"""Inline payload of one message: enough to coalesce, too little to hold up what comes next."""
CHUNK_BYTES = 256 << 10
IDLE_FLUSH_S = 0.02
"""Verdicts wait this long for a request whose message they can share."""


class Outbox:
    """The sending side of one session.

    sent: calls by number that await their answer; the receiving side takes them out.
    """

    def __init__(self, inline_bytes: int, credit_bytes: int, sent: dict[int, Call]) -> None:
        self._inline_bytes, self._sent = inline_bytes, sent
        self._credits: Credits[Call] = Credits(credit_bytes)
        self._held: set[Call] = set()
        self._infers: deque[Call] = deque()
        self._bulk: deque[tuple[Call, int]] = deque()
        self._cancels: list[int] = []
        self._verdicts: list[tuple[int, bool, bool]] = []
        self._returned: dict[str, int] = {}
        self._next = 0
        self._flush: asyncio.TimerHandle | None = None
        self._ready, self._bulk_ready = asyncio.Event(), asyncio.Event()

    def submit(self, call: Call) -> None:
        """Takes a call to be sent as soon as the stream, and for a large one its tenant's credit, allows."""
        if len(call.payload) > self._inline_bytes and not self._credits.draw(call.tenant, len(call.payload), call):
            call.stage = CREDIT
            self._held.add(call)
            return
        self._enqueue(call)

    def withdraw(self, call: Call) -> None:
        """Nobody waits for the call any more: dequeues it, or tells the executor."""
        if call.number:
            if self._sent.pop(call.number, None) is not None:
                self._cancels.append(call.number)
                self._ready.set()
        elif call in self._held:
            self._held.discard(call)
            self._admit(self._credits.withdraw(call.tenant, call))

    def verdict(self, call: Call, violated: bool, keep: bool) -> None:
        """Tells how a call ended; goes with the next message, or on its own a little later."""
        if not call.number:
            return
        self._verdicts.append((call.number, violated, keep))
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(IDLE_FLUSH_S, self._flush_now)

    @property
    def has_verdicts(self) -> bool:
        """Whether any verdict waits to be told."""
        return bool(self._verdicts)

    def give_back(self, tenant: str, size_bytes: int) -> None:
        """Grants the executor what a large answer drew, now that its memory is free."""
        self._returned[tenant] = self._returned.get(tenant, 0) + size_bytes
        self._ready.set()

    def granted(self, tenant: str, size_bytes: int) -> None:
        """Takes the executor's credit for a tenant's large payloads."""
        self._admit(self._credits.grant(tenant, size_bytes))

    def unsent(self) -> list[Call]:
        """Calls that no message has carried yet."""
        return [*self._infers, *self._held]

    def close(self) -> None:
        """Nothing more is sent."""
        if self._flush is not None:
            self._flush.cancel()

    async def message(self) -> pb.ExecuteRequest:
        """The next message for the primary stream, as soon as there is something to say."""
        while True:
            await self._ready.wait()
            self._ready.clear()
            request = pb.ExecuteRequest()
            infers, rest = self._put_infers(request), self._put_rest(request)
            if infers or rest:
                return request

    async def chunk(self) -> pb.ExecuteRequest:
        """The next message for the bulk stream: one chunk of the call whose turn it is."""
        while True:
            while not self._bulk:
                self._bulk_ready.clear()
                await self._bulk_ready.wait()
            call, offset = self._bulk.popleft()
            if call.future.done():
                continue
            end = offset + CHUNK_BYTES
            if end < len(call.payload):
                self._bulk.append((call, end))
            else:
                call.stage = EXECUTOR
            chunk = pb.Chunk(call=call.number, offset=offset, data=call.payload[offset:end])
            return pb.ExecuteRequest(chunks=[chunk])

    def _enqueue(self, call: Call) -> None:
        call.stage = TRANSPORT
        self._infers.append(call)
        self._ready.set()

    def _admit(self, calls: list[Call]) -> None:
        for call in calls:
            self._held.discard(call)
            self._enqueue(call)

    def _flush_now(self) -> None:
        self._flush = None
        self._ready.set()

    def _put_infers(self, request: pb.ExecuteRequest) -> bool:
        now, room, first = monotonic_ns(), MESSAGE_BYTES, self._next
        while self._infers:
            if room <= 0:
                self._ready.set()
                break
            call = self._infers.popleft()
            inline = len(call.payload) <= self._inline_bytes
            if call.future.done():
                if not inline:
                    self._admit(self._credits.grant(call.tenant, len(call.payload)))
                continue
            self._next += 1
            call.number = self._next
            self._sent[call.number] = call
            put_infer(request, call, now, inline)
            if inline:
                room -= len(call.payload)
                call.stage = EXECUTOR
            else:
                self._bulk.append((call, 0))
                self._bulk_ready.set()
        return self._next > first

    def _put_rest(self, request: pb.ExecuteRequest) -> bool:
        if not (self._cancels or self._verdicts or self._returned):
            return False
        for number in self._cancels:
            request.cancels.add(call=number)
        self._cancels.clear()
        for number, violated, keep in self._verdicts:
            request.verdicts.add(call=number, violated=violated, keep=keep)
        self._verdicts.clear()
        for tenant, size_bytes in self._returned.items():
            request.credits.add(tenant=tenant, bytes=size_bytes)
        self._returned.clear()
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        return True


def put_infer(request: pb.ExecuteRequest, call: Call, now: int, inline: bool) -> None:
    """Adds a call to a message, its budgets being what is left at `now`."""
    call.sent_ns = now
    infer = request.infers.add(
        call=call.number,
        replica_id=call.replica_id,
        deadline_us=(call.deadline_ns - now) // 1000,
        priority=call.priority,
    )
    if inline:
        infer.payload = call.payload
    else:
        infer.bulk_bytes = len(call.payload)
        infer.tenant = call.tenant
    if call.objective_ns is not None:
        infer.objective_us = (call.objective_ns - now) // 1000
    infer.span.trace_id = call.trace_id
    infer.span.span_id = call.span_id
