"""Verdicts recomputed from spans."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import services.common.attributes as names
from services.tracestore.core.spans import SpanView
from services.tracestore.core.verdicts import nearest_rank, requests, verdicts

MS = 1_000_000


def span(span_id: str, start_ms: int, end_ms: int, parent: str | None = None, **more: Any) -> SpanView:
    values = {"trace_id": "t", "name": span_id, "service": "s", **more}
    return SpanView(span_id=span_id, parent_span_id=parent, start_ns=start_ms * MS, end_ns=end_ms * MS, **values)


def request(span_id: str, ms: int, *, violated: bool, objective_ms: int | None = 10, **more: Any) -> SpanView:
    attributes = {
        names.TENANT_NAME: more.pop("tenant", "a"),
        names.MODEL_NAME: more.pop("model", "m"),
        names.SLO_VIOLATED: violated,
        **({} if objective_ms is None else {names.SLO_OBJECTIVE_US: objective_ms * 1000}),
        **more.pop("attributes", {}),
    }
    return span(span_id, 0, ms, kind="server", attributes=attributes, **more)


def stage(name: str, start_ms: int, end_ms: int, parent: str, **more: Any) -> SpanView:
    return span(f"{parent}/{name}", start_ms, end_ms, parent, attributes={names.SLO_STAGE: name}, **more)


def test_each_tenant_and_model_is_summed_by_itself() -> None:
    found = verdicts(
        [
            request("1", 20, violated=True),
            request("2", 5, violated=False),
            request("3", 7, violated=False, tenant="b"),
            request("4", 8, violated=False, model="n"),
        ]
    )
    assert [(v.tenant, v.model, v.requests, v.violated, v.disagreements) for v in found] == [
        ("a", "m", 2, 1, 0),
        ("a", "n", 1, 0, 0),
        ("b", "m", 1, 0, 0),
    ]
    assert found[0].quantiles_ns == {0.5: 5 * MS, 0.9: 20 * MS, 0.99: 20 * MS}


def test_a_violation_is_put_down_to_the_stage_that_took_longest_not_to_the_one_around_it() -> None:
    spans = [
        request("1", 30, violated=True),
        stage(names.STAGE_QUEUE, 0, 20, "1"),
        span("1/batch wait", 0, 15, "1/queue", attributes={names.SLO_STAGE: names.STAGE_BATCH_WAIT}),
        stage(names.STAGE_COMPUTE, 20, 27, "1"),
    ]
    (found,) = requests(spans)
    assert found.stages_ns == {"queue": 5 * MS, "batch wait": 15 * MS, "compute": 7 * MS, "unaccounted": 3 * MS}
    assert verdicts(spans)[0].causes == {"queue": 1}


def test_what_no_stage_explains_is_unaccounted() -> None:
    assert verdicts([request("1", 30, violated=True)])[0].causes == {"unaccounted": 1}


def test_a_recorded_verdict_that_its_timestamps_contradict_is_counted() -> None:
    found = verdicts(
        [request("1", 20, violated=False), request("2", 5, violated=True), request("3", 5, violated=False)]
    )
    assert (found[0].violated, found[0].disagreements) == (1, 2)


def test_a_failure_of_ours_is_a_violation_and_one_of_the_callers_is_not() -> None:
    ours = request("1", 5, violated=True, error="worker lost", attributes={names.ERROR_TYPE: "WORKER_LOST"})
    theirs = request("2", 5, violated=False, error="bad shape", attributes={names.ERROR_TYPE: "FIELD_INVALID"})
    (found,) = verdicts([ours, theirs])
    assert (found.violated, found.disagreements, found.causes) == (1, 0, {"failed": 1})


def test_a_caller_that_broke_off_late_was_not_let_down() -> None:
    gone = request("1", 50, violated=False, error="cancelled", attributes={names.ERROR_TYPE: "CANCELLED"})
    (found,) = verdicts([gone])
    assert (found.violated, found.disagreements) == (0, 0)


def test_a_request_dropped_past_its_objective_is_put_down_to_where_it_waited() -> None:
    dropped = request("1", 50, violated=True, error="too late", attributes={names.ERROR_TYPE: "DEADLINE_EXCEEDED"})
    assert verdicts([dropped, stage(names.STAGE_QUEUE, 0, 49, "1")])[0].causes == {"queue": 1}


def test_without_an_objective_nothing_is_late() -> None:
    (found,) = verdicts([request("1", 100_000, violated=False, objective_ms=None)])
    assert (found.violated, found.disagreements) == (0, 0)


def test_two_requests_of_one_trace_id_are_two() -> None:
    spans = [
        request("1", 20, violated=True),
        request("2", 5, violated=False),
        stage(names.STAGE_COMPUTE, 0, 18, "1"),
        stage(names.STAGE_QUEUE, 0, 4, "2"),
    ]
    first, second = requests(spans)
    assert first.stages_ns == {"compute": 18 * MS, "unaccounted": 2 * MS}
    assert second.stages_ns == {"queue": 4 * MS, "unaccounted": 1 * MS}


def test_spans_that_bear_no_verdict_are_no_requests() -> None:
    batch = span("b", 0, 5, attributes={names.TENANT_NAME: "a", names.MODEL_NAME: "m"})
    inner = span("i", 0, 5, attributes={names.SLO_VIOLATED: True})
    assert verdicts([batch, inner]) == []


@pytest.mark.parametrize("parents", [{"x": "y", "y": "x"}, {"x": "x", "y": "1"}])
def test_parents_in_a_circle_end(parents: dict[str, str]) -> None:
    circle = [span(each, 0, 1, parent, attributes={names.SLO_STAGE: "queue"}) for each, parent in parents.items()]
    assert verdicts([request("1", 20, violated=True, parent="x"), *circle])[0].requests == 1


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=50), st.floats(0.01, 1.0))
def test_a_quantile_is_a_value_that_at_least_this_part_does_not_exceed(values: list[int], quantile: float) -> None:
    ordered = sorted(values)
    found = nearest_rank(ordered, quantile)
    assert sum(value <= found for value in ordered) >= quantile * len(ordered) - 1e-9
    assert sum(value < found for value in ordered) < quantile * len(ordered) + 1e-9
