"""Spans go in by a real OTLP exporter and come out by Jaeger's query API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from services._proto.jaeger.api_v3 import query_service_pb2 as pb
from services._proto.jaeger.api_v3.query_service_pb2_grpc import QueryServiceStub
from services.common import attributes
from services.common.channel import Credentials
from services.common.errors import Reason
from services.common.process import StartupError
from services.common.status import from_rpc_error
from services.common.telemetry import Kind, SpanRecord, Tracer, new_span_id
from services.tracestore.client import fetch_linked, fetch_trace, find_traces

HOUR_NS = 3600 * 10**9


async def sent(listen: str, *records: SpanRecord, service: str = "frontend") -> Tracer:
    """The tracer that has sent them."""
    tracer = Tracer(service, listen)
    for record in records:
        tracer.emit(record)
    assert await asyncio.to_thread(tracer.flush, 10.0)
    await asyncio.to_thread(tracer.shutdown)
    assert (tracer.exported, tracer.dropped) == (len(records), 0)
    return tracer


async def found(query: str, **how: Any) -> list[str]:
    now = time.time_ns()
    traces = await find_traces(query, **{"start_ns": now - HOUR_NS, "end_ns": now + HOUR_NS, **how})
    return [trace[0].trace_id for trace in traces]


async def test_a_span_comes_back_as_it_went_in(store: Any, make_record: Callable[..., SpanRecord]) -> None:
    batch = make_record("batch")
    record = make_record(
        kind=Kind.SERVER,
        attributes={"tenant.name": "a", "slo.violated": True, "batch.rows": 7, "slo.ratio": 0.5},
        events=[("retry", time.monotonic_ns(), {"executor.id": "e1"})],
        links=[(batch.trace_id, batch.span_id, {attributes.LINK_KIND: attributes.LINK_BATCH})],
        error="too late",
    )
    before = time.time_ns()
    await sent(store.listen, record, batch)
    (view,) = await fetch_trace(store.query_listen, record.trace_id.hex())
    assert (view.name, view.kind, view.service, view.error) == ("ModelInfer", "server", "frontend", "too late")
    assert view.attributes == record.attributes
    assert view.duration_ns == record.end_ns - record.start_ns
    assert abs(view.start_ns - before) < 60 * 10**9
    assert (view.events[0].name, view.events[0].attributes) == ("retry", {"executor.id": "e1"})
    assert view.links[0].span_id == batch.span_id.hex()
    (linked,) = await fetch_linked(store.query_listen, [view])
    assert linked.span_id == batch.span_id.hex()


async def test_a_foreign_exporter_is_understood(store: Any) -> None:
    provider = TracerProvider(resource=Resource.create({"service.name": "somebody"}))
    exporter = OTLPSpanExporter(endpoint=f"http://{store.listen}", insecure=True)
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def work() -> int:
        with provider.get_tracer("t").start_as_current_span("work") as span:
            span.set_attribute("peers", ["x", "y"])
            return int(span.get_span_context().trace_id)

    trace_id = await asyncio.to_thread(work)
    (view,) = await fetch_trace(store.query_listen, f"{trace_id:032x}")
    assert (view.service, view.name, view.attributes["peers"]) == ("somebody", "work", "x, y")
    await asyncio.to_thread(provider.shutdown)


async def test_spans_of_several_services_make_one_trace(store: Any, make_record: Callable[..., SpanRecord]) -> None:
    top = make_record(kind=Kind.SERVER)
    below = make_record("compute", trace_id=top.trace_id, parent_span_id=top.span_id)
    await sent(store.listen, top)
    await sent(store.listen, below, service="executor")
    views = await fetch_trace(store.query_listen, top.trace_id.hex())
    assert {(view.service, view.parent_span_id) for view in views} == {
        ("frontend", None),
        ("executor", top.span_id.hex()),
    }


async def test_a_search_finds_what_matches_in_one_and_the_same_span(
    store: Any, make_record: Callable[..., SpanRecord]
) -> None:
    late = make_record(attributes={"tenant.name": "a", "model.name": "m", "slo.violated": True, "lane.id": 3})
    good = make_record(attributes={"tenant.name": "a", "model.name": "m", "slo.violated": False, "lane.id": 1})
    long = make_record("compute", attributes={"tenant.name": "b"}, start_ns=time.monotonic_ns() - 5 * 10**9)
    # Its two spans match only together.
    split = make_record(attributes={"tenant.name": "c"})
    other = make_record("other", trace_id=split.trace_id, attributes={"lane.id": 3})
    failed = make_record(error="broken")
    await sent(store.listen, late, good, long, split, other)
    await sent(store.listen, failed, service="executor")
    search = lambda **how: found(store.query_listen, **how)
    ids = lambda *records: {record.trace_id.hex() for record in records}
    assert set(await search()) == ids(late, good, long, split, failed)
    assert set(await search(service="executor")) == ids(failed)
    assert set(await search(service="frontend", operation="compute")) == ids(long)
    assert set(await search(wanted={"slo.violated": "true"})) == ids(late)
    assert set(await search(wanted={"slo.violated": "false", "tenant.name": "a"})) == ids(good)
    assert set(await search(wanted={"tenant.name": "a", "lane.id": "3"})) == ids(late)
    assert set(await search(wanted={"tenant.name": "c", "lane.id": "3"})) == set()
    assert set(await search(wanted={"service.name": "executor"})) == ids(failed)
    assert set(await search(wanted={"error": "true"})) == ids(failed)
    assert set(await search(duration_min_ns=10**9)) == ids(long)
    assert ids(long).isdisjoint(await search(duration_max_ns=10**9))
    assert set(await search(end_ns=time.time_ns() - HOUR_NS // 2, start_ns=time.time_ns() - HOUR_NS)) == set()


async def test_a_search_gives_the_latest_up_to_its_limit(store: Any, make_record: Callable[..., SpanRecord]) -> None:
    now = time.monotonic_ns()
    records = [make_record(start_ns=now - 10**9 * age, end_ns=now) for age in range(5)]
    await sent(store.listen, *records)
    assert await found(store.query_listen, limit=2) == [record.trace_id.hex() for record in records[:2]]


async def test_services_and_operations_are_listed(store: Any, make_record: Callable[..., SpanRecord]) -> None:
    await sent(store.listen, make_record("infer", kind=Kind.SERVER), make_record("queue"), make_record("queue"))
    await sent(store.listen, make_record("compute"), service="executor")
    async with grpc.aio.insecure_channel(store.query_listen) as channel:
        stub = QueryServiceStub(channel)
        assert list((await stub.GetServices(pb.GetServicesRequest())).services) == ["executor", "frontend"]
        answer = await stub.GetOperations(pb.GetOperationsRequest(service="frontend"))
        assert [(o.name, o.span_kind) for o in answer.operations] == [("infer", "server"), ("queue", "internal")]
        answer = await stub.GetOperations(pb.GetOperationsRequest(service="frontend", span_kind="server"))
        assert [o.name for o in answer.operations] == ["infer"]


@pytest.mark.parametrize(
    ("question", "reason", "field"),
    [
        (lambda s: s.GetTrace(pb.GetTraceRequest(trace_id="ab" * 16)), Reason.TRACE_NOT_FOUND, "trace_id"),
        (lambda s: s.GetTrace(pb.GetTraceRequest(trace_id="no")), Reason.FIELD_INVALID, "trace_id"),
        (lambda s: s.GetTrace(pb.GetTraceRequest(trace_id="+" + "1" * 31)), Reason.FIELD_INVALID, "trace_id"),
        (
            lambda s: s.FindTraces(pb.FindTracesRequest()),
            Reason.FIELD_INVALID,
            "query.start_time_min, query.start_time_max",
        ),
        (
            lambda s: s.FindTraces(
                pb.FindTracesRequest(
                    query=pb.TraceQueryParameters(
                        start_time_min=Timestamp(), start_time_max=Timestamp(seconds=1), search_depth=-1
                    )
                )
            ),
            Reason.FIELD_INVALID,
            "query.search_depth",
        ),
    ],
)
async def test_a_question_that_cannot_be_answered_is_told_why(
    store: Any, question: Any, reason: Reason, field: str
) -> None:
    async with grpc.aio.insecure_channel(store.query_listen) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in question(QueryServiceStub(channel)):
                pass
    refusal = from_rpc_error(caught.value)
    assert refusal is not None
    assert (refusal.reason, refusal.field) == (reason, field)


async def test_an_unknown_kind_of_span_is_refused(store: Any) -> None:
    async with grpc.aio.insecure_channel(store.query_listen) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await QueryServiceStub(channel).GetOperations(pb.GetOperationsRequest(service="x", span_kind="odd"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_trace_of_many_spans_comes_whole(store: Any, make_record: Callable[..., SpanRecord]) -> None:
    top = make_record()
    spans = [make_record(f"s{n}", trace_id=top.trace_id, parent_span_id=top.span_id) for n in range(1200)]
    await sent(store.listen, top, *spans)
    views = await fetch_trace(store.query_listen, top.trace_id.hex())
    assert {view.span_id for view in views} == {span.span_id.hex() for span in [top, *spans]}


async def test_a_second_start_on_the_same_data_finds_every_trace(
    tmp_path: Any, run_store: Any, make_record: Callable[..., SpanRecord]
) -> None:
    record = make_record()
    async with run_store(tmp_path) as first:
        await sent(first.listen, record)
    async with run_store(tmp_path) as second:
        assert len(await fetch_trace(second.query_listen, record.trace_id.hex())) == 1
        # What was held before the restart is known as a duplicate.
        await sent(second.listen, record)
        assert len(await fetch_trace(second.query_listen, record.trace_id.hex())) == 1


async def test_an_unknown_trace_is_no_spans_to_the_client(store: Any) -> None:
    assert await fetch_trace(store.query_listen, new_span_id().hex() * 2) == []


async def test_the_store_will_not_listen_beyond_loopback_without_a_token(tmp_path: Any, run_store: Any) -> None:
    from services.tracestore.serve import serve
    from services.tracestore.settings import TraceStoreSettings

    settings = TraceStoreSettings(listen="127.0.0.1:0", query_listen="0.0.0.0:0", data=tmp_path)
    with pytest.raises(StartupError, match="mesh token"):
        await serve(settings, asyncio.Event())


async def test_with_a_mesh_token_both_ports_ask_for_it(
    tmp_path: Any, run_store: Any, make_record: Callable[..., SpanRecord]
) -> None:
    record = make_record()
    async with run_store(tmp_path, mesh_token="s3cret") as where:
        stranger, member = Tracer("x", where.listen), Tracer("x", where.listen, credentials=Credentials("s3cret"))
        for tracer in (stranger, member):
            tracer.emit(record)
            await asyncio.to_thread(tracer.shutdown)
        assert (stranger.exported, stranger.dropped, member.exported) == (0, 1, 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await fetch_trace(where.query_listen, record.trace_id.hex())
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert len(await fetch_trace(where.query_listen, record.trace_id.hex(), credentials=Credentials("s3cret"))) == 1


async def test_metrics_say_what_became_of_spans(
    tmp_path: Any, run_store: Any, make_record: Callable[..., SpanRecord]
) -> None:
    from prometheus_client import REGISTRY

    value = lambda: REGISTRY.get_sample_value("apportion_tracestore_spans_total", {"outcome": "stored"}) or 0.0
    before = value()
    async with run_store(tmp_path) as where:
        await sent(where.listen, make_record(), make_record())
    assert value() - before == 2
