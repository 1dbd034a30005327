"""From OTLP to rows of the store: what is checked, what is indexed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from services.common import attributes

MOST_SPAN_BYTES = 256 << 10
MOST_RESOURCE_BYTES = 16 << 10
MOST_INDEXED_CHARS = 256
MOST_NS = (1 << 63) - 1
UNKNOWN_SERVICE = "unknown_service"
"""OpenTelemetry's name for a resource that gives none."""


@dataclass(slots=True)
class Row:
    """One span as it is stored. resource: a serialised ResourceSpans with one scope and no spans; body: the Span."""

    trace_id: bytes
    span_id: bytes
    resource: bytes
    service: str
    operation: str
    kind: int
    start_ns: int
    end_ns: int
    tenant: str | None
    model: str | None
    violated: bool
    error: bool
    body: bytes


@dataclass(slots=True)
class Decoded:
    """What came out of one export request."""

    rows: list[Row] = field(default_factory=list)
    rejected: int = 0
    problem: str = ""
    """What was wrong with the first span that was rejected."""

    def reject(self, spans: int, problem: str) -> None:
        """Counts spans that cannot be stored."""
        self.rejected += spans
        self.problem = self.problem or problem


def decode(request: ExportTraceServiceRequest) -> Decoded:
    """Rows for all spans that are well formed; the others are counted with the first one's problem."""
    decoded = Decoded()
    for group in request.resource_spans:
        service = text_of(group.resource.attributes, attributes.SERVICE_NAME) or UNKNOWN_SERVICE
        for scope in group.scope_spans:
            head = ResourceSpans(resource=group.resource, scope_spans=[ScopeSpans(scope=scope.scope)])
            resource = head.SerializeToString()
            if len(resource) > MOST_RESOURCE_BYTES:
                decoded.reject(len(scope.spans), f"resource: {len(resource)} bytes, more than {MOST_RESOURCE_BYTES}")
                continue
            for span in scope.spans:
                _decode_span(decoded, span, resource, service[:MOST_INDEXED_CHARS])
    return decoded


def _decode_span(decoded: Decoded, span: Span, resource: bytes, service: str) -> None:
    body = span.SerializeToString()
    problem = problem_of(span, len(body))
    if problem is not None:
        decoded.reject(1, problem)
        return
    tenant, model = text_of(span.attributes, attributes.TENANT_NAME), text_of(span.attributes, attributes.MODEL_NAME)
    decoded.rows.append(
        Row(
            trace_id=span.trace_id,
            span_id=span.span_id,
            resource=resource,
            service=service,
            operation=span.name[:MOST_INDEXED_CHARS],
            kind=span.kind,
            start_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
            tenant=tenant and tenant[:MOST_INDEXED_CHARS],
            model=model and model[:MOST_INDEXED_CHARS],
            violated=text_of(span.attributes, attributes.SLO_VIOLATED) == "true",
            error=span.status.code == Status.STATUS_CODE_ERROR,
            body=body,
        )
    )


def problem_of(span: Span, size_bytes: int) -> str | None:
    """Why a span cannot be stored; None where it can."""
    if len(span.trace_id) != 16 or not any(span.trace_id):
        return f"trace_id: {len(span.trace_id)} bytes; it takes 16, not all zero"
    if len(span.span_id) != 8 or not any(span.span_id):
        return f"span_id: {len(span.span_id)} bytes; it takes 8, not all zero"
    if len(span.parent_span_id) not in (0, 8):
        return f"parent_span_id: {len(span.parent_span_id)} bytes; it takes 8 or none"
    if max(span.start_time_unix_nano, span.end_time_unix_nano) > MOST_NS:
        return "start_time_unix_nano, end_time_unix_nano: past the year 2262"
    if span.end_time_unix_nano < span.start_time_unix_nano:
        return "end_time_unix_nano: before start_time_unix_nano"
    if size_bytes > MOST_SPAN_BYTES:
        return f"span: {size_bytes} bytes, more than {MOST_SPAN_BYTES}"
    return None


def text_of(pairs: Iterable[KeyValue], key: str) -> str | None:
    """An attribute's value as Jaeger's searches spell it; None where it is absent or no scalar."""
    for pair in pairs:
        if pair.key == key:
            return as_text(pair.value)
    return None


def as_text(value: AnyValue) -> str | None:
    """A scalar as text: true, 42, 0.5; None for anything else."""
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    if kind == "int_value":
        return str(value.int_value)
    if kind == "double_value":
        return repr(value.double_value)
    return None
