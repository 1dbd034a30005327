"""ModelStreamInfer: many requests over one call, served at the same time.

Answers come as they are ready, those of one request id in the order of its requests (requests without an id are of one id).
A refusal travels in `error_message`, and the stream goes on; a caller who sends `triton_grpc_error: true` gets the first one
as the status of the call instead. What is in hand is bounded, so that a caller who does not read is not read from.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import structlog

from services._proto.inference import grpc_service_pb2 as pb
from services.common.access.callers import Caller, calling
from services.common.access.guard import Guard
from services.common.errors import Reason, Refusal
from services.frontend.core.order import Order, Ticket
from services.frontend.core.wire import Limits, framed, request_id
from services.frontend.inference import Answered, Inference

log = structlog.get_logger()

METHOD = "ModelStreamInfer"
GRPC_ERROR_KEY = "triton_grpc_error"
FIRST_REQUESTS = 8
"""What a stream may have in hand before its caller has read anything: whoever never does costs that much, and no more."""
UNEXPECTED = Refusal(Reason.INTERNAL, "an unexpected error; the service's log has it")
FINAL = pb.ModelInferResponse(
    parameters={"triton_final_response": pb.InferParameter(bool_param=True)}
).SerializeToString()
"""What makes an answer the last one of its request, put behind its bytes: every request here has one answer."""


class Bounds(NamedTuple):
    """What one stream may have in hand, and how many streams a tenant may have."""

    requests: int
    bytes: int
    streams: int


class _Told(NamedTuple):
    """An answer on its way to the caller. held_bytes: what it counts for in the stream. answered: what is `gone` once it is
    sent; None: a refusal."""

    message: bytes
    held_bytes: int
    answered: Answered | None
    refusal: Refusal | None


class Streams:
    """Serves ModelStreamInfer."""

    def __init__(self, inference: Inference, guard: Guard, limits: Limits, bounds: Bounds) -> None:
        self._inference, self._guard, self._limits, self._bounds = inference, guard, limits, bounds
        self._open: dict[str, int] = {}

    async def infer(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """inference.ModelInferRequest in, inference.ModelStreamInferResponse out, both as bytes. Raises Refusal."""
        shown, caller = context.invocation_metadata(), calling()
        metadata, tenant = dict(shown), caller.tenant
        self._enter(tenant)
        # Asked of every request: a key may be revoked while its stream is open. Who came by certificate shows nothing here.
        asks = lambda: found if isinstance(found := self._guard.identify(shown), Refusal) else caller
        conversation = _Conversation(
            self._inference, self._limits, self._bounds, context, asks if self._guard.shows(shown) else lambda: caller
        )
        reader = asyncio.ensure_future(conversation.read(requests))
        strict = str(metadata.get(GRPC_ERROR_KEY, "")).lower() == "true"
        try:
            while (told := await conversation.next()) is not None:
                if strict and told.refusal is not None:
                    raise told.refusal
                try:
                    yield told.message
                finally:
                    # Also where the caller has left it unread.
                    conversation.sent(told)
            if reader.done():
                reader.result()
        finally:
            reader.cancel()
            conversation.end()
            await asyncio.gather(reader, return_exceptions=True)
            self._leave(tenant)

    def _enter(self, tenant: str) -> None:
        count = self._open.get(tenant, 0)
        if count >= self._bounds.streams:
            raise Refusal(
                Reason.QUOTA_EXCEEDED,
                f"tenant {tenant!r} has {count} streams open, as many as one frontend serves it (APPORTION_FRONTEND_STREAMS)",
                facts={"streams": count, "limit": self._bounds.streams},
            )
        self._open[tenant] = count + 1

    def _leave(self, tenant: str) -> None:
        left = self._open[tenant] - 1
        if left:
            self._open[tenant] = left
        else:
            del self._open[tenant]


class _Conversation:
    """One stream: what was asked and not yet told."""

    def __init__(
        self,
        inference: Inference,
        limits: Limits,
        bounds: Bounds,
        context: Any,
        caller: Callable[[], Caller | Refusal],
    ) -> None:
        self._inference, self._limits, self._bounds, self._context = inference, limits, bounds, context
        self._caller = caller
        self._order: Order[_Told] = Order()
        self._ready: deque[_Told] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._held_requests = self._held_bytes = 0
        self._window = min(FIRST_REQUESTS, bounds.requests)
        self._whole = False
        self._room, self._wake = asyncio.Event(), asyncio.Event()

    async def read(self, requests: AsyncIterator[bytes]) -> None:
        """Takes requests in as long as there is room, until the caller has no more."""
        try:
            async for payload in requests:
                self._take(payload)
                while self._held_requests >= self._window or self._held_bytes >= self._bounds.bytes:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self._whole = True
            self._wake.set()

    async def next(self) -> _Told | None:
        """The next answer to send; None: everything that was asked is answered, and nothing more will be."""
        while not self._ready:
            if self._whole and not self._held_requests:
                return None
            self._wake.clear()
            await self._wake.wait()
        return self._ready.popleft()

    def sent(self, told: _Told) -> None:
        """An answer has left: there is room for another request."""
        self._held_requests -= 1
        self._held_bytes -= told.held_bytes
        self._window = min(self._window + 1, self._bounds.requests)
        if told.answered is not None:
            self._inference.gone(told.answered)
        self._room.set()

    def end(self) -> None:
        """Nobody reads any more: what is in flight is cancelled."""
        for task in self._tasks:
            task.cancel()
        for told in (*self._ready, *self._order.left()):
            if told.answered is not None:
                self._inference.gone(told.answered)
        self._ready.clear()

    def _take(self, payload: bytes) -> None:
        self._held_requests += 1
        self._held_bytes += len(payload)
        ticket = self._order.begin(request_id(payload, self._limits))
        task = asyncio.ensure_future(self._serve(payload, ticket))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, payload: bytes, ticket: Ticket[_Told]) -> None:
        answered = None
        try:
            answered = await self._inference.answer(payload, self._context, self._caller(), METHOD)
            refusal, model = answered.request.refusal, answered.request.model
        except Exception as error:
            log.error("unexpected error", method=METHOD, exc_info=error)
            refusal, model = UNEXPECTED, ""
        if answered is not None and refusal is None:
            message = framed(answered.content, FINAL)
        else:
            message, answered = refused(refusal or UNEXPECTED, ticket.key, model), None
        held_bytes = max(len(payload), len(message))
        self._held_bytes += held_bytes - len(payload)
        self._ready.extend(self._order.finish(ticket, _Told(message, held_bytes, answered, refusal)))
        self._wake.set()


def refused(refusal: Refusal, key: bytes, model: str) -> bytes:
    """A refusal as a message of the stream. It names the request by its id, where that is text."""
    named = pb.ModelInferResponse(model_name=model, id=key.decode(errors="replace"))
    named.parameters["triton_final_response"].bool_param = True
    return pb.ModelStreamInferResponse(
        error_message=f"[{refusal.reason}] {refusal.message}", infer_response=named
    ).SerializeToString()
