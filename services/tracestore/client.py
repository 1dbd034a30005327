"""Traces for people and checkers, from any backend that speaks Jaeger's query API: the embedded store or a Jaeger."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterator, Mapping, Sequence

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status, TracesData

from services._proto.jaeger.api_v3 import query_service_pb2 as pb
from services._proto.jaeger.api_v3.query_service_pb2_grpc import QueryServiceStub
from services.common import attributes
from services.common.channel import NOTHING, Credentials, connect
from services.common.errors import invalid
from services.tracestore.core.spans import Event, Link, Scalar, SpanView

TIMEOUT_S = 30.0
MOST_LINKED_TRACES = 16


async def fetch_trace(query_address: str, trace_id: str, *, credentials: Credentials = NOTHING) -> list[SpanView]:
    """The spans of one trace, by start; empty where none is held.

    trace_id: 32 hexadecimal digits. Raises grpc.aio.AioRpcError where the backend cannot answer.
    """
    async with connect(query_address, to="tracestore", credentials=credentials) as channel:
        return await _trace(_stub(channel), trace_id)


async def fetch_linked(
    query_address: str, spans: Sequence[SpanView], *, credentials: Credentials = NOTHING
) -> list[SpanView]:
    """The spans of the traces that `spans` link to, their batches; at most MOST_LINKED_TRACES traces."""
    own = {span.trace_id for span in spans}
    ids = dict.fromkeys(link.trace_id for span in spans for link in span.links if link.trace_id not in own)
    async with connect(query_address, to="tracestore", credentials=credentials) as channel:
        stub = _stub(channel)
        return [span for trace_id in list(ids)[:MOST_LINKED_TRACES] for span in await _trace(stub, trace_id)]


async def find_traces(
    query_address: str,
    *,
    start_ns: int,
    end_ns: int,
    service: str | None = None,
    operation: str | None = None,
    wanted: Mapping[str, str] | None = None,
    duration_min_ns: int | None = None,
    duration_max_ns: int | None = None,
    limit: int = 100,
    credentials: Credentials = NOTHING,
) -> list[list[SpanView]]:
    """Whole traces with a span that started within [start_ns, end_ns) (Unix time) and matches; the latest first.

    wanted: attributes with their values as text ("true", "42"). Raises Refusal where the range is empty and
    grpc.aio.AioRpcError where the backend cannot answer.
    """
    if start_ns >= end_ns:
        raise invalid("start_ns, end_ns", "the range is empty")
    query = pb.TraceQueryParameters(
        service_name=service or "",
        operation_name=operation or "",
        attributes=wanted or {},
        start_time_min=_timestamp(start_ns),
        start_time_max=_timestamp(end_ns),
        search_depth=limit,
        raw_traces=True,
    )
    if duration_min_ns is not None:
        query.duration_min.FromNanoseconds(duration_min_ns)
    if duration_max_ns is not None:
        query.duration_max.FromNanoseconds(duration_max_ns)
    async with connect(query_address, to="tracestore", credentials=credentials) as channel:
        spans = await _collected(_stub(channel).FindTraces(pb.FindTracesRequest(query=query), timeout=TIMEOUT_S))
    traces: dict[str, list[SpanView]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, []).append(span)
    ordered = [sorted(trace, key=lambda span: span.start_ns) for trace in traces.values()]
    return sorted(ordered, key=lambda trace: trace[0].start_ns, reverse=True)


def views(data: TracesData) -> Iterator[SpanView]:
    """The spans of an answer as plain data."""
    for group in data.resource_spans:
        resource = _plain(group.resource.attributes)
        service = str(resource.get(attributes.SERVICE_NAME, ""))
        for scope in group.scope_spans:
            for span in scope.spans:
                yield _view(span, service)


async def _trace(stub: QueryServiceStub, trace_id: str) -> list[SpanView]:
    call = stub.GetTrace(pb.GetTraceRequest(trace_id=trace_id, raw_traces=True), timeout=TIMEOUT_S)
    try:
        return sorted(await _collected(call), key=lambda span: span.start_ns)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return []
        raise


async def _collected(answers: AsyncIterable[TracesData]) -> list[SpanView]:
    return [span async for data in answers for span in views(data)]


def _stub(channel: grpc.aio.Channel) -> QueryServiceStub:
    return QueryServiceStub(channel)  # type: ignore[no-untyped-call]


def _timestamp(nanoseconds: int) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromNanoseconds(nanoseconds)
    return timestamp


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
    return {pair.key: _scalar(pair.value) for pair in pairs}


def _scalar(value: AnyValue) -> Scalar:
    kind = value.WhichOneof("value")
    if kind in ("string_value", "bool_value", "int_value", "double_value"):
        return getattr(value, kind)
    if kind == "array_value":
        return ", ".join(str(_scalar(item)) for item in value.array_value.values)
    return value.bytes_value.hex() if kind == "bytes_value" else ""
