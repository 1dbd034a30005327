"""Spans made afterwards: taken at once, exported off the path, lost in numbers, never in time."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from services.common import telemetry
from services.common.span_bytes import encoded
from services.common.spans import parse_tracestate
from services.common.telemetry import (
    SpanRecord,
    Tracer,
    format_traceparent,
    new_span_id,
    new_trace_id,
    parse_traceparent,
)


def record(name: str = "x", **more: Any) -> SpanRecord:
    now = time.monotonic_ns()
    values = {"trace_id": new_trace_id(), "span_id": new_span_id(), "parent_span_id": None}
    return SpanRecord(name=name, **{**values, "start_ns": now - 1000, "end_ns": now, **more})  # type: ignore[arg-type]


class Collector(TraceServiceServicer):
    """Notes what arrives; holds every call up while `hang` is set, and refuses while `broken`."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[Any] = []
        self.hang, self.broken = threading.Event(), False

    def Export(self, request: Any, context: Any) -> ExportTraceServiceResponse:
        while self.hang.is_set() and context.is_active():
            time.sleep(0.01)
        if self.broken:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        for group in request.resource_spans:
            self.resources.append(group.resource)
            self.spans += [span for scope in group.scope_spans for span in scope.spans]
        return ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Any:
    servicer = Collector()
    server = grpc.server(ThreadPoolExecutor(4))
    add_TraceServiceServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"  # type: ignore[attr-defined]
    server.start()
    yield servicer
    servicer.hang.clear()
    server.stop(None).wait()


def test_a_record_arrives_with_unix_times_and_the_resource_of_its_process(collector: Any) -> None:
    tracer = Tracer("executor", collector.address, resource={"executor.id": "e1"})
    parent = new_span_id()
    sent = record(parent_span_id=parent, attributes={"lane.id": 3, "big": 1 << 70, "odd": None}, error="why")
    tracer.emit(sent)
    assert tracer.flush(5)
    tracer.shutdown()
    (span,) = collector.spans
    assert (span.trace_id, span.span_id, span.parent_span_id) == (sent.trace_id, sent.span_id, parent)
    assert abs(span.end_time_unix_nano - time.time_ns()) < 60 * 10**9
    assert span.end_time_unix_nano - span.start_time_unix_nano == 1000
    assert span.status.message == "why"
    values = {pair.key: pair.value for pair in span.attributes}
    assert values["lane.id"].int_value == 3
    assert values["big"].string_value == str(1 << 70)
    resource = {pair.key: pair.value.string_value for pair in collector.resources[0].attributes}
    assert resource.items() >= {"service.name": "executor", "executor.id": "e1"}.items()


def test_without_an_endpoint_nothing_is_kept_and_nothing_is_dropped() -> None:
    tracer = Tracer("x", None)
    tracer.emit(record())
    assert tracer.flush(0)
    tracer.shutdown()
    assert (tracer.dropped, tracer.exported) == (0, 0)


def test_a_hung_collector_costs_spans_not_time(collector: Any) -> None:
    collector.hang.set()
    tracer = Tracer("x", collector.address, queue_spans=1000, timeout_s=30)
    records = [record() for _ in range(3000)]
    before = time.thread_time()
    for each in records:
        tracer.emit(each)
    # Processor time of this thread alone: it neither waited nor did the exporter's work. Far above what it takes.
    assert time.thread_time() - before < 0.3
    assert not tracer.flush(0.3)
    refused = tracer.dropped
    assert 3000 - 1000 - telemetry.EXPORT_SPANS <= refused <= 2000
    collector.hang.clear()
    assert tracer.flush(10)
    tracer.shutdown()
    assert len(collector.spans) == tracer.exported == 3000 - refused


def test_shutdown_does_not_wait_for_a_collector_that_hangs(collector: Any) -> None:
    collector.hang.set()
    tracer = Tracer("x", collector.address, timeout_s=60)
    for _ in range(5):
        tracer.emit(record())
    before = time.monotonic()
    tracer.shutdown(0.2)
    assert time.monotonic() - before < 30
    assert (tracer.dropped, tracer.exported) == (5, 0)


def test_a_collector_that_is_absent_and_one_that_refuses_cost_counted_spans(collector: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        absent = Tracer("x", f"127.0.0.1:{unused.getsockname()[1]}", timeout_s=1)
        absent.emit(record())
        assert absent.flush(10)
        absent.shutdown()
    assert (absent.dropped, absent.exported) == (1, 0)
    collector.broken = True
    tracer = Tracer("x", collector.address)
    tracer.emit(record())
    assert tracer.flush(10)
    collector.broken = False
    tracer.emit(record())
    assert tracer.flush(10)
    tracer.shutdown()
    assert (tracer.dropped, tracer.exported) == (1, 1)


def test_spans_wait_while_a_collector_that_has_failed_is_left_alone(
    collector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "FIRST_PAUSE_S", 60.0)
    collector.broken = True
    tracer = Tracer("x", collector.address)
    tracer.emit(record())
    while not tracer.dropped:
        time.sleep(0.01)
    collector.broken = False
    for _ in range(10):
        tracer.emit(record())
    time.sleep(2 * telemetry.EXPORT_EVERY_S)
    assert (tracer.dropped, tracer.exported) == (1, 0)
    assert tracer.flush(10), "whoever waits for them does not wait for the pause"
    assert (tracer.dropped, tracer.exported) == (1, 10)
    tracer.shutdown()


def test_prometheus_is_told_what_became_of_spans(collector: Any) -> None:
    told = lambda outcome: telemetry.SPANS.labels(outcome)._value.get()
    before = told("exported"), told("dropped")
    tracer = Tracer("x", collector.address)
    tracer.emit(record())
    tracer.emit(record(trace_id="no bytes"))
    assert tracer.flush(10)
    tracer.shutdown()
    assert (told("exported") - before[0], told("dropped") - before[1]) == (1, 1)


def test_a_record_that_cannot_be_encoded_takes_nothing_with_it(collector: Any) -> None:
    tracer = Tracer("x", collector.address)
    good = [record(), record()]
    tracer.emit(good[0])
    tracer.emit(record(trace_id="no bytes", attributes={"bad": "\ud800"}))
    tracer.emit(good[1])
    assert tracer.flush(10)
    tracer.shutdown()
    assert [span.span_id for span in collector.spans] == [each.span_id for each in good]
    assert (tracer.dropped, tracer.exported) == (1, 2)


def test_spans_after_shutdown_are_ignored(collector: Any) -> None:
    tracer = Tracer("x", collector.address)
    tracer.shutdown()
    tracer.emit(record())
    assert tracer.flush(0)


PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_traceparent_is_read() -> None:
    trace, span = bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736"), bytes.fromhex("00f067aa0ba902b7")
    assert parse_traceparent(PARENT) == (trace, span, 1)
    assert parse_traceparent("cc" + PARENT[2:] + "-what-the-future-will-be-like") == (trace, span, 1)
    assert format_traceparent(trace, span) == PARENT
    assert format_traceparent(trace, span, sampled=False).endswith("-00")


@pytest.mark.parametrize(
    "text",
    [
        "",
        PARENT.upper(),
        PARENT + "\n",
        " " + PARENT,
        PARENT + "-more",
        "ff" + PARENT[2:],
        "cc" + PARENT[2:] + ".what",
        PARENT[:-1],
        PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        PARENT.replace("00f067aa0ba902b7", "0" * 16),
        PARENT.replace("4", "٤"),
        PARENT.replace("-", "_"),
        "cc" + PARENT[2:] + "-" + "x" * 100_000,
        "\0" * 55,
    ],
)
def test_what_is_no_traceparent_is_nothing(text: str) -> None:
    assert parse_traceparent(text) is None


@given(st.text(max_size=80))
def test_no_text_makes_the_parser_fail(text: str) -> None:
    parse_traceparent(text)


@given(st.binary(min_size=16, max_size=16).filter(any), st.binary(min_size=8, max_size=8).filter(any), st.booleans())
def test_a_traceparent_survives_the_way_there_and_back(trace_id: bytes, span_id: bytes, sampled: bool) -> None:
    text = format_traceparent(trace_id, span_id, sampled=sampled)
    assert parse_traceparent(text) == (trace_id, span_id, int(sampled))


def test_ids_are_of_the_right_length_and_differ() -> None:
    assert {len(new_trace_id()) for _ in range(100)} == {16}
    assert {len(new_span_id()) for _ in range(100)} == {8}
    assert len({new_span_id() for _ in range(1000)}) == 1000


def test_encoding_turns_the_monotonic_clock_into_unix_time_by_one_offset() -> None:
    span = Span.FromString(encoded(record(start_ns=5, end_ns=9, events=[("e", 7, {})]), 1000))
    assert (span.start_time_unix_nano, span.end_time_unix_nano, span.events[0].time_unix_nano) == (1005, 1009, 1007)


def test_the_spans_of_a_trace_are_taken_together_or_not_at_all(collector: Any) -> None:
    collector.hang.set()
    tracer = Tracer("x", collector.address, queue_spans=10, timeout_s=30)
    assert not tracer.emit_all([record() for _ in range(11)])
    assert tracer.emit_all([record() for _ in range(10)])
    assert tracer.dropped == 11
    collector.hang.clear()
    assert tracer.flush(10)
    tracer.shutdown()
    assert (len(collector.spans), tracer.exported) == (10, 10)
    assert not tracer.emit_all([record()])


def test_an_empty_endpoint_is_none() -> None:
    tracer = Tracer("x", "")
    assert not tracer.enabled
    assert not tracer.emit_all([record()])


def test_a_tracestate_goes_along_unless_no_header_may_hold_it(collector: Any) -> None:
    tracer = Tracer("x", collector.address)
    assert tracer.emit_all([record(trace_state=parse_tracestate("a=1,b=2"))])
    assert tracer.flush(5)
    tracer.shutdown()
    assert collector.spans[0].trace_state == "a=1,b=2"
    assert parse_tracestate("a=" + "x" * 600) == ""
    assert parse_tracestate("a=\n") == ""


def test_traces_kept_by_chance_leave_half_of_the_room_to_violators(collector: Any) -> None:
    collector.hang.set()
    tracer = Tracer("x", collector.address, queue_spans=10, timeout_s=30)
    assert not tracer.emit_all([record() for _ in range(6)], spare=True)
    assert tracer.emit_all([record() for _ in range(6)])
    assert tracer.dropped == 6
    collector.hang.clear()
    tracer.shutdown()
