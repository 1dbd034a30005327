"""One request on its way to one replica."""

from __future__ import annotations

import asyncio
import io
from typing import Protocol

from services._proto.apportion.v1.executor_pb2 import Stages
from services.common.errors import Reason, Refusal

CREDIT, CONNECT, TRANSPORT, EXECUTOR = "credit", "connect", "transport", "executor"
"""Where a call waits, as the frontend sees it: for leave to send a large payload, for the connection, to be written to
the stream, for its answer."""


class Carrier(Protocol):
    """Whoever holds a call on its way."""

    def leave(self, call: Call) -> None:
        """Nobody waits for the call any more: dequeues it, or tells the executor."""

    def verdict(self, call: Call, violated: bool, keep: bool) -> None:
        """Passes on how the call ended, once it was sent."""

    def release(self, call: Call) -> None:
        """The answer has left this process, or will never be used: what it drew is granted again."""


class Call:
    """A request and the future of its answer: the bytes of inference.ModelInferResponse, or a Refusal.

    deadline_ns, objective_ns: on this process' monotonic clock; objective None: the class `batch`.
    number: its id within the session; 0 until it was sent. A call whose future is done is dropped wherever it waits.
    """

    __slots__ = (
        "answer",
        "bulk_bytes",
        "carrier",
        "deadline_ns",
        "future",
        "number",
        "objective_ns",
        "payload",
        "priority",
        "received_bytes",
        "received_ns",
        "replica_id",
        "sent_ns",
        "span_id",
        "stage",
        "stages",
        "submitted_ns",
        "tenant",
        "trace_id",
    )

    def __init__(
        self,
        tenant: str,
        replica_id: int,
        payload: bytes,
        future: asyncio.Future[bytes | Refusal],
        *,
        deadline_ns: int,
        objective_ns: int | None = None,
        priority: int = 0,
        trace_id: bytes = b"",
        span_id: bytes = b"",
    ) -> None:
        self.tenant, self.replica_id, self.payload, self.future = tenant, replica_id, payload, future
        self.deadline_ns, self.objective_ns, self.priority = deadline_ns, objective_ns, priority
        self.trace_id, self.span_id = trace_id, span_id
        self.number = 0
        self.stage = CONNECT
        self.submitted_ns = 0
        """When it was handed on."""
        self.sent_ns = self.received_ns = 0
        """When it was written to the stream, and when the last of its answer was read from there; 0: it was not."""
        self.stages: Stages | None = None
        """What its executor says of the time since then."""
        self.answer: io.BytesIO | None = None
        self.received_bytes = 0
        self.bulk_bytes: int | None = None
        """The answer's length where it comes in chunks, from the moment it is announced."""
        self.carrier: Carrier | None = None

    def finish(self, answer: bytes | Refusal) -> None:
        """Answers whoever waits; nothing where nobody does."""
        if not self.future.done():
            self.future.set_result(answer)

    def abandon(self) -> None:
        """The caller is gone, or its time is up: dequeue it, or tell the executor."""
        if self.carrier is not None:
            self.carrier.leave(self)

    def release(self) -> None:
        """Its answer has left this process."""
        if self.carrier is not None:
            self.carrier.release(self)

    def expire(self) -> None:
        """Its deadline has passed: answers so, naming the stage, and abandons it."""
        if self.future.done():
            return
        self.finish(expired(self.stage))
        self.abandon()


def expired(stage: str) -> Refusal:
    """The refusal of a request whose deadline has passed in a stage of the frontend."""
    return Refusal(
        Reason.DEADLINE_EXCEEDED,
        f"the deadline has passed in stage `{stage}`; its work has been cancelled",
        facts={"stage": stage},
    )


def lost(address: str, why: str) -> Refusal:
    """The refusal of a call whose executor cannot be reached, or has gone while it was there."""
    return Refusal(
        Reason.EXECUTOR_LOST,
        f"the executor at {address} {why}; the request may be tried again",
        facts={"executor_address": address},
        retry_after_s=0.1,
    )
