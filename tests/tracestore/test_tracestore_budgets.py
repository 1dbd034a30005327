"""Attainment, budgets and burn rates; and a report that takes no source on trust."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import services.common.attributes as names
from services.common.exponential import PER_OCTAVE, SCALE, index_of, quantile_s, rescaled, upper_s
from services.tracestore.core.budgets import Objective, Window, standing, windows
from services.tracestore.core.report import NOWHERE, ROLLUPS, TRACES, Report, report
from services.tracestore.core.rollups import Counts, Slot, Worst
from services.tracestore.core.spans import SpanView

DAY_S, HOUR_S = 86_400, 3_600
NOW_S = 30 * DAY_S
MS = 1_000_000


def objective(ratio_ppm: int = 990_000, window_s: int = 30 * DAY_S, objective_us: int | None = None) -> Objective:
    return Objective("acme", "m", "o", ratio_ppm, objective_us, window_s)


def slot(start_s: int, met: int, missed: int, width_s: int = 60, **more: Any) -> Slot:
    counts = Counts(met=met, missed=missed, violated=missed, outcomes={"ok": met, "late": missed}, **more)
    return Slot("acme", "m", start_s, width_s, counts)


def test_an_objective_is_kept_as_long_as_its_budget_is_not_overspent() -> None:
    kept = standing(objective(), [slot(NOW_S - DAY_S, 990, 10)], NOW_S)
    assert (kept.broken, kept.spent, kept.judged.attainment) == (False, 1.0, 0.99)
    assert standing(objective(), [slot(NOW_S - DAY_S, 989, 11)], NOW_S).broken


def test_where_nobody_asked_nothing_is_broken_and_nothing_is_claimed() -> None:
    found = standing(objective(), [], NOW_S)
    assert (found.broken, found.spent, found.judged.attainment, found.covered_s) == (False, None, None, 0)
    assert not any(burn.fires for burn in found.burns)


def test_an_objective_of_all_requests_has_no_budget_and_one_miss_breaks_it() -> None:
    found = standing(objective(1_000_000), [slot(NOW_S - DAY_S, 10**6, 1)], NOW_S)
    assert (found.broken, found.spent) == (True, math.inf)
    assert not standing(objective(1_000_000), [slot(NOW_S - DAY_S, 5, 0)], NOW_S).broken


def test_only_the_window_counts() -> None:
    slots = [slot(NOW_S - 31 * DAY_S, 0, 500), slot(NOW_S - DAY_S, 500, 0), slot(NOW_S + HOUR_S, 0, 500)]
    assert standing(objective(), slots, NOW_S).judged.missed == 0


def test_an_objective_of_its_own_is_judged_by_its_own_counts() -> None:
    slots = [slot(NOW_S - DAY_S, 100, 0, within={20_000: (60, 40)})]
    found = standing(objective(objective_us=20_000), slots, NOW_S)
    assert (found.judged.met, found.judged.missed, found.broken) == (60, 40, True)
    assert standing(objective(objective_us=30_000), slots, NOW_S).judged.total == 0


def test_the_windows_of_thirty_days_are_the_workbooks() -> None:
    assert windows(30 * DAY_S) == [
        Window(HOUR_S, 300, 14.4, "page"),
        Window(6 * HOUR_S, 1800, 6.0, "page"),
        Window(3 * DAY_S, 6 * HOUR_S, 1.0, "ticket"),
    ]


def test_windows_that_come_to_the_same_are_one() -> None:
    assert windows(600) == [Window(300, 60, 6.0, "page"), Window(300, 60, 1.0, "ticket")]


@given(st.integers(60, 366 * DAY_S))
def test_windows_of_any_length_are_longer_than_their_short_ones_and_never_below_what_is_counted(window_s: int) -> None:
    for pair in windows(window_s):
        assert pair.long_s > pair.short_s >= 60
        assert pair.factor > 0


def test_an_alert_fires_while_it_burns_and_is_over_soon_after() -> None:
    burning = [slot(NOW_S - 60 * minute, 50, 50) for minute in range(60, 0, -1)]
    assert [burn.fires for burn in standing(objective(), burning, NOW_S).burns] == [True, True, True]
    calm = [slot(NOW_S + 60 * minute, 100, 0) for minute in range(10)]
    over = standing(objective(), [*burning, *calm], NOW_S + 600).burns
    assert (over[0].long or 0) > 14.4
    assert [burn.fires for burn in over] == [False, True, True]


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 50)), max_size=40), st.integers(500_000, 1_000_000))
def test_broken_is_exactly_more_misses_than_the_ratio_allows(counts: list[tuple[int, int]], ratio_ppm: int) -> None:
    slots = [slot(NOW_S - 60 * (place + 1), met, missed) for place, (met, missed) in enumerate(counts)]
    found = standing(objective(ratio_ppm), slots, NOW_S)
    met, missed = sum(each[0] for each in counts), sum(each[1] for each in counts)
    assert found.broken == ((met + missed) * ratio_ppm > met * 1_000_000)


@given(st.lists(st.integers(1_000, 60_000_000_000), min_size=1, max_size=300), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_of_the_histogram_is_within_a_bucket_of_the_true_one(times_ns: list[int], quantile: float) -> None:
    buckets: dict[int, int] = {}
    for each in times_ns:
        buckets[index_of(each)] = buckets.get(index_of(each), 0) + 1
    true_s = sorted(times_ns)[max(0, math.ceil(quantile * len(times_ns)) - 1)] / 1e9
    found_s = quantile_s(buckets, quantile)
    assert found_s is not None
    assert true_s / 2 ** (1.001 / PER_OCTAVE) <= found_s <= true_s * 2 ** (1.001 / PER_OCTAVE)


@given(st.integers(1, 10**14))
def test_a_time_lies_in_its_bucket(nanoseconds: int) -> None:
    index, seconds = index_of(nanoseconds), nanoseconds / 1e9
    assert upper_s(index - 1) * (1 - 1e-9) <= seconds <= upper_s(index) * (1 + 1e-9)


@given(st.integers(1, 10**13), st.integers(SCALE, 12))
def test_a_finer_scale_comes_to_the_same_bucket(nanoseconds: int, scale: int) -> None:
    fine = math.ceil(math.log2(nanoseconds / 1e9) * (1 << scale)) - 1
    (found,) = rescaled({fine: 3}, scale)
    assert abs(found - index_of(nanoseconds)) <= 1
    assert rescaled({fine: 3}, scale)[found] == 3


def test_a_coarser_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="coarser"):
        rescaled({0: 1}, SCALE - 1)


START_S, END_S = NOW_S - HOUR_S, NOW_S


def server(number: int, took_ms: int, *, violated: bool = True, ended_s: int = NOW_S - 600, **more: Any) -> SpanView:
    facts = {
        names.TENANT_NAME: "acme",
        names.MODEL_NAME: "m",
        names.SLO_VIOLATED: violated,
        names.SLO_OBJECTIVE_US: 50_000,
        **more,
    }
    ended = ended_s * 10**9
    return SpanView(
        trace_id=f"{number:032x}",
        span_id=f"{number:016x}",
        parent_span_id=None,
        name="ModelInfer",
        service="apportion-frontend",
        start_ns=ended - took_ms * MS,
        end_ns=ended,
        kind="server",
        attributes=facts,
    )


def stage(of: SpanView, name: str, parent: str | None = None) -> SpanView:
    return SpanView(
        trace_id=of.trace_id,
        span_id=f"a{of.span_id[1:]}",
        parent_span_id=parent or of.span_id,
        name=name,
        service="apportion-executor",
        start_ns=of.start_ns,
        end_ns=of.end_ns,
        attributes={names.SLO_STAGE: name},
    )


def late(count: int, name: str = names.STAGE_QUEUE, first: int = 1, **more: Any) -> list[SpanView]:
    servers = [server(number, 80, **more) for number in range(first, first + count)]
    return [span for each in servers for span in (each, stage(each, name))]


def judge(spans: list[SpanView] | None, *slots: Slot) -> Report:
    return report(slots, [objective()], spans, START_S, END_S)


def agreement(made: Report) -> dict[str, bool | None]:
    (found,) = made.models
    return {check.what.split(":")[0]: check.agrees for check in found.checks}


def measured(met: int, missed: int, **more: Any) -> Slot:
    return slot(NOW_S - 660, met, missed, latencies={index_of(80 * MS): missed, index_of(9 * MS): met}, **more)


def test_three_sources_that_say_the_same_make_a_report_that_is_whole() -> None:
    made = judge(late(3) + late(2, names.STAGE_TRANSPORT, 10), measured(95, 5))
    (found,) = made.models
    assert (found.causes, found.causes_from) == ({"queue": 3, "transport": 2}, TRACES)
    assert agreement(made) == {"requests": True, "violations": True, "verdicts": True}
    assert (made.broken, made.doubtful) == (True, False)
    assert found.completeness is not None
    assert found.completeness.whole
    assert found.quantiles_s[0.5] == pytest.approx(0.009, rel=0.05)


def test_a_violation_without_its_trace_is_told_of() -> None:
    made = judge(late(4), measured(95, 5))
    assert agreement(made)["violations"] is False
    assert made.doubtful


def test_a_violator_at_the_edge_of_the_range_may_belong_to_the_other_side() -> None:
    made = judge([*late(4), *late(1, first=9, ended_s=END_S - 2)], measured(96, 4))
    assert agreement(made)["violations"] is True


def test_a_trace_in_pieces_is_told_of() -> None:
    spans = late(5)
    spans[1] = stage(spans[0], names.STAGE_QUEUE, parent="f" * 16)
    (found,) = judge(spans, measured(95, 5)).models
    assert found.completeness is not None
    assert (found.completeness.orphans, found.completeness.whole) == (1, False)


def test_a_verdict_that_its_timestamps_contradict_is_told_of() -> None:
    made = judge([*late(4), server(9, 10)], measured(95, 5))
    assert agreement(made)["verdicts"] is False


def test_a_histogram_that_has_lost_requests_is_told_of() -> None:
    made = judge(late(5), slot(NOW_S - 660, 95, 5, latencies={0: 99}))
    assert agreement(made)["requests"] is False


def test_an_answer_in_time_that_the_histogram_does_not_know_is_told_of() -> None:
    lied = measured(95, 5, within={20_000: (100, 0)})
    assert agreement(judge(late(5), lied))["answered within 20 ms"] is False
    true = measured(95, 5, within={20_000: (95, 5)})
    assert agreement(judge(late(5), true))["answered within 20 ms"] is True
    young = measured(95, 5, within={20_000: (3, 1)})
    assert agreement(judge(late(5), young))["answered within 20 ms"] is None


def test_causes_come_from_the_rollups_when_the_spans_are_gone() -> None:
    worst = [Worst(90_000, "b" * 32, "queue")]
    rolled = measured(95, 5, kept_violated=5, causes={"queue": 4, "refused": 1}, worst=worst)
    (found,) = judge(late(1), rolled).models
    assert (found.causes, found.causes_from, found.worst) == ({"queue": 4, "refused": 1}, ROLLUPS, tuple(worst))
    assert agreement(judge(late(1), rolled))["violations"] is None


def test_without_traces_there_are_counts_and_no_causes() -> None:
    (found,) = judge(None, measured(95, 5)).models
    assert (found.completeness, found.causes_from, found.counts.violated) == (None, NOWHERE, 5)


def test_requests_outside_the_range_and_of_others_are_left_out() -> None:
    spans = late(5) + late(3, first=100, ended_s=START_S - 60)
    made = judge(spans, measured(95, 5), slot(NOW_S - 2 * HOUR_S, 0, 70))
    (found,) = made.models
    assert (sum(found.causes.values()), found.counts.missed) == (5, 5)
    assert found.standings[0].judged.missed == 75, "the objective's own window reaches further back"


def test_a_model_that_only_traces_or_only_the_registry_knows_is_in_the_report() -> None:
    (found,) = judge(late(2)).models
    assert (found.counts.requests, found.completeness and found.completeness.kept) == (0, 2)
    (found,) = judge([]).models
    assert found.standings[0].judged.total == 0
    assert report([], [], [], START_S, END_S).models == ()
