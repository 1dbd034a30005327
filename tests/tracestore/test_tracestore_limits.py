"""The store stays up and within its bounds, whatever it is sent and however little room there is."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from services._proto.jaeger.api_v3.query_service_pb2 import GetTraceRequest
from services._proto.jaeger.api_v3.query_service_pb2_grpc import QueryServiceStub
from services.common.errors import Reason, Refusal
from services.common.process import StartupError
from services.common.status import from_rpc_error
from services.common.telemetry import new_span_id, new_trace_id
from services.tracestore.client import fetch_trace, find_traces
from services.tracestore.queries import Queries, Search
from services.tracestore.rows import Row, decode
from services.tracestore.store import Store

MIB = 1 << 20


def span(**more: Any) -> Span:
    now = time.time_ns()
    values = {
        "trace_id": new_trace_id(),
        "span_id": new_span_id(),
        "name": "x",
        "start_time_unix_nano": now,
        "end_time_unix_nano": now,
    }
    return Span(**{**values, **more})


def request(*spans: Span) -> ExportTraceServiceRequest:
    return ExportTraceServiceRequest(resource_spans=[ResourceSpans(scope_spans=[ScopeSpans(spans=spans)])])


async def until(holds: Callable[[], bool]) -> None:
    """Waits until something holds; what follows asserts it."""
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.02)


def rows(count: int, body_bytes: int = 200) -> list[Row]:
    filler = KeyValue(key="filler", value=AnyValue(string_value="x" * body_bytes))
    return decode(request(*(span(attributes=[filler]) for _ in range(count)))).rows


def held(path: Path, sql: str = "SELECT count(*) FROM spans") -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute(sql).fetchone()[0])
    finally:
        connection.close()


@pytest.fixture
def make_store(tmp_path: Path) -> Any:
    made: list[Store] = []

    def make(**more: Any) -> Store:
        values = {"retention_s": 3600, "retention_bytes": 64 * MIB, "queue_spans": 100_000}
        made.append(Store(tmp_path / "traces.db", **{**values, **more}))
        return made[-1]

    yield make
    for store in made:
        if store._thread.is_alive():
            store.close()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"trace_id": b""}, "trace_id"),
        ({"trace_id": b"\0" * 16}, "trace_id"),
        ({"trace_id": b"x" * 1000}, "trace_id"),
        ({"span_id": b"\0" * 8}, "span_id"),
        ({"span_id": b"x" * 7}, "span_id"),
        ({"parent_span_id": b"x"}, "parent_span_id"),
        ({"start_time_unix_nano": (1 << 64) - 1, "end_time_unix_nano": (1 << 64) - 1}, "start_time_unix_nano"),
        ({"start_time_unix_nano": 2, "end_time_unix_nano": 1}, "end_time_unix_nano"),
        ({"name": "x" * MIB}, "span"),
    ],
)
async def test_a_malformed_span_is_left_out_and_named_and_its_neighbours_are_stored(
    store: Any, wrong: dict[str, Any], named: str
) -> None:
    good = span()
    async with grpc.aio.insecure_channel(store.listen) as channel:
        answer = await TraceServiceStub(channel).Export(request(span(**wrong), good))
    assert answer.partial_success.rejected_spans == 1
    assert answer.partial_success.error_message.startswith(named)
    assert len(await fetch_trace(store.query_listen, good.trace_id.hex())) == 1


async def test_odd_but_well_formed_spans_are_stored(store: Any) -> None:
    odd = span(
        name="\0'; DROP TABLE spans; --\x1b[2J",
        kind=77,
        attributes=[
            KeyValue(key="tenant.name", value=AnyValue(int_value=7)),
            KeyValue(key="slo.violated", value=AnyValue(string_value="perhaps")),
            KeyValue(key="nested", value=AnyValue(array_value=ArrayValue(values=[AnyValue(bytes_value=b"\xff")] * 3))),
            KeyValue(key="none"),
        ],
        start_time_unix_nano=0,
    )
    async with grpc.aio.insecure_channel(store.listen) as channel:
        answer = await TraceServiceStub(channel).Export(request(odd))
    assert answer.partial_success.rejected_spans == 0
    (view,) = await fetch_trace(store.query_listen, odd.trace_id.hex())
    assert (view.kind, view.attributes["tenant.name"], view.attributes["none"]) == ("unspecified", 7, "")
    (trace,) = await find_traces(store.query_listen, start_ns=0, end_ns=1, wanted={"tenant.name": "7"})
    assert trace == [view]


async def test_bytes_that_are_no_message_and_messages_too_large_end_the_call_not_the_store(store: Any) -> None:
    async with grpc.aio.insecure_channel(store.listen, options=[("grpc.max_send_message_length", -1)]) as channel:
        export = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
        # An attribute of lists in lists, deeper than a parser can follow: request, resource, scope, span, pair, value.
        nested = b""
        for field in (5, 1) * 100 + (2, 9, 2, 2, 1):
            nested = bytes([field << 3 | 2]) + _varint(len(nested)) + nested
        for junk in (b"\xff" * 100, nested, b"\x0a" + b"\xff" * 9, b"x" * (17 * MIB)):
            with pytest.raises(grpc.aio.AioRpcError):
                await export(junk)
        good = span()
        await TraceServiceStub(channel).Export(request(good))
    assert len(await fetch_trace(store.query_listen, good.trace_id.hex())) == 1


def _varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


async def test_a_resource_too_large_to_be_kept_takes_its_spans_with_it() -> None:
    export = request(span(), span())
    export.resource_spans[0].resource.attributes.add(key="big", value=AnyValue(string_value="x" * 20_000))
    decoded = decode(export)
    assert (decoded.rows, decoded.rejected) == ([], 2)
    assert decoded.problem.startswith("resource")


async def test_the_oldest_arrivals_go_when_there_are_too_many_bytes(make_store: Any, tmp_path: Path) -> None:
    store = make_store(retention_bytes=2 * MIB)
    first = rows(1)[0]
    await store.insert([first])
    for _ in range(12):
        await store.insert(rows(1000, 500))
    last = rows(1)[0]
    await store.insert([last])
    path = tmp_path / "traces.db"
    await until(lambda: not (store_bytes(path) > 2 * MIB))
    store.close()
    assert store_bytes(path) <= 2 * MIB
    assert held(path, f"SELECT count(*) FROM spans WHERE span_id = x'{first.span_id.hex()}'") == 0
    assert held(path, f"SELECT count(*) FROM spans WHERE span_id = x'{last.span_id.hex()}'") == 1


def store_bytes(path: Path) -> int:
    return (held(path, "PRAGMA page_count") - held(path, "PRAGMA freelist_count")) * held(path, "PRAGMA page_size")


async def test_what_is_older_than_its_retention_goes_by_arrival_not_by_what_it_claims(
    make_store: Any, tmp_path: Path
) -> None:
    store = make_store(retention_s=3600)
    future = decode(request(*(span(start_time_unix_nano=(1 << 63) - 2, end_time_unix_nano=(1 << 63) - 1),) * 1)).rows
    await store.insert(future + rows(2500))
    store.close()
    path = tmp_path / "traces.db"
    connection = sqlite3.connect(path)
    connection.execute("UPDATE spans SET received_s = received_s - 7200")
    connection.commit()
    connection.close()
    fresh = rows(1)
    again = make_store(retention_s=3600)
    await again.insert(fresh)
    await until(lambda: not (held(path) > 1))
    again.close()
    assert held(path, f"SELECT count(*) FROM spans WHERE span_id = x'{fresh[0].span_id.hex()}'") == 1
    assert held(path) == 1
    assert held(path, "SELECT count(*) FROM resources") == 1


async def test_a_full_disk_costs_the_spans_and_tells_the_exporter_and_the_store_stays_up(
    tmp_path: Path, run_store: Any
) -> None:
    filler = KeyValue(key="filler", value=AnyValue(string_value="x" * 100_000))
    async with run_store(tmp_path, retention_bytes=MIB) as where, grpc.aio.insecure_channel(where.listen) as channel:
        # More in one transaction than the file may ever hold.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await TraceServiceStub(channel).Export(request(*(span(attributes=[filler]) for _ in range(60))))
        refusal = from_rpc_error(caught.value)
        assert refusal is not None
        assert (caught.value.code(), refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.STORAGE_FULL)
        good = span()
        await TraceServiceStub(channel).Export(request(good))
        assert len(await fetch_trace(where.query_listen, good.trace_id.hex())) == 1


async def test_more_spans_than_may_wait_are_refused_with_the_numbers(make_store: Any) -> None:
    store = make_store(queue_spans=10)
    # The writer is held up, as by a slow disk.
    with store._change:
        store._waiting = 8
    with pytest.raises(Refusal) as caught:
        await store.insert(rows(3))
    assert caught.value.reason is Reason.OVERLOADED
    assert caught.value.facts == {"waiting": "8", "limit": "10"}
    store._waiting = 0
    await store.insert(rows(3))


async def test_a_damaged_database_is_put_aside(tmp_path: Path, run_store: Any) -> None:
    (tmp_path / "traces.db").write_bytes(b"this is no database" * 1000)
    async with run_store(tmp_path) as where, grpc.aio.insecure_channel(where.listen) as channel:
        await TraceServiceStub(channel).Export(request(span()))
    assert [name for name in os.listdir(tmp_path) if name.startswith("traces.db.unreadable-")]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot write"):
        Store(tmp_path / "file" / "traces.db", retention_s=1, retention_bytes=MIB, queue_spans=1)


async def test_a_query_that_reads_for_too_long_is_ended(make_store: Any, tmp_path: Path) -> None:
    store = make_store()
    await store.insert(rows(5000))
    queries = Queries(tmp_path / "traces.db", timeout_s=0.0)
    with pytest.raises(Refusal) as caught:
        await queries.find(Search(0, 1 << 62, attributes={"no such": "attribute"}))
    assert caught.value.reason is Reason.DEADLINE_EXCEEDED
    queries.close()


async def test_a_trace_of_large_spans_comes_in_parts_that_any_client_takes(store: Any) -> None:
    filler = KeyValue(key="filler", value=AnyValue(string_value="x" * 200_000))
    trace_id = new_trace_id()
    spans = [span(trace_id=trace_id, attributes=[filler]) for _ in range(60)]
    async with grpc.aio.insecure_channel(store.listen) as channel:
        await TraceServiceStub(channel).Export(request(*spans))
    parts = []
    async with grpc.aio.insecure_channel(store.query_listen) as channel:
        async for part in QueryServiceStub(channel).GetTrace(GetTraceRequest(trace_id=trace_id.hex())):
            parts.append([s.span_id for s in part.resource_spans[0].scope_spans[0].spans])
    assert len(parts) > 1
    assert sorted(each for part in parts for each in part) == sorted(s.span_id for s in spans)


async def test_many_resources_do_not_stay_behind_their_spans(make_store: Any, tmp_path: Path) -> None:
    store = make_store(retention_bytes=MIB)
    for number in range(6):
        batch: list[Row] = []
        for each in range(500):
            export = request(span())
            name = f"s{number}-{each}-" + "x" * 500
            export.resource_spans[0].resource.attributes.add(key="service.name", value=AnyValue(string_value=name))
            batch += decode(export).rows
        await store.insert(batch)
    path = tmp_path / "traces.db"
    await until(lambda: not (store_bytes(path) > MIB))
    store.close()
    assert store_bytes(path) <= MIB
    assert held(path, "SELECT count(*) FROM resources") == held(path, "SELECT count(DISTINCT resource) FROM spans")
