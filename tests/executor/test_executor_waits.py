"""What a request waited for, told from who had the lane."""

from __future__ import annotations

from gpu_sharing.measurements import Batch, Turn
from services.executor.core.waits import letters, neighbours, waits

OWNERS = {1: ("acme", "m"), 2: ("acme", "other"), 3: ("globex", "secret"), 4: ("initech", "hidden")}


def batch(started: int, ended: int, *others: Turn, preempted: int = 0) -> Batch:
    return Batch(9, 0, 1, 1, started, ended, 0, preempted, int(preempted > 0), (ended,), others=others)


def test_waiting_is_divided_by_whose_slices_had_the_lane() -> None:
    ran = batch(100, 110, Turn(3, 0, 40), Turn(2, 40, 60), Turn(1, 60, 100))
    found = waits(ran, 10, 1, OWNERS[1], OWNERS.get)
    assert (found.batch, found.neighbours, found.interrupted) == (40, 30, 0)


def test_only_what_lies_within_the_requests_own_wait_counts() -> None:
    ran = batch(100, 110, Turn(3, 0, 95))
    late, later = (waits(ran, handed, 1, OWNERS[1], OWNERS.get) for handed in (90, 99))
    assert (late.neighbours, later.neighbours) == (5, 0)
    assert late.turns == ((Turn(3, 90, 95), OWNERS[3]),)
    assert later.turns == ()


def test_slices_of_others_between_its_own_interrupted_it() -> None:
    ran = batch(10, 110, Turn(3, 20, 60), Turn(2, 60, 70), preempted=50)
    found = waits(ran, 5, 1, OWNERS[1], OWNERS.get)
    assert (found.batch, found.neighbours, found.interrupted) == (0, 0, 40)


def test_a_replica_that_nobody_knows_is_no_neighbour() -> None:
    found = waits(batch(100, 110, Turn(77, 0, 100)), 0, 1, OWNERS[1], OWNERS.get)
    assert (found.batch, found.neighbours, found.turns[0][1]) == (0, 0, None)


def test_what_a_hostile_worker_says_never_adds_up_to_more_than_the_wait() -> None:
    turns = (Turn(3, -(1 << 60), 1 << 60), Turn(1, 500, 3), Turn(3, 0, 1 << 60), Turn(1, 0, 1 << 60))
    found = waits(batch(100, 110, *turns), 50, 1, OWNERS[1], OWNERS.get)
    assert found.batch + found.neighbours <= 50
    assert found.interrupted == 0
    assert waits(batch(10, 5, *turns), 50, 1, OWNERS[1], OWNERS.get).batch == 0


def test_neighbours_are_called_by_letters_in_the_order_in_which_they_had_the_lane() -> None:
    found = waits(
        batch(100, 110, Turn(4, 0, 10), Turn(1, 10, 20), Turn(3, 20, 30), Turn(4, 30, 40)), 0, 1, OWNERS[1], OWNERS.get
    )
    assert neighbours(found.turns, "acme") == {"initech": "neighbour A", "globex": "neighbour B"}


def test_there_are_letters_for_any_number_of_neighbours() -> None:
    assert [letters(number) for number in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]
