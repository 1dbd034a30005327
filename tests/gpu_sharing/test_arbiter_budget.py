"""A tenant's budget: what it bought, by when it is to be had, and who pays for what an estimate got wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.arbiter.budget import Budget
from gpu_sharing.arbiter.grants import Grants, Oversold


def budget(bandwidth: int = 250) -> Budget:
    made = Budget(1000)
    made.set_bandwidth(bandwidth, 0, 0)
    return made


def test_work_is_due_when_the_reservation_would_have_done_it() -> None:
    made = budget()
    assert made.finish_after(10, now=100) == 140
    made.buy(10, 100)
    assert made.finish_after(10, 100) == 180
    made.buy(10, 100)
    assert (made.next_use, made.finish, made.left) == ((100, 140), 180, 20)


def test_time_that_nobody_asked_for_is_not_saved_up() -> None:
    made = budget()
    made.buy(10, 0)
    made.use(10)
    assert made.finish_after(10, now=1000) == 1040


def test_work_done_ahead_of_its_pace_is_not_given_back() -> None:
    made = budget()
    made.buy(10, 0)
    made.use(10)
    assert made.finish_after(10, now=1) == 80


def test_what_is_paid_from_several_pieces_is_due_with_the_last() -> None:
    made = budget()
    for _ in range(3):
        made.buy(10, 0)
    assert made.deadline_of(11) == 80
    assert made.next_use == (0, 40), "asking changes nothing"
    assert made.cover(11) == 80
    assert made.next_use == (0, 80)
    made.use(15)
    assert made.next_use == (60, 80), "what is left of a piece is not to be had before its pace allows it"


def test_what_was_not_needed_comes_from_the_latest_and_those_who_come_are_due_earlier() -> None:
    made = budget()
    made.buy(10, 0)
    made.buy(10, 0)
    made.use(4)
    made.refund(6)
    assert (made.finish, made.left) == (56, 10)
    assert made.finish_after(1, 0) == 60
    assert made.next_use == (16, 40)


def test_an_overrun_postpones_what_the_same_tenant_bought_later() -> None:
    made = budget()
    made.buy(10, 0)
    made.buy(10, 0)
    made.use(10)
    assert made.beyond(5) == (40, 60)
    assert made.postpone(5)
    assert made.deadline_of(5) == 60
    made.use(5)
    assert (made.next_use, made.finish) == ((60, 100), 100)


def test_an_overrun_takes_a_pause_first() -> None:
    made = budget()
    made.buy(10, 0)
    made.buy(10, 60)
    made.buy(10, 60)
    made.use(8)
    made.postpone(3)
    assert [made.deadline_of(cost) for cost in (3, 5, 15, 25)] == [44, 52, 100, 140]


def test_without_a_reservation_nothing_is_postponed() -> None:
    made = budget()
    made.buy(10, 0)
    made.set_bandwidth(0, 0, 0)
    assert made.finish_after(1, 0) is None
    assert made.beyond(1) is None
    assert not made.postpone(1)
    assert (made.left, made.finish) == (10, 40)


def test_a_smaller_reservation_leaves_what_was_bought_and_an_overrun_comes_behind_it() -> None:
    made = budget(500)
    made.buy(10, 0)
    made.buy(10, 0)
    made.set_bandwidth(100, 0, 0)
    assert made.beyond(5) == (40, 90)
    made.postpone(5)
    assert [made.deadline_of(cost) for cost in (10, 20, 25)] == [20, 40, 90]


def test_a_larger_reservation_counts_from_when_it_is_granted() -> None:
    made = budget(100)
    made.set_bandwidth(500, at=50, now=0)
    assert made.finish_after(10, now=0) == 100
    assert made.finish_after(10, now=50) == 70


def test_more_than_was_bought_is_neither_used_nor_given_back() -> None:
    made = budget()
    made.buy(10, 0)
    with pytest.raises(ValueError, match="11 ns used of a budget of 10 ns"):
        made.use(11)
    with pytest.raises(ValueError, match="11 ns given back to a budget of 10 ns"):
        made.refund(11)


def test_thousands_of_small_pieces_do_not_add_up_to_an_error() -> None:
    made = budget(333)
    for _ in range(3330):
        made.buy(1, 0)
    assert made.finish == 10_000


STEPS = st.lists(st.tuples(st.sampled_from(["buy", "use", "refund", "postpone", "cover", "rate"]), st.integers(1, 50)))


@given(STEPS)
def test_what_was_bought_is_used_given_back_or_left(steps: list[tuple[str, int]]) -> None:
    made, now, bought, gone = budget(), 0, 0, 0
    for what, amount in steps:
        now += amount % 7
        if what == "buy":
            made.buy(amount, now)
            bought += amount
        elif what == "postpone":
            bought += amount if made.postpone(amount) else 0
        elif what == "rate":
            made.set_bandwidth(amount * 20, now, now)
        elif what == "cover" and made.left:
            before = made.deadline_of(amount)
            assert made.cover(amount) == before
        elif what in ("use", "refund") and made.left:
            part = min(amount, made.left)
            made.use(part) if what == "use" else made.refund(part)
            gone += part
        made.check_invariants()
        assert made.left == bought - gone


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 100)), min_size=1), st.integers(1, 999))
def test_no_interval_has_more_due_than_the_reservation_is_worth(
    arrivals: list[tuple[int, int]], bandwidth: int
) -> None:
    """The demand bound: of work that came in an interval and is due in it, at most U × its length."""
    made, now, pieces = budget(bandwidth), 0, []
    for cost, pause in arrivals:
        now += pause
        made.buy(cost, now)
        pieces.append((now, made.finish, cost))
    for start in {came for came, _, _ in pieces}:
        for end in {due for _, due, _ in pieces}:
            demand = sum(cost for came, due, cost in pieces if came >= start and due <= end)
            # Deadlines are whole nanoseconds: the last one is up to one too early.
            assert demand * 1000 <= bandwidth * (end + 1 - start) or demand == 0


def test_no_more_is_granted_than_there_is() -> None:
    grants = Grants(1000)
    assert grants.grant(1, 600, finish=0, now=0) == 0
    with pytest.raises(Oversold, match="bandwidth: 401 millidevices do not fit: of 1000, others hold 600"):
        grants.grant(2, 401, finish=0, now=0)
    assert grants.free_for(2) == 400
    assert grants.free_for(1) == 1000


def test_what_one_gives_up_is_free_once_all_that_it_bought_is_due() -> None:
    grants = Grants(1000)
    grants.grant(1, 600, finish=0, now=0)
    grants.grant(2, 400, finish=0, now=0)
    grants.grant(1, 100, finish=50, now=10)
    grants.grant(2, 300, finish=80, now=10)
    assert grants.grant(3, 400, finish=0, now=10) == 50
    assert grants.grant(3, 600, finish=0, now=10) == 80
    assert grants.grant(1, 0, finish=20, now=90) == 90


def test_a_lane_has_a_capacity() -> None:
    with pytest.raises(ValueError, match="capacity: must be at least 1 millidevice, is 0"):
        Grants(0)
