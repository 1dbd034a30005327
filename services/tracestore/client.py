"""Traces for people and checkers, from any backend that speaks Jaeger's query API: the embedded store or a Jaeger."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping, Sequence

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from services._proto.apportion.v1.rollups_pb2 import ReadRollupsRequest
from services._proto.apportion.v1.rollups_pb2_grpc import RollupServiceStub
from services._proto.jaeger.api_v3 import query_service_pb2 as pb
from services._proto.jaeger.api_v3.query_service_pb2_grpc import QueryServiceStub
from services.common.channel import NOTHING, Credentials, connect
from services.common.errors import invalid
from services.tracestore.core.rollups import Slot
from services.tracestore.core.spans import SpanView
from services.tracestore.messages import slot_of
from services.tracestore.views import views

TIMEOUT_S = 30.0
MOST_LINKED_TRACES = 16
LEAST_SEARCH_NS = 1_000_000
"""A search is not divided any further."""


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


async def find_every(
    query_address: str,
    *,
    start_ns: int,
    end_ns: int,
    service: str | None = None,
    wanted: Mapping[str, str] | None = None,
    depth: int = 1000,
    credentials: Credentials = NOTHING,
) -> list[SpanView]:
    """The spans of all traces that `find_traces` would find, however many: where as many as `depth` match, each half of the time
    is asked for by itself."""
    found: dict[tuple[str, str], SpanView] = {}
    waiting = [(start_ns, end_ns)]
    while waiting:
        first_ns, last_ns = waiting.pop()
        traces = await find_traces(
            query_address,
            start_ns=first_ns,
            end_ns=last_ns,
            service=service,
            wanted=wanted,
            limit=depth,
            credentials=credentials,
        )
        found |= {(span.trace_id, span.span_id): span for trace in traces for span in trace}
        if len(traces) >= depth and last_ns - first_ns > LEAST_SEARCH_NS:
            middle_ns = (first_ns + last_ns) // 2
            waiting += [(first_ns, middle_ns), (middle_ns, last_ns)]
    return list(found.values())


async def read_rollups(
    query_address: str,
    *,
    start_ns: int,
    end_ns: int,
    tenant: str = "",
    model: str = "",
    credentials: Credentials = NOTHING,
) -> list[Slot]:
    """What the embedded store counted within [start_ns, end_ns), by model and time.

    Raises grpc.aio.AioRpcError where the backend cannot answer: UNIMPLEMENTED where it is another one.
    """
    request = ReadRollupsRequest(start=_timestamp(start_ns), end=_timestamp(end_ns), tenant=tenant, model=model)
    async with connect(query_address, to="tracestore", credentials=credentials) as channel:
        stub = RollupServiceStub(channel)  # type: ignore[no-untyped-call]
        parts = stub.ReadRollups(request, timeout=TIMEOUT_S)
        return [slot_of(rollup) async for part in parts for rollup in part.rollups]


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
