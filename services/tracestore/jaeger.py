"""Jaeger's QueryService: traces out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from google.protobuf.message import Message
from opentelemetry.proto.trace.v1.trace_pb2 import Span, TracesData

from services._proto.jaeger.api_v3 import query_service_pb2 as pb
from services._proto.jaeger.api_v3.query_service_pb2_grpc import QueryServiceServicer
from services.common import attributes
from services.common.access.callers import calling
from services.common.errors import Reason, Refusal, invalid
from services.tracestore.queries import Queries, Search
from services.tracestore.rows import MOST_NS

DEFAULT_TRACES = 100
MOST_TRACES = 10_000
PREFIX = "SPAN_KIND_"
NOBODY = "/"
"""No tenant's name."""


class Query(QueryServiceServicer):
    """Answers from the store. Every failure names the field that is wrong."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries

    async def GetTrace(self, request: pb.GetTraceRequest, _context: Any) -> AsyncIterator[TracesData]:
        """One trace. NOT_FOUND (TRACE_NOT_FOUND) where no span of it is held."""
        trace_id = _trace_id(request.trace_id)
        start_ns = _nanoseconds(request, "start_time") or 0
        end_ns = _nanoseconds(request, "end_time")
        held = False
        async for part in self._queries.trace(
            trace_id, start_ns=start_ns, end_ns=MOST_NS if end_ns is None else end_ns, tenant=_own()
        ):
            held = True
            yield part
        if not held:
            message = f"trace_id: no span of {request.trace_id} is held; it was not kept, or its time is over"
            raise Refusal(Reason.TRACE_NOT_FOUND, message, field="trace_id")

    async def FindTraces(self, request: pb.FindTracesRequest, _context: Any) -> AsyncIterator[TracesData]:
        """Whole traces, the latest match first."""
        search, tenant = _search(request.query), _own()
        if tenant is not None:
            # Who asks for another tenant's finds what who asks for nobody's does.
            asked = search.attributes.get(attributes.TENANT_NAME, tenant)
            search = replace(search, attributes={**search.attributes, attributes.TENANT_NAME: tenant})
            if asked != tenant:
                search = replace(search, attributes={**search.attributes, attributes.TENANT_NAME: NOBODY})
        for trace_id in await self._queries.find(search):
            async for part in self._queries.trace(trace_id, tenant=tenant):
                yield part

    async def GetServices(self, _request: pb.GetServicesRequest, _context: Any) -> pb.GetServicesResponse:
        """All services that have spans."""
        return pb.GetServicesResponse(services=await self._queries.services())

    async def GetOperations(self, request: pb.GetOperationsRequest, _context: Any) -> pb.GetOperationsResponse:
        """The span names of one service."""
        if not request.service:
            raise invalid("service", "is required")
        operations = await self._queries.operations(request.service, _kind(request.span_kind))
        return pb.GetOperationsResponse(
            operations=[pb.Operation(name=name, span_kind=_kind_name(kind)) for name, kind in operations]
        )


def _own() -> str | None:
    """The tenant whose spans alone the caller may see; None: everybody's."""
    caller = calling()
    return None if caller.everybodys else caller.tenant


def _trace_id(text: str) -> bytes:
    if len(text) not in (16, 32) or not set(text) <= set("0123456789abcdefABCDEF"):
        raise invalid("trace_id", "takes 16 or 32 hexadecimal digits")
    return bytes.fromhex(text.rjust(32, "0"))


def _search(query: pb.TraceQueryParameters) -> Search:
    if query.filter:
        raise Refusal(Reason.UNSUPPORTED, "query.filter: is not understood here", field="query.filter")
    start_min_ns, start_max_ns = (_nanoseconds(query, name) for name in ("start_time_min", "start_time_max"))
    if start_min_ns is None or start_max_ns is None:
        raise invalid("query.start_time_min, query.start_time_max", "are required")
    if not 0 <= query.search_depth <= MOST_TRACES:
        raise invalid("query.search_depth", f"{query.search_depth} is not between 0 and {MOST_TRACES}")
    return Search(
        start_min_ns=start_min_ns,
        start_max_ns=start_max_ns,
        service=query.service_name or None,
        operation=query.operation_name or None,
        attributes=dict(query.attributes),
        duration_min_ns=_nanoseconds(query, "duration_min"),
        duration_max_ns=_nanoseconds(query, "duration_max"),
        limit=query.search_depth or DEFAULT_TRACES,
    )


def _nanoseconds(message: Message, field: str) -> int | None:
    """A timestamp's or duration's nanoseconds, held within what the store can hold; None where it is not set."""
    if not message.HasField(field):
        return None
    value = getattr(message, field)
    return min(MOST_NS, max(0, value.seconds * 1_000_000_000 + value.nanos))


def _kind(text: str) -> int | None:
    if not text:
        return None
    name = PREFIX + text.upper().removeprefix(PREFIX)
    if name not in Span.SpanKind.keys():  # noqa: SIM118 - an enum's wrapper is no mapping
        raise invalid("span_kind", f"{text!r} is none of server, client, internal, producer, consumer")
    return Span.SpanKind.Value(name)


def _kind_name(kind: int) -> str:
    names = Span.SpanKind.DESCRIPTOR.values_by_number
    return names[kind].name.removeprefix(PREFIX).lower() if kind in names else "unspecified"
