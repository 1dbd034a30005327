"""One request as the frontend knows it, from its arrival to the verdict."""

from __future__ import annotations

import random

from services.common.errors import Refusal
from services.common.spans import parse_traceparent, parse_tracestate
from services.frontend.calls import Call


class Request:
    """Everything that accounting needs; filled in while the request advances.

    method: by which it came. arrived_ns: on the monotonic clock that verdicts go by. objective_ns, deadline_ns: budgets from there; None: none.
    timed: the caller wants to be told what it took. tenant, model: "" while unknown. attempts: the calls it took, the last one its answer's.
    """

    __slots__ = (
        "arrived_ns",
        "attempts",
        "deadline_ns",
        "executor_id",
        "method",
        "model",
        "objective_ns",
        "parent_span_id",
        "priority",
        "refusal",
        "request_id",
        "span_id",
        "tenant",
        "timed",
        "trace_id",
        "trace_state",
        "version",
    )

    def __init__(self, arrived_ns: int, method: str = "ModelInfer") -> None:
        self.arrived_ns, self.method = arrived_ns, method
        self.tenant = self.model = self.executor_id = ""
        self.version = self.priority = 0
        self.request_id = b""
        self.objective_ns: int | None = None
        self.deadline_ns: int | None = None
        self.refusal: Refusal | None = None
        self.attempts: list[Call] = []
        self.trace_id = self.span_id = b""
        self.parent_span_id: bytes | None = None
        self.trace_state = ""
        self.timed = False

    def join_trace(self, traceparent: str | None, tracestate: str | None = None) -> None:
        """Takes the caller's trace id and span as parent, where there are any; else a trace begins here.

        The caller's sampled flag is not looked at: what is kept is our verdict's to say.
        """
        context = parse_traceparent(traceparent) if traceparent is not None else None
        if context is not None:
            self.trace_id, self.parent_span_id, _ = context
            if tracestate is not None:
                self.trace_state = parse_tracestate(tracestate)
            self.span_id = (random.getrandbits(64) or 1).to_bytes(8, "big")
            return
        # One draw for both: the high bit keeps either from being all zero.
        drawn = (random.getrandbits(192) | 1 << 191 | 1 << 63).to_bytes(24, "big")
        self.trace_id, self.span_id = drawn[:16], drawn[16:]
