"""A trace as a person reads it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

import services.common.attributes as names
from services.tracestore.core.lane import owner, seen_by
from services.tracestore.core.spans import Event, Link, SpanView, tree
from services.tracestore.core.waterfall import BAR_COLUMNS, duration_text, render

MS = 1_000_000


def view(span_id: str, start_ms: float, end_ms: float, parent: str | None = None, **more: Any) -> SpanView:
    values = {"trace_id": "t1", "name": span_id, "service": "frontend", **more}
    return SpanView(
        span_id=span_id, parent_span_id=parent, start_ns=int(start_ms * MS), end_ns=int(end_ms * MS), **values
    )


REQUEST = [
    view("queue", 1, 5, "infer", service="executor", attributes={names.LANE_ID: 2, names.SLO_STAGE: "queue"}),
    view(
        "infer",
        0,
        10,
        "caller's",
        kind="server",
        attributes={
            names.TENANT_NAME: "acme",
            names.MODEL_NAME: "minilm",
            names.SLO_VIOLATED: True,
            names.SLO_OBJECTIVE_US: 8000,
        },
    ),
    view("compute", 5, 10, "infer", service="executor", error="ran late"),
]


def test_a_waterfall_is_a_tree_with_bars_durations_and_what_matters() -> None:
    lines = render(REQUEST, [view("batch", 5, 10, trace_id="t2", attributes={names.BATCH_ROWS: 4})])
    assert lines == [
        "trace t1  3 spans  10.00 ms  VIOLATED",
        "infer · frontend     |━━━━━━━━━━━━━━━━━━━━━━━━━━━━|  10.00 ms  tenant=acme model=minilm objective=8.00 ms ✗",
        "  queue · executor   |  ━━━━━━━━━━━━              |   4.00 ms  lane=2",
        "  compute · executor |              ━━━━━━━━━━━━━━|   5.00 ms  error: ran late",
        "spent: queue 4.00 ms, unaccounted 6.00 ms",
        "to blame: unaccounted 6.00 ms, 6.00 ms too much",
        "",
        "linked t2",
        "batch · frontend     |              ━━━━━━━━━━━━━━|   5.00 ms  rows=4",
    ]


def test_a_span_whose_parent_is_missing_says_so_unless_it_was_called_from_outside() -> None:
    lines = render([view("lost", 0, 1, "gone"), view("called", 0, 1, "gone", kind="server")])
    assert lines[1].startswith("called · frontend  ")
    assert lines[2].startswith("lost · frontend (parent missing)")


def test_nothing_gives_no_lines() -> None:
    assert render([]) == []


def test_a_name_cannot_steer_the_terminal_and_a_long_one_is_cut() -> None:
    hostile = view("x", 0, 1, name="\x1b[2Jgone\r\n\u202e", attributes={names.TENANT_NAME: "a" * 500 + "\x07"})
    text = "\n".join(render([hostile], columns=100))
    assert not set(text) & set("\x1b\r\x07\u202e")
    assert all(len(line) <= 100 for line in text.split("\n"))


def test_a_span_without_duration_still_has_a_mark() -> None:
    lines = render([view("a", 0, 10), view("b", 10, 10, "a"), view("c", 0, 0, "a")])
    assert all("━" in line for line in lines[1:])


def test_linked_spans_outside_the_request_stay_within_the_bar() -> None:
    lines = render([view("a", 100, 110)], [view("b", 0, 500, trace_id="t2"), view("c", 400, 500, trace_id="t3")])
    for line in lines:
        if "|" in line:
            assert len(line.split("|")[1]) == BAR_COLUMNS


def test_durations_are_in_the_unit_that_suits_them() -> None:
    assert [duration_text(ns) for ns in (0, 999, 1500, 2_500_000, 61 * 10**9)] == [
        "0 ns",
        "999 ns",
        "1.50 µs",
        "2.50 ms",
        "61.00 s",
    ]


ids = st.sampled_from("abcdef")


@given(
    st.lists(st.tuples(ids, st.none() | ids | st.just("gone"), st.integers(0, 9), st.integers(0, 9)), max_size=12),
)
def test_every_span_is_placed_once_whatever_the_parents_say(spans: list[tuple[str, str | None, int, int]]) -> None:
    made = [view(span_id, start, start + length, parent) for span_id, parent, start, length in spans]
    nodes = tree(made)
    assert sorted(map(id, (node.span for node in nodes))) == sorted(map(id, made))
    assert len(render(made)) == (len(made) + 1 if made else 0)


def test_a_chain_of_thousands_is_walked_without_recursion() -> None:
    chain = [view(f"s{n}", n, 9000, f"s{n - 1}" if n else None) for n in range(5000)]
    assert [node.depth for node in tree(chain)] == list(range(5000))


def given_away(label: str, at_ms: float, took_ms: float, key: str = names.TENANT_NEIGHBOUR) -> Event:
    return Event(names.EVENT_OTHERS, int(at_ms * MS), {key: label, names.EVENT_TOOK_US: int(took_ms * 1000)})


def batch(trace_id: str, start_ms: float, end_ms: float, tenant: str, model: str = "m") -> SpanView:
    facts = {names.TENANT_NAME: tenant, names.MODEL_NAME: model, names.BATCH_ROWS: 4, names.BATCH_REQUESTS: 3}
    links = (Link("t1", "infer", {names.LINK_KIND: names.LINK_MEMBER}),) if tenant == "acme" else ()
    return view("b", start_ms, end_ms, trace_id=trace_id, name=names.SPAN_BATCH, attributes=facts, links=links)


def crowded() -> tuple[list[SpanView], list[SpanView]]:
    """A request that waited while two others had the lane, and an own model of its tenant's."""
    events = (
        given_away("neighbour A", 3, 2),
        given_away("neighbour B", 4, 1),
        given_away("neighbour A", 5, 1),
        given_away("other", 5.5, 0.5, names.MODEL_NAME),
    )
    kinds = (("own", names.LINK_BATCH), ("x", names.LINK_NEIGHBOUR), ("y", names.LINK_NEIGHBOUR))
    links = tuple(Link(trace_id, "b", {names.LINK_KIND: kind}) for trace_id, kind in kinds)
    queue = view("queue", 1, 6, "infer", attributes={names.SLO_STAGE: "queue"}, events=events, links=links)
    linked = [batch("own", 6, 10, "acme"), batch("x", 1, 3, "bolt", "flood"), batch("y", 3, 4, "crane")]
    return [REQUEST[1], queue], linked


def test_operators_see_who_shared_the_lane_by_name() -> None:
    spans, linked = crowded()
    lines = render(spans, linked, columns=160)
    assert [line for line in lines if line.startswith("shared")] == [
        "shared the lane: neighbour A (bolt/flood) 3.00 ms in 2 stretches",
        "shared the lane: neighbour B (crane/m) 1.00 ms in 1 stretch",
        "shared the lane: other 500.00 µs in 1 stretch",
    ]
    assert "rode in batch own, 3 requests, 4 rows, 1 with a trace" in lines
    assert [line for line in lines if line.startswith("a neighbour")] == [
        "a neighbour's batch x",
        "a neighbour's batch y",
    ]


def test_a_tenant_sees_its_own_names_only() -> None:
    spans, linked = crowded()
    lines = render(seen_by("acme", spans), seen_by("acme", linked), columns=160)
    said = "\n".join(lines)
    assert "shared the lane: neighbour A 3.00 ms in 2 stretches" in lines
    assert "acme" in said
    for name in ("bolt", "flood", "crane"):
        assert name not in said


@given(st.sampled_from(["bolt", "crane", "nobody"]))
def test_of_anothers_spans_nothing_is_left_but_their_times(tenant: str) -> None:
    spans, linked = crowded()
    for before, after in zip([*spans, *linked], seen_by(tenant, [*spans, *linked]), strict=True):
        assert (before.start_ns, before.end_ns) == (after.start_ns, after.end_ns)
        whose = before.attributes.get(names.TENANT_NAME)
        if whose not in (None, tenant):
            assert not after.links
            assert whose not in map(str, after.attributes.values())
            assert before.attributes[names.MODEL_NAME] not in after.attributes.values()


def test_a_trace_of_several_tenants_is_nobodys() -> None:
    spans, linked = crowded()
    assert (owner(spans), owner([*spans, *linked]), owner([])) == ("acme", None, None)
