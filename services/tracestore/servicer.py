"""OTLP's TraceService: spans in."""

from __future__ import annotations

from typing import Any

import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceServicer

from services.tracestore.rows import decode
from services.tracestore.store import SPANS, Store

log = structlog.get_logger()


class Collector(TraceServiceServicer):
    """Stores what exporters send. Spans that are malformed are left out and told of, as OTLP's partial success."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
        """Answers when the spans are committed. RESOURCE_EXHAUSTED where they cannot be."""
        decoded = decode(request)
        if decoded.rejected:
            SPANS.labels("rejected").inc(decoded.rejected)
            log.info("malformed spans", spans=decoded.rejected, problem=decoded.problem, peer=context.peer())
        if decoded.rows:
            await self._store.insert(decoded.rows)
        if not decoded.rejected:
            return ExportTraceServiceResponse()
        partial = ExportTracePartialSuccess(rejected_spans=decoded.rejected, error_message=decoded.problem)
        return ExportTraceServiceResponse(partial_success=partial)
