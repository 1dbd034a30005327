"""Whose weights stay on the device: who goes, why, and in which order others come."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpu_sharing.memory.residence import Act, Pace, Place, Residence
from gpu_sharing.memory.streaming import Layout, placed, start_after
from gpu_sharing.units import MS, SECOND, MiB

NOBODY = lambda model: False


def made(*sizes: int, capacity: int = 100) -> Residence:
    residence = Residence(capacity, pace=Pace(1e6))
    for number, size in enumerate(sizes):
        residence.add(number, size)
    return residence


def settled(residence: Residence, now: int, waited=NOBODY) -> list[tuple[str, int]]:
    """Does all that is asked for; what that was."""
    done = []
    while (move := residence.next_move(now, waited)) is not None:
        done.append((move.act.value, move.model))
        if move.act in (Act.FILL, Act.EVICT):
            residence.moved(move.model)
        residence.check_invariants()
    return done


def asked(residence: Residence, model: int, now: int, objective: int | None = SECOND) -> list[tuple[str, int]]:
    residence.arrive(model, now, objective)
    residence.want(model, now + (objective or 60 * SECOND))
    return settled(residence, now)


def test_what_is_wanted_comes_in_while_there_is_room_and_then_the_least_likely_goes() -> None:
    residence = made(40, 40, 40)
    for moment, model in ((1, 0), (2, 0), (3, 0)):
        asked(residence, model, moment * SECOND)
    assert asked(residence, 1, 4 * SECOND) == [("fill", 1)]
    assert asked(residence, 2, 6 * SECOND) == [("evict", 1), ("fill", 2)]
    assert residence.place(1) is Place.OUT


def test_the_choice_is_explained() -> None:
    residence = made(60, 60)
    asked(residence, 0, 1 * SECOND)
    residence.want(1, 4 * SECOND)
    move = residence.next_move(3 * SECOND, NOBODY)
    assert move is not None
    assert move[:2] == (Act.EVICT, 0)
    assert move.why.startswith("room for model 1: asked for 2000 ms ago, 0.0")
    assert "60 bytes, objective 1000 ms" in move.why


def test_what_was_asked_for_long_ago_counts_for_little() -> None:
    residence = made(40, 40, 40)
    for _ in range(10):
        asked(residence, 0, 0)
    asked(residence, 1, 600 * SECOND)
    assert asked(residence, 2, 601 * SECOND) == [("evict", 0), ("fill", 2)]


def test_of_two_asked_for_alike_the_one_whose_objective_bears_a_load_better_goes() -> None:
    residence = made(40, 40, 40)
    asked(residence, 0, SECOND, 50 * MS)
    asked(residence, 1, SECOND, 10 * SECOND)
    assert asked(residence, 2, 2 * SECOND) == [("evict", 1), ("fill", 2)]


def test_of_two_asked_for_alike_the_one_without_an_objective_goes() -> None:
    residence = made(40, 40, 40)
    asked(residence, 0, SECOND, None)
    asked(residence, 1, SECOND, 10 * SECOND)
    assert asked(residence, 2, 2 * SECOND) == [("evict", 0), ("fill", 2)]


def test_ties_go_to_what_was_asked_for_longest_ago_and_then_to_the_lower_number() -> None:
    residence = made(30, 30, 30, 30)
    for model in (2, 1, 0):
        residence.want(model, model)
    settled(residence, 1)
    assert asked(residence, 3, 2) == [("evict", 0), ("fill", 3)]


def test_the_earliest_due_comes_first() -> None:
    residence = made(30, 30, 30)
    for model, due in ((0, 300), (1, 100), (2, 200)):
        residence.want(model, due)
    assert settled(residence, 0) == [("fill", 1), ("fill", 2), ("fill", 0)]


def test_what_is_in_use_takes_no_new_batch_and_goes_once_its_last_has_ended() -> None:
    residence = made(60, 60)
    asked(residence, 0, 1)
    residence.start(0)
    assert asked(residence, 1, 2) == [("hold", 0)]
    assert residence.place(0) is Place.LEAVING
    residence.end(0)
    assert settled(residence, 3) == [("evict", 0), ("fill", 1)]
    with pytest.raises(ValueError, match="is not in use"):
        residence.end(0)
    with pytest.raises(ValueError, match="is out"):
        residence.start(0)


def test_an_idle_model_goes_rather_than_one_in_use_that_is_worth_less() -> None:
    residence = made(50, 50, 50)
    asked(residence, 0, 1)
    residence.start(0)
    for moment in range(9):
        asked(residence, 1, 50 * SECOND + moment)
    assert asked(residence, 2, 60 * SECOND) == [("evict", 1), ("fill", 2)]


def test_what_was_to_leave_stays_where_room_comes_about_in_another_way() -> None:
    residence = made(60, 60)
    asked(residence, 0, 1)
    residence.start(0)
    asked(residence, 1, 2)
    residence.resize(200)
    assert settled(residence, 3) == [("keep", 0), ("fill", 1)]


def test_what_has_come_in_stays_until_it_has_served_whoever_waited() -> None:
    residence = made(60, 60)
    residence.want(0, 10)
    settled(residence, 0)
    residence.want(1, 5)
    everybody = lambda model: True
    assert settled(residence, 1, everybody) == []
    residence.start(0)
    residence.end(0)
    assert settled(residence, 2, everybody) == [("evict", 0), ("fill", 1)]


def test_what_a_reservation_keeps_is_never_evicted() -> None:
    residence = made(40, 40, 40)
    asked(residence, 0, 1)
    assert residence.keep(0, True)
    for now, model, other in ((10, 1, 2), (20, 2, 1), (30, 1, 2)):
        assert asked(residence, model, 1000 * SECOND * now)[-2:] in (
            [("evict", other), ("fill", model)],
            [("fill", model)],
        )
    assert residence.place(0) is Place.IN
    with pytest.raises(ValueError, match="80, which are needed"):
        residence.resize(79)


def test_a_reservation_keeps_nothing_where_some_other_model_would_never_come_in() -> None:
    residence = made(60, 60)
    asked(residence, 0, 1)
    assert not residence.keep(0, True)
    assert asked(residence, 1, 2) == [("evict", 0), ("fill", 1)]


def test_less_room_evicts_what_is_too_much() -> None:
    residence = made(40, 40)
    for model in (0, 1):
        asked(residence, model, model)
    residence.resize(50)
    assert [act for act, _ in settled(residence, 3)] == ["evict"]


def test_a_fill_that_fails_leaves_it_out_and_is_not_tried_until_somebody_asks() -> None:
    residence = made(40)
    residence.want(0, 1)
    move = residence.next_move(0, NOBODY)
    assert move is not None
    assert residence.expect(0, 0) >= 40 * MS
    residence.moved(0, failed=True)
    assert residence.place(0) is Place.OUT
    assert residence.next_move(0, NOBODY) is None
    with pytest.raises(ValueError, match="nothing was to be moved"):
        residence.moved(0)


def test_what_is_expected_counts_those_who_come_before() -> None:
    residence = made(10, 10, 10)
    alone = residence.expect(2, 0)
    residence.want(0, 1)
    assert residence.expect(2, 0) == 2 * alone


def test_a_model_larger_than_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit 100"):
        made(101)


def test_the_pace_is_that_of_the_slowest_of_the_last_fills() -> None:
    pace = Pace()
    pace.see(1000, Pace.BESIDE + 5000)
    for _ in range(3):
        pace.see(1000, Pace.BESIDE + 2000)
    assert pace.expect(2000) == Pace.BESIDE + 10_000
    for _ in range(16):
        pace.see(1000, Pace.BESIDE + 2000)
    assert pace.expect(2000) == Pace.BESIDE + 4000


class World(RuleBasedStateMachine):
    """Models come, are used and go: nothing in use is ever taken away, and everybody who asks gets in as soon as others let it."""

    def __init__(self) -> None:
        super().__init__()
        self.residence = Residence(100, pace=Pace(1e6))
        self.sizes: dict[int, int] = {}
        self.used: list[int] = []
        self.now = self.numbers = 0

    def settle(self) -> None:
        while (move := self.residence.next_move(self.now, lambda model: model in self.used)) is not None:
            assert move.act is not Act.EVICT or move.model not in self.used
            if move.act in (Act.FILL, Act.EVICT):
                self.residence.moved(move.model)

    @rule(size=st.integers(0, 100))
    def add(self, size: int) -> None:
        self.numbers += 1
        self.residence.add(self.numbers, size)
        self.sizes[self.numbers] = size

    @precondition(lambda self: self.sizes)
    @rule(data=st.data(), later=st.integers(0, 10 * SECOND), objective=st.sampled_from([None, MS, SECOND]))
    def use(self, data: st.DataObject, later: int, objective: int | None) -> None:
        self.now += later + 1
        number = data.draw(st.sampled_from(sorted(self.sizes)))
        self.residence.arrive(number, self.now, objective)
        self.residence.want(number, self.now)
        self.settle()
        if self.residence.place(number) is Place.IN:
            self.residence.start(number)
            self.used.append(number)

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.used))
        self.used.remove(number)
        self.residence.end(number)
        self.settle()

    @precondition(lambda self: set(self.sizes) - set(self.used))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(set(self.sizes) - set(self.used))))
        self.residence.remove(number)
        del self.sizes[number]

    @rule()
    def everybody_gets_in_once_all_is_idle(self) -> None:
        while self.used:
            self.residence.end(self.used.pop())
        self.settle()
        assert not any(self.residence.next_move(self.now, NOBODY) for _ in range(1))

    @invariant()
    def holds(self) -> None:
        self.residence.check_invariants()
        assert self.residence.used_bytes <= 100


def test_the_books_of_residence_add_up_whatever_comes() -> None:
    case = World.TestCase
    case.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
    case("runTest").runTest()


# Streaming.


def test_pieces_cover_everything_once_and_are_cut_where_a_segment_has_what_it_needs() -> None:
    layout = Layout(40 * MiB, (3 * MiB, 3 * MiB, 40 * MiB))
    pieces = list(layout.pieces(42 * MiB))
    assert pieces[:2] == [(0, 3 * MiB), (3 * MiB, 16 * MiB)]
    assert pieces[-1] == (40 * MiB, 2 * MiB)
    assert sum(length for _, length in pieces) == 42 * MiB


def test_tensors_lie_side_by_side_and_aligned() -> None:
    assert placed((1, 256, 257)) == ((0, 256, 512), 1024)


@given(
    lengths=st.lists(st.integers(0, 50), min_size=1, max_size=8),
    took=st.lists(st.integers(0, 50), min_size=8, max_size=8),
    ns_per_byte=st.floats(0.1, 10),
)
def test_a_model_that_starts_when_told_never_waits_and_would_earlier(lengths, took, ns_per_byte) -> None:
    upto, total = [], 0
    for length in lengths:
        total += length
        upto.append(total)
    layout, times = Layout(total, tuple(upto)), took[: len(lengths)]
    start = start_after(layout, times, ns_per_byte)

    def waits(there: int) -> float:
        """The longest that a segment waits, where so much is there as the first starts."""
        passed, worst = 0.0, 0.0
        for needed, each in zip(upto, times, strict=True):
            worst = max(worst, (needed - there) * ns_per_byte - passed)
            passed += each
        return worst

    assert waits(start) <= ns_per_byte
    assert start <= layout.upto[0] or waits(start - 2) > 0


def test_where_segments_were_not_measured_everything_must_be_there() -> None:
    assert start_after(Layout(100, (10, 100)), (), 1.0) == 100
