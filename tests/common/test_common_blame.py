"""Which stage is to blame, told from spans alone."""

from __future__ import annotations

from typing import Any

import pytest

from services.common import attributes as names
from services.common.blame import blame
from services.common.spans import SpanRecord

MS = 1_000_000
SERVER = b"s" * 8


def server(took_ms: float, **facts: Any) -> SpanRecord:
    about = {names.SLO_VIOLATED: True, names.SLO_OBJECTIVE_US: 50_000, **facts}
    return SpanRecord("ModelInfer", b"t" * 16, SERVER, None, 0, int(took_ms * MS), attributes=about)


def stages(*told: tuple[str, float] | tuple[str, float, dict[str, Any]]) -> list[SpanRecord]:
    """Stages one after the other: (stage, milliseconds, attributes)."""
    spans, at = [], 0
    for number, (stage, took_ms, *facts) in enumerate(told):
        about = {names.SLO_STAGE: stage, **(facts[0] if facts else {})}
        end = at + int(took_ms * MS)
        spans.append(SpanRecord(stage, b"t" * 16, bytes([number + 1]) * 8, SERVER, at, end, attributes=about))
        at = end
    return spans


@pytest.mark.parametrize(
    ("stage", "cause"),
    [
        (names.STAGE_ADMIT, names.CAUSE_FRONTEND),
        (names.STAGE_SEND, names.CAUSE_FRONTEND),
        (names.STAGE_TRANSPORT, names.CAUSE_TRANSPORT),
        (names.STAGE_DECODE, names.CAUSE_DECODE),
        (names.STAGE_QUEUE, names.CAUSE_QUEUE),
        (names.STAGE_BATCH_WAIT, names.CAUSE_BATCH),
        (names.STAGE_COMPUTE, names.CAUSE_COMPUTE),
        (names.STAGE_ENCODE, names.CAUSE_ENCODE),
        (names.STAGE_DELIVER, names.CAUSE_FRONTEND),
    ],
)
def test_the_stage_that_took_too_long_is_to_blame(stage: str, cause: str) -> None:
    usual = {other: (other, 1.0) for other in names.STAGES if other != names.STAGE_UNACCOUNTED}
    usual[names.STAGE_COMPUTE] = (names.STAGE_COMPUTE, 10.0, {names.BATCH_EXPECTED_US: 10_000})  # type: ignore[assignment]
    usual[stage] = (stage, 60.0, *usual[stage][2:])
    spans = stages(*usual.values())
    assert blame(server(spans[-1].end_ns / MS), spans).cause == cause


def test_a_model_that_took_what_it_always_takes_is_not_to_blame_for_a_wait() -> None:
    spans = stages((names.STAGE_QUEUE, 15), (names.STAGE_COMPUTE, 40, {names.BATCH_EXPECTED_US: 40_000}))
    assert blame(server(55), spans).cause == names.CAUSE_QUEUE


def test_a_model_that_always_takes_longer_than_was_promised_is_to_blame() -> None:
    spans = stages((names.STAGE_QUEUE, 90), (names.STAGE_COMPUTE, 60, {names.BATCH_EXPECTED_US: 60_000}))
    assert blame(server(150), spans).cause == names.CAUSE_COMPUTE


def test_time_that_others_had_is_the_neighbours() -> None:
    spans = stages((names.STAGE_QUEUE, 60, {names.SLO_NEIGHBOUR_US: 45_000}), (names.STAGE_COMPUTE, 5))
    found = blame(server(65), spans)
    assert (found.cause, found.took_ns) == (names.CAUSE_NEIGHBOUR, 45 * MS)
    assert found.parts_ns[names.CAUSE_QUEUE] == 15 * MS


def test_copies_are_taken_out_of_whatever_stage_they_lie_in() -> None:
    copies = {names.SLO_COPY_US: 30_000}
    spans = stages((names.STAGE_DECODE, 32, copies), (names.STAGE_COMPUTE, 20), (names.STAGE_ENCODE, 31, copies))
    found = blame(server(83), spans)
    assert (found.cause, found.took_ns) == (names.CAUSE_COPY, 60 * MS)


def test_what_no_span_explains_is_unaccounted_and_may_be_to_blame() -> None:
    found = blame(server(70), stages((names.STAGE_COMPUTE, 10)))
    assert (found.cause, found.unaccounted_ns) == (names.CAUSE_UNACCOUNTED, 60 * MS)


def test_the_first_batch_of_its_shape_that_takes_too_long_is_a_cold_start() -> None:
    spans = stages((names.STAGE_COMPUTE, 80, {names.BATCH_COLD: True}))
    assert blame(server(80), spans).cause == names.CAUSE_COLD_START


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("MODEL_NOT_READY", names.CAUSE_COLD_START),
        ("OVERLOADED", names.CAUSE_REFUSED),
        ("WORKER_LOST", names.CAUSE_FAILED),
        ("DEADLINE_EXCEEDED", names.CAUSE_REFUSED),
    ],
)
def test_a_request_that_ended_before_its_time_was_spent_says_why(reason: str, cause: str) -> None:
    assert blame(server(1, **{names.ERROR_TYPE: reason}), stages((names.STAGE_ADMIT, 1))).cause == cause


def test_a_request_dropped_after_it_had_waited_blames_the_wait() -> None:
    dropped = server(60, **{names.ERROR_TYPE: "DEADLINE_EXCEEDED", names.SLO_DEADLINE_US: 60_000})
    assert blame(dropped, stages((names.STAGE_QUEUE, 58))).cause == names.CAUSE_QUEUE


def test_a_dropped_request_without_spans_of_its_executor_says_where_it_was_and_what_is_missing() -> None:
    facts = {
        names.ERROR_TYPE: "DEADLINE_EXCEEDED",
        names.SLO_ENDED_IN: "connect",
        names.SLO_MISSING: "executor e1 lost",
    }
    found = blame(server(60, **facts), [])
    assert (found.cause, found.missing) == (names.CAUSE_TRANSPORT, "executor e1 lost")


def test_spans_of_another_request_in_the_same_trace_do_not_count() -> None:
    other = server(500)
    other.span_id, other.parent_span_id = b"o" * 8, SERVER
    below = stages((names.STAGE_QUEUE, 400))
    below[0].parent_span_id = b"o" * 8
    own = stages((names.STAGE_COMPUTE, 60))
    assert blame(server(60), [other, *below, *own]).cause == names.CAUSE_COMPUTE


def test_spans_that_go_in_a_circle_are_each_taken_once() -> None:
    spans = stages((names.STAGE_QUEUE, 10), (names.STAGE_COMPUTE, 60))
    spans[0].parent_span_id, spans[1].parent_span_id = SERVER, spans[0].span_id
    round_trip = SpanRecord("x", b"t" * 16, SERVER, spans[1].span_id, 0, 1, attributes={})
    assert blame(server(70), [*spans, round_trip]).parts_ns[names.CAUSE_COMPUTE] == 60 * MS


def test_an_executor_that_answered_and_whose_spans_did_not_come_is_missing() -> None:
    spans = stages((names.STAGE_SEND, 1), (names.STAGE_TRANSPORT, 1), (names.STAGE_DELIVER, 1))
    assert blame(server(60, **{names.EXECUTOR_ID: "e1"}), spans).missing == (
        "executor 'e1': it answered, and its spans did not come"
    )
    whole = stages(*((stage, 1) for stage in ("send", "transport", "decode", "deliver")))
    assert blame(server(60), whole).missing == ""


def test_other_work_of_the_same_tenant_that_came_between_is_the_queues() -> None:
    facts = {names.BATCH_PREEMPTED_US: 70_000, names.SLO_NEIGHBOUR_US: 10_000, names.BATCH_EXPECTED_US: 5_000}
    found = blame(server(75), stages((names.STAGE_COMPUTE, 75, facts)))
    assert found.cause == names.CAUSE_QUEUE
    assert (found.parts_ns[names.CAUSE_QUEUE], found.parts_ns[names.CAUSE_NEIGHBOUR]) == (60 * MS, 10 * MS)
