"""How long a batch will take: seeded by the profile, learnt from runs, never less for more rows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.arbiter.estimates import SEED_RUNS, WINDOW_RUNS, Estimates
from gpu_sharing.measurements import ProfilePoint

POINTS = (
    ProfilePoint(1, "16", 1, 9, 10, 5, segments_ns=(4, 6)),
    ProfilePoint(4, "16", 1, 38, 40, 5, segments_ns=(16, 24)),
    ProfilePoint(1, "256", 1, 90, 100, 5),
)


def test_a_profile_is_read_in_straight_lines_and_in_proportion_beyond_its_end() -> None:
    estimates = Estimates(POINTS)
    assert [estimates.p99(rows, "16") for rows in (1, 2, 3, 4, 8)] == [10, 20, 30, 40, 80]


def test_runs_are_believed_at_once_where_they_are_longer_and_after_some_where_they_are_shorter() -> None:
    estimates = Estimates(POINTS)
    estimates.record(1, "16", 15)
    assert estimates.p99(1, "16") == 15
    estimates.record(4, "16", 20)
    assert estimates.p99(4, "16") == 40
    for _ in range(SEED_RUNS):
        estimates.record(4, "16", 20)
    assert estimates.p99(4, "16") == 20


def test_inside_a_bucket_the_profiles_slope_stays() -> None:
    estimates = Estimates(POINTS)
    for _ in range(WINDOW_RUNS):
        estimates.record(4, "16", 80)
    assert estimates.p99(4, "16") == 80
    assert estimates.p99(3, "16") == 60


def test_one_run_in_a_hundred_may_be_an_outlier() -> None:
    estimates = Estimates()
    for took in [1000, *[10] * (WINDOW_RUNS - 1)]:
        estimates.record(1, "", took)
    assert estimates.p99(1, "") == 10
    estimates.record(1, "", 1000)
    assert estimates.p99(1, "") == 10
    estimates.record(1, "", 1000)
    assert estimates.p99(1, "") == 1000


def test_what_was_long_ago_is_forgotten() -> None:
    estimates = Estimates()
    for took in [1000] * 50 + [10] * WINDOW_RUNS:
        estimates.record(1, "", took)
    assert estimates.p99(1, "") == estimates.mean(1, "") == 10


def test_what_has_never_run_is_told_from_what_has() -> None:
    estimates = Estimates()
    assert estimates.p99(1, "") is estimates.mean(1, "") is estimates.guess(1, "") is None
    estimates.record(4, "", 40)
    assert estimates.p99(1, "") == 40, "no more than a larger one"
    assert estimates.p99(8, "") == 80, "in proportion to a smaller one"
    assert estimates.p99(1, "new") is None
    assert estimates.guess(1, "new") == 40, "as much as the largest shape that is known"


def test_a_request_in_a_full_batch_takes_its_part_of_it() -> None:
    estimates = Estimates()
    estimates.record(1, "", 100)
    estimates.record(8, "", 160)
    assert estimates.weigh(1, "", 8) == (100, 100, 20)
    assert estimates.weigh(1, "", 0) == (100, 100, 100)
    assert estimates.weigh(2, "new", 8) is None


def test_what_a_request_weighs_follows_what_has_run() -> None:
    estimates = Estimates()
    estimates.record(1, "", 100)
    assert estimates.weigh(1, "", 1) == (100, 100, 100)
    estimates.record(1, "", 300)
    assert estimates.weigh(1, "", 1) == (300, 200, 200)


def test_the_longest_slice_comes_from_the_profile_until_runs_are_seen() -> None:
    estimates = Estimates(POINTS)
    assert [estimates.slice_p99(rows, "16") for rows in (1, 2, 4)] == [6, 12, 24]
    assert estimates.slice_p99(1, "256") is None
    estimates.record(2, "16", 20, longest_slice=15)
    assert estimates.slice_p99(2, "16") == 15
    assert estimates.slice_p99(4, "16") == 24


RUNS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 10**6)), max_size=40)


@given(RUNS, st.booleans(), st.lists(st.integers(1, 64), min_size=2, max_size=6))
def test_more_rows_never_take_less(runs: list[tuple[int, int]], profiled: bool, asked: list[int]) -> None:
    estimates = Estimates(POINTS if profiled else ())
    for rows, took in runs:
        estimates.record(rows, "16", took)
        # Between two runs the estimates are asked for, and kept.
        estimates.p99(1, "16")
    told = [estimates.p99(rows, "16") for rows in sorted(asked)]
    assert (None in told) == (not profiled and not runs)
    if None not in told:
        assert told == sorted(told)
