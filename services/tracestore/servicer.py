"""OTLP's TraceService and MetricsService: spans and counts in."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import structlog
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceServicer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceServicer
from prometheus_client import Counter

from services.tracestore import metering
from services.tracestore.rollups import Rollups
from services.tracestore.rows import decode
from services.tracestore.store import SPANS, Store

log = structlog.get_logger()

POINTS = Counter("apportion_tracestore_points", "Points of metrics that arrived, by what became of them.", ["outcome"])


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


class Meter(MetricsServiceServicer):
    """Counts what frontends tell. Other metrics, and points that are malformed, are left out and told of."""

    def __init__(self, rollups: Rollups) -> None:
        self._rollups = rollups

    async def Export(self, request: ExportMetricsServiceRequest, context: Any) -> ExportMetricsServiceResponse:
        """Answers when the counts are committed. RESOURCE_EXHAUSTED (STORAGE_FULL) where they cannot be: told again, none is
        lost."""
        metered = metering.decode(request)
        if metered.series:
            await asyncio.to_thread(self._rollups.count, metered.series, int(time.time()))
        POINTS.labels("counted").inc(metered.points - metered.rejected)
        if not metered.rejected:
            return ExportMetricsServiceResponse()
        POINTS.labels("rejected").inc(metered.rejected)
        log.info("points that are not counted", points=metered.rejected, problem=metered.problem, peer=context.peer())
        partial = ExportMetricsPartialSuccess(rejected_data_points=metered.rejected, error_message=metered.problem)
        return ExportMetricsServiceResponse(partial_success=partial)
