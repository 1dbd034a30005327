"""From OTLP spans to plain data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status, TracesData

from services.common import attributes
from services.tracestore.core.spans import Event, Link, Scalar, SpanView


def views(data: TracesData) -> Iterator[SpanView]:
    """The spans of an answer as plain data."""
    for group in data.resource_spans:
        resource = _plain(group.resource.attributes)
        service = str(resource.get(attributes.SERVICE_NAME, ""))
        for scope in group.scope_spans:
            for span in scope.spans:
                yield _view(span, service)


def _view(span: Span, service: str) -> SpanView:
    failed = span.status.code == Status.STATUS_CODE_ERROR
    kinds = Span.SpanKind.DESCRIPTOR.values_by_number
    return SpanView(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex() or None,
        name=span.name,
        service=service,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        kind=kinds[span.kind].name.removeprefix("SPAN_KIND_").lower() if span.kind in kinds else "unspecified",
        attributes=_plain(span.attributes),
        events=tuple(Event(event.name, event.time_unix_nano, _plain(event.attributes)) for event in span.events),
        links=tuple(Link(link.trace_id.hex(), link.span_id.hex(), _plain(link.attributes)) for link in span.links),
        error=(span.status.message or "failed") if failed else None,
    )


def _plain(pairs: Sequence[KeyValue]) -> dict[str, Scalar]:
    return {pair.key: scalar(pair.value) for pair in pairs}


def scalar(value: AnyValue) -> Scalar:
    """An attribute's value as plain data: text for what is no scalar, and for what is no number."""
    kind = value.WhichOneof("value")
    if kind == "double_value" and not math.isfinite(value.double_value):
        # No number that anything could be reckoned with.
        return str(value.double_value)
    if kind in ("string_value", "bool_value", "int_value", "double_value"):
        return getattr(value, kind)
    if kind == "array_value":
        return ", ".join(str(scalar(item)) for item in value.array_value.values)
    return value.bytes_value.hex() if kind == "bytes_value" else ""
