"""One request as the frontend knows it, from its arrival to the verdict."""

from __future__ import annotations

import random

from services.common.errors import Refusal
from services.common.telemetry import parse_traceparent
from services.frontend.calls import Call
from services.frontend.core.gate import Gate


class Request:
    """Everything that accounting needs; filled in while the request advances.

    arrived_ns: on the monotonic clock that verdicts go by. objective_ns, deadline_ns: budgets from there; None: none.
    tenant, model: "" while unknown. attempts: the calls it took, the last one its answer's.
    """

    __slots__ = (
        "arrived_ns",
        "attempts",
        "deadline_ns",
        "executor_id",
        "gate",
        "model",
        "objective_ns",
        "parent_span_id",
        "priority",
        "refusal",
        "request_id",
        "span_id",
        "tenant",
        "trace_id",
        "version",
    )

    def __init__(self, arrived_ns: int) -> None:
        self.arrived_ns = arrived_ns
        self.tenant = self.model = self.executor_id = ""
        self.version = self.priority = 0
        self.request_id = b""
        self.objective_ns: int | None = None
        self.deadline_ns: int | None = None
        self.refusal: Refusal | None = None
        self.gate: Gate | None = None
        self.attempts: list[Call] = []
        self.trace_id = self.span_id = b""
        self.parent_span_id: bytes | None = None

    def join_trace(self, traceparent: str | None) -> None:
        """Takes the caller's trace id and span as parent, where there are any; else a trace begins here.

        The caller's sampled flag is not looked at: what is kept is our verdict's to say.
        """
        context = parse_traceparent(traceparent) if traceparent is not None else None
        if context is not None:
            self.trace_id, self.parent_span_id, _ = context
            self.span_id = (random.getrandbits(64) or 1).to_bytes(8, "big")
            return
        # One draw for both: the high bit keeps either from being all zero.
        drawn = (random.getrandbits(192) | 1 << 191 | 1 << 63).to_bytes(24, "big")
        self.trace_id, self.span_id = drawn[:16], drawn[16:]
