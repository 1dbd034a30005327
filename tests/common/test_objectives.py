"""Which objective can be promised: the bound of the simulator, what would do, and answers to nonsense."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.units import MS
from services.common.errors import Reason, Refusal
from services.common.objectives import Ask, Lane, Point, Verdict, answer, checked, worst

LANE = Lane("cpu:test", 1, 1000, quantum_ns=5 * MS)
POINTS = (
    Point(1, "4", 1, p50_ns=8 * MS, p99_ns=10 * MS, longest_segment_ns=2 * MS),
    Point(4, "4", 1, p50_ns=20 * MS, p99_ns=25 * MS, longest_segment_ns=5 * MS),
)


def asked(reservation: int = 250, **more: object) -> Ask:
    return Ask(reservation, way_ns=2 * MS, **more)  # type: ignore[arg-type]


def test_the_least_objective_is_the_burst_at_the_reservations_pace_two_slices_and_the_way() -> None:
    found = answer(POINTS, LANE, asked(burst=2))
    assert (found.burst_ns, found.slices_ns, found.way_ns) == (80 * MS, 10 * MS, 2 * MS)
    assert found.least_ns == 92 * MS
    assert found.most_rate == pytest.approx(25.0)
    assert found.verdict is Verdict.PROMISED
    assert found.message == (
        "0.25 devices hold 25.0 requests/s and promise 92.0 ms at the least "
        "(a burst of 2 80.0 ms + two slices 10.0 ms + the way 2.0 ms)"
    )


def test_a_reservation_is_a_larger_part_of_a_smaller_lane() -> None:
    half = dataclasses.replace(LANE, worth=500)
    assert answer(POINTS, half, asked()).burst_ns == answer(POINTS, LANE, asked()).burst_ns // 2


def test_own_slices_longer_than_the_quantum_count_stretched_to_their_p99() -> None:
    long = (Point(1, "4", 1, p50_ns=16 * MS, p99_ns=20 * MS, longest_segment_ns=8 * MS),)
    assert answer(long, LANE, asked()).slices_ns == 20 * MS
    assert answer(long, dataclasses.replace(LANE, quantum_ns=0), asked()).slices_ns == 20 * MS
    whole = (Point(1, "4", 1, p50_ns=16 * MS, p99_ns=20 * MS),)
    assert answer(whole, LANE, asked()).slices_ns == 40 * MS


def test_without_a_quantum_the_largest_batch_of_its_own_counts() -> None:
    found = answer(POINTS, dataclasses.replace(LANE, quantum_ns=0), asked())
    assert found.slices_ns == 2 * math.ceil(5 * MS * 25 / 20)


def test_the_estimates_error_counts_for_the_work_and_for_the_slices() -> None:
    found = answer(POINTS, LANE, asked(error=2.0))
    assert (found.cost_ns, found.burst_ns, found.slices_ns) == (20 * MS, 80 * MS, 20 * MS)


def test_an_objective_below_the_least_is_told_what_would_do() -> None:
    found = answer(POINTS, LANE, asked(objective_ns=32 * MS))
    assert (found.verdict, found.needed) == (Verdict.TOO_TIGHT, 500)
    assert "cannot be promised" in found.message
    assert "0.5 devices would do for 32.0 ms, up to 50.0 requests/s" in found.message


def test_an_objective_that_no_reservation_meets_is_told_the_least_of_a_whole_lane() -> None:
    found = answer(POINTS, LANE, asked(objective_ns=21 * MS))
    assert (found.verdict, found.needed, found.least_whole_ns) == (Verdict.TOO_TIGHT, None, 22 * MS)
    assert "no reservation on 1 compute unit of cpu:test would do" in found.message
    assert "promises 22.0 ms at the least" in found.message


def test_an_objective_below_what_a_request_takes_alone_is_missed_on_an_idle_device() -> None:
    found = answer(POINTS, LANE, asked(objective_ns=9 * MS))
    assert found.verdict is Verdict.BELOW_COST
    assert "below the model's own p99 of 10.0 ms" in found.message


def test_a_rate_beyond_the_reservation_is_told_how_much_is_held_and_what_would_do() -> None:
    found = answer(POINTS, LANE, asked(rate=40.0))
    assert (found.verdict, found.needed) == (Verdict.RATE_TOO_HIGH, 400)
    assert "25.0/s" in found.message
    assert "0.4 devices would do" in found.message
    assert answer(POINTS, LANE, asked(rate=25.0)).verdict is Verdict.PROMISED


def test_without_a_reservation_nothing_is_promised_but_it_is_said_what_would_do() -> None:
    found = answer(POINTS, LANE, asked(0, objective_ns=32 * MS))
    assert (found.verdict, found.least_ns, found.needed, found.most_rate) == (Verdict.NOTHING_RESERVED, None, 500, 0.0)
    assert "only what others leave" in found.message


def test_lanes_that_serve_in_the_order_of_arrival_promise_nothing() -> None:
    found = answer(POINTS, dataclasses.replace(LANE, promises=False), asked())
    assert (found.verdict, found.least_ns, found.needed) == (Verdict.NOTHING_RESERVED, None, None)
    assert "order of their arrival" in found.message


def test_a_reservation_larger_than_the_lane_does_not_fit() -> None:
    found = answer(POINTS, dataclasses.replace(LANE, worth=200), asked())
    assert found.verdict is Verdict.DOES_NOT_FIT


def test_what_was_measured_on_lanes_of_another_size_says_nothing() -> None:
    assert answer(POINTS, dataclasses.replace(LANE, compute_units=2), asked()).verdict is Verdict.NOT_MEASURED
    assert answer((), LANE, asked()).verdict is Verdict.NOT_MEASURED


def test_rows_between_two_points_are_read_in_a_straight_line_and_beyond_in_proportion() -> None:
    assert answer(POINTS, LANE, asked(rows=2)).cost_ns == 15 * MS
    assert answer(POINTS, LANE, asked(rows=8)).cost_ns == 50 * MS


def test_of_several_shapes_the_costliest_counts_unless_one_is_named() -> None:
    points = (*POINTS, Point(1, "400", 1, 30 * MS, 40 * MS))
    assert answer(points, LANE, asked()).cost_ns == 40 * MS
    assert answer(points, LANE, asked(shape_bucket="4")).cost_ns == 10 * MS
    assert "for the shape '5'" in answer(points, LANE, asked(shape_bucket="5")).message


def test_over_two_lanes_each_holds_half_of_the_reservation_and_both_together_the_rate() -> None:
    one, two = answer(POINTS, LANE, asked(400)), answer(POINTS, LANE, asked(400, spread=2))
    assert (two.on_lane, two.most_rate) == (200, one.most_rate)
    assert two.burst_ns == 2 * one.burst_ns


def test_of_a_models_lanes_the_one_that_promises_least_is_told() -> None:
    good = answer(POINTS, LANE, asked())
    bad = answer(POINTS, LANE, asked(0))
    assert worst([good, bad, good]) is bad
    assert worst([]) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rate": -1.0}, "rate: must be above 0 and at most 1e\\+06, and is -1"),
        ({"rate": math.nan}, "rate: must be above 0 and at most 1e\\+06, and is nan"),
        ({"rate": math.inf}, "rate: must be"),
        ({"burst": 0}, "burst: must be 1 to 1e\\+06, and is 0"),
        ({"rows": 5000}, "rows: must be 1 to 4096, and is 5000"),
        ({"error": 0.5}, "error: must be 1 to 100, and is 0.5"),
        ({"error": math.nan}, "error: must be 1 to 100, and is nan"),
        ({"reservation": 64_001}, "reservation.millidevices: must be 0 to 64000, and is 64001"),
        ({"objective_ns": 0}, "objective_us: must be above 0"),
        ({"way_ns": -1}, "way_us: must be"),
    ],
)
def test_nonsense_is_refused_by_its_field_and_limit(change: dict[str, object], says: str) -> None:
    with pytest.raises(Refusal, match=says) as caught:
        checked(dataclasses.replace(asked(), **change))  # type: ignore[arg-type]
    assert caught.value.reason is Reason.FIELD_INVALID


@given(
    reservation=st.integers(1, 1000),
    burst=st.integers(1, 50),
    cost_us=st.integers(10, 100_000),
    objective_us=st.integers(100, 2_000_000),
    rate=st.none() | st.floats(0.1, 10_000),
)
def test_what_is_said_to_do_does_and_a_thousandth_less_does_not(
    reservation: int, burst: int, cost_us: int, objective_us: int, rate: float | None
) -> None:
    points = (Point(1, "4", 1, cost_us * 1000, cost_us * 1000),)
    ask = asked(reservation, burst=burst, rate=rate, objective_ns=objective_us * 1000)
    found = answer(points, LANE, ask)
    if found.needed is None or found.verdict is Verdict.BELOW_COST:
        return
    assert answer(points, LANE, dataclasses.replace(ask, reservation=found.needed)).verdict is Verdict.PROMISED
    if found.needed > 1:
        less = answer(points, LANE, dataclasses.replace(ask, reservation=found.needed - 1))
        assert less.verdict in (Verdict.TOO_TIGHT, Verdict.RATE_TOO_HIGH)
