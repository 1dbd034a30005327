"""What is learnt from surplus that took longer than expected."""

from __future__ import annotations

import pytest

from gpu_sharing.arbiter.foresight import MOST, Foresight
from gpu_sharing.units import MS, SECOND

GRAIN = 2 * MS
ALLOWED = 100 * MS


def test_nothing_is_added_before_anything_was_seen_or_where_expectations_were_right() -> None:
    foresight = Foresight()
    assert foresight.factor(5 * SECOND) == 1.0
    for moment in range(100):
        foresight.see(100 * MS, 100 * MS, ALLOWED, GRAIN, moment * MS)
        foresight.see(100 * MS, 20 * MS, ALLOWED, GRAIN, moment * MS)
    assert foresight.factor(100 * MS) == 1.0


def test_waits_twice_as_long_as_expected_are_soon_expected_to_be_so() -> None:
    foresight = Foresight()
    for moment in range(10):
        foresight.see(100 * MS, 202 * MS, ALLOWED, GRAIN, moment * MS)
    assert foresight.factor(10 * MS) == pytest.approx(2.0, abs=0.02)


def test_one_that_was_late_counts_for_more_than_one_that_was_not() -> None:
    foresight = Foresight()
    for moment in range(1000):
        foresight.see(100 * MS, (150 if moment % 20 == 0 else 100) * MS, ALLOWED, GRAIN, moment * MS)
    assert foresight.factor(SECOND) >= 1.4


def test_what_is_below_the_grain_tells_nothing_much_and_nothing_is_believed_beyond_the_most() -> None:
    foresight = Foresight()
    foresight.see(0, GRAIN // 10, 0, GRAIN, 0)
    assert foresight.factor(0) <= 1.05
    for moment in range(100):
        foresight.see(MS, SECOND, MS, GRAIN, moment)
    assert 0.99 * MOST <= foresight.factor(100) <= MOST


def test_a_lane_that_admits_nothing_forgets_why() -> None:
    foresight = Foresight()
    for moment in range(50):
        foresight.see(100 * MS, 400 * MS, ALLOWED, GRAIN, moment)
    assert foresight.factor(20 * SECOND) < foresight.factor(SECOND) < foresight.factor(50)
    assert foresight.factor(1000 * SECOND) < 1.1


def test_waits_that_are_short_beside_what_is_allowed_tell_nothing() -> None:
    foresight = Foresight()
    for moment in range(100):
        foresight.see(10 * MS, 80 * MS, ALLOWED, GRAIN, moment * MS)
    assert foresight.factor(SECOND) == 1.0
