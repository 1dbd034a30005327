"""Who had the lane while a batch's requests waited."""

from __future__ import annotations

from arbiter_world import Model, Request

from gpu_sharing.arbiter import Arbiter
from gpu_sharing.arbiter.events import Arrived, Complete, ReplicaAdded, SliceDone
from gpu_sharing.arbiter.policies import arbiter_of
from gpu_sharing.arbiter.turns import MOST_TURNS, Turns
from gpu_sharing.measurements import Batch, Turn
from gpu_sharing.units import MS


def test_what_ended_before_is_not_told() -> None:
    turns = Turns()
    turns.note(1, 1, 0, 10)
    turns.note(2, 2, 10, 20)
    assert turns.others(3, 10) == (Turn(2, 10, 20),)
    assert turns.others(3, 20) == ()


def test_a_batchs_own_slices_are_not_others() -> None:
    turns = Turns()
    turns.note(1, 1, 0, 10)
    turns.note(2, 2, 10, 20)
    turns.note(1, 1, 20, 30)
    assert turns.others(1, 0) == (Turn(2, 10, 20),)


def test_batch_after_batch_of_one_replica_is_one_stretch_that_its_last_batch_is_not_part_of() -> None:
    turns = Turns()
    for number in range(10):
        turns.note(1, number, number * 10, number * 10 + 10)
    assert turns.others(9, 5) == (Turn(1, 0, 90),)
    assert turns.others(10, 5) == (Turn(1, 0, 90), Turn(1, 90, 100))


def test_a_stretch_ends_where_the_lane_had_nothing_to_do() -> None:
    turns = Turns()
    turns.note(1, 1, 0, 10)
    turns.note(1, 2, 10 + 5 * MS, 20 + 5 * MS)
    turns.note(1, 3, 20 + 5 * MS, 30 + 5 * MS)
    assert turns.others(4, 0)[0] == Turn(1, 0, 10)


def test_only_so_many_stretches_are_remembered() -> None:
    turns = Turns()
    for number in range(3 * MOST_TURNS):
        turns.note(number % 2, number, number * 10, number * 10 + 10)
    assert len(turns.others(-1, 0)) == MOST_TURNS


def run(arbiter: Arbiter, now: int, took: int) -> Batch:
    """The next slice, which is its batch's last, and what is told of that batch."""
    chosen = arbiter.next_slice(now)
    assert chosen is not None
    (complete,) = arbiter.handle(SliceDone(chosen.batch, took, True), now + took)
    assert isinstance(complete, Complete)
    return complete.batch


def test_a_batch_tells_what_its_requests_waited_for_and_what_was_expected_of_it() -> None:
    arbiter = arbiter_of("reservations")
    model = Model(fixed=4 * MS, each=MS)
    for replica, tenant in ((1, "a"), (2, "b")):
        arbiter.handle(ReplicaAdded(replica, 0, points=model.points(), tenant=tenant), 0)
    arbiter.handle(Arrived(Request(1, 1, arrived=0, objective=100 * MS)), 0)
    first = run(arbiter, 0, 5 * MS)
    assert (first.others, first.expected, first.predicted, first.tier) == ((), 5 * MS, 5 * MS, "surplus")
    arbiter.handle(Arrived(Request(2, 2, arrived=5 * MS, objective=100 * MS)), 5 * MS)
    chosen = arbiter.next_slice(5 * MS)
    assert chosen is not None
    arbiter.handle(Arrived(Request(3, 1, arrived=6 * MS, objective=100 * MS)), 6 * MS)
    arbiter.handle(SliceDone(chosen.batch, 5 * MS, True), 10 * MS)
    second = run(arbiter, 10 * MS, 5 * MS)
    assert second.others == (Turn(2, 5 * MS, 10 * MS),)


def test_nothing_is_expected_of_what_has_never_run() -> None:
    arbiter = arbiter_of("reservations")
    arbiter.handle(ReplicaAdded(1, 0, tenant="a"), 0)
    arbiter.handle(Arrived(Request(1, 1)), 0)
    assert (told := run(arbiter, 0, MS)).expected == 0
    assert told.tier == "gap"
