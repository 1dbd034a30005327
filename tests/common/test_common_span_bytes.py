"""Spans written as bytes are the spans that OTLP's own messages would be."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from services.common.otlp import pairs
from services.common.span_bytes import encoded, request_for, varint
from services.common.spans import Kind, SpanRecord, Value

INT64 = st.integers(-(1 << 63) + 1, (1 << 63) - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
# Beyond what OTLP holds, too: integers of more bits, and things that are no attribute at all.
values: st.SearchStrategy[Any] = st.one_of(
    texts, st.booleans(), INT64, st.integers(0, 300), st.integers(), st.floats(allow_nan=False), st.none(),
    st.lists(texts, max_size=4), st.tuples(texts, texts),
)  # fmt: skip
attributes = st.dictionaries(texts, values, max_size=8)
times = st.integers(0, (1 << 62) - 1)
ids = st.binary(min_size=8, max_size=8)
traces = st.binary(min_size=16, max_size=16)
records = st.builds(
    SpanRecord,
    texts,
    traces,
    ids,
    st.none() | ids,
    times,
    times,
    st.sampled_from(Kind),
    attributes,
    st.lists(st.tuples(texts, times, attributes), max_size=3),
    st.lists(st.tuples(traces, ids, attributes), max_size=3),
    st.none() | texts,
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=300),
)


def message(record: SpanRecord, offset_ns: int) -> Span:
    """The same by the messages that OTLP's own contract makes."""
    failed = record.error is not None
    span = Span(
        trace_id=record.trace_id,
        span_id=record.span_id,
        parent_span_id=record.parent_span_id or b"",
        trace_state=record.trace_state,
        name=record.name,
        kind=record.kind,  # type: ignore[arg-type]
        start_time_unix_nano=record.start_ns + offset_ns,
        end_time_unix_nano=record.end_ns + offset_ns,
        attributes=pairs(record.attributes),
        status=Status(code=Status.STATUS_CODE_ERROR, message=record.error or "") if failed else None,
    )
    for name, at_ns, about in record.events:
        span.events.add(name=name, time_unix_nano=at_ns + offset_ns, attributes=pairs(about))
    for trace_id, span_id, about in record.links:
        span.links.add(trace_id=trace_id, span_id=span_id, attributes=pairs(about))
    return span


def whole(resource: Mapping[str, Value], spans: Sequence[Span]) -> ExportTraceServiceRequest:
    scope = ScopeSpans(scope=InstrumentationScope(name="apportion"), spans=spans)
    return ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=Resource(attributes=pairs(resource)), scope_spans=[scope])]
    )


@given(record=records, offset_ns=times)
def test_a_span_is_what_its_message_would_be(record: SpanRecord, offset_ns: int) -> None:
    assert Span.FromString(encoded(record, offset_ns)) == message(record, offset_ns)


@given(resource=attributes, members=st.lists(records, max_size=4))
def test_an_export_is_what_its_message_would_be(resource: dict[str, Any], members: list[SpanRecord]) -> None:
    made = request_for(resource, [encoded(each, 0) for each in members])
    assert ExportTraceServiceRequest.FromString(made) == whole(resource, [message(each, 0) for each in members])


def test_a_count_and_a_truth_under_the_same_name_are_told_apart() -> None:
    for value in (1, True, 0, False, 1.0, "1"):
        record = SpanRecord("x", b"t" * 16, b"s" * 8, None, 0, 1, attributes={"a": value})
        (pair,) = Span.FromString(encoded(record, 0)).attributes
        assert pair == pairs({"a": value})[0]


def test_a_time_that_no_clock_tells_and_a_text_that_is_none_are_errors_and_not_other_spans() -> None:
    with pytest.raises(struct.error):
        encoded(SpanRecord("x", b"t" * 16, b"s" * 8, None, -1, 1), 0)
    with pytest.raises(UnicodeEncodeError):
        encoded(SpanRecord("x", b"t" * 16, b"s" * 8, None, 0, 1, attributes={"a": "\ud800"}), 0)


@pytest.mark.parametrize(
    ("value", "written"), [(0, "00"), (127, "7f"), (128, "8001"), (16383, "ff7f"), (16384, "808001")]
)
def test_integers_take_seven_bits_a_byte(value: int, written: str) -> None:
    assert varint(value).hex() == written
