"""A model whose weights are not on the device: its calls wait aside, with the time of the copy in their admission."""

from __future__ import annotations

import pytest
from arbiter_world import Model, Request

from gpu_sharing.arbiter import Arbiter
from gpu_sharing.arbiter.events import (
    Arrived,
    Cancelled,
    Complete,
    Drop,
    ReplicaAdded,
    ReplicaGone,
    ReplicaHeld,
    ReplicaReady,
    ReplicaRemoved,
    SliceDone,
    TimePassed,
)


@pytest.fixture
def arbiter():
    """Two replicas of one tenant, 100 ns a row, and one of another."""
    arbiter = Arbiter()
    for replica, tenant in ((1, "a"), (2, "a"), (3, "b")):
        points = Model(each=100, max_batch_size=4).points()
        arbiter.handle(ReplicaAdded(replica, 4, 0, 1, points, tenant), 0)
    yield arbiter
    arbiter.check_invariants()


def arrive(arbiter: Arbiter, call: int, replica: int, now: int, **fields: int) -> list:
    return arbiter.handle(Arrived(Request(call, replica, arrived=now, **fields)), now)


def run(arbiter: Arbiter, now: int) -> tuple[int, ...] | None:
    """Who ran, each in one slice of 100 ns."""
    chosen = arbiter.next_slice(now)
    if chosen is None:
        return None
    (done,) = arbiter.handle(SliceDone(chosen.batch, 100, True), now + 100)
    assert isinstance(done, Complete)
    return done.calls


def test_calls_of_a_held_model_are_not_started_and_are_in_nobodys_way(arbiter: Arbiter) -> None:
    arbiter.handle(ReplicaHeld(1, 10_000), 0)
    assert arrive(arbiter, 1, 1, 0, objective=100_000) == []
    assert arrive(arbiter, 2, 2, 1, objective=100_000) == []
    assert arrive(arbiter, 3, 3, 2, objective=100_000) == []
    assert {run(arbiter, 10), run(arbiter, 200)} == {(2,), (3,)}
    assert run(arbiter, 300) is None
    assert arbiter.waits(1)
    arbiter.check_invariants()
    arbiter.handle(ReplicaReady(1), 9_000)
    assert run(arbiter, 9_000) == (1,)
    assert not arbiter.waits(1)


def test_calls_that_wait_already_are_set_aside_and_come_back_in_their_order(arbiter: Arbiter) -> None:
    for call in (1, 2, 3):
        arrive(arbiter, call, 1, call, objective=100_000 - call)
    arbiter.handle(ReplicaHeld(1, 500), 5)
    arbiter.check_invariants()
    assert run(arbiter, 6) is None
    arbiter.handle(ReplicaReady(1), 600)
    assert run(arbiter, 600) == (3, 2, 1)


def test_a_batch_that_has_started_goes_on_while_its_model_is_held(arbiter: Arbiter) -> None:
    arrive(arbiter, 1, 1, 0, objective=100_000)
    first = arbiter.next_slice(1)
    assert first is not None
    arbiter.handle(ReplicaHeld(1, 500), 2)
    arbiter.handle(SliceDone(first.batch, 100, False), 101)
    again = arbiter.next_slice(101)
    assert again is not None
    assert (again.batch, again.first) == (first.batch, False)


def test_what_cannot_be_in_time_behind_the_copy_is_refused_with_the_numbers(arbiter: Arbiter) -> None:
    arbiter.handle(ReplicaHeld(1, 1_000_000), 0)
    (drop,) = arrive(arbiter, 1, 1, 0, objective=900_000, deadline=999_000)
    assert isinstance(drop, Drop)
    assert (drop.reason, drop.facts["swap_in_us"], drop.facts["estimated_start_us"]) == ("OVERLOADED", "1000", "1000")
    assert "its model comes into device memory in 1000 us" in drop.message


def test_without_a_deadline_it_waits_though_it_will_be_late(arbiter: Arbiter) -> None:
    arbiter.handle(ReplicaHeld(1, 1_000_000), 0)
    assert arrive(arbiter, 1, 1, 0, objective=900_000) == []
    arbiter.handle(ReplicaReady(1), 1_000_000)
    assert run(arbiter, 1_000_000) == (1,)


def test_nothing_is_promised_to_a_model_that_is_not_there() -> None:
    arbiter = Arbiter()
    arbiter.handle(ReplicaAdded(1, 1, 500, 1, Model(each=100).points()), 0)
    arbiter.handle(ReplicaHeld(1, 1_000), 0)
    arrive(arbiter, 1, 1, 0, objective=1_000_000)
    arbiter.handle(ReplicaReady(1), 900)
    arrive(arbiter, 2, 1, 900, objective=1_000_000)
    (tenant,) = arbiter.statistics().tenants
    assert (tenant.guaranteed, tenant.surplus) == (1, 1)
    arbiter.check_invariants()


def test_held_calls_can_be_cancelled_expire_and_keep_their_model_from_leaving(arbiter: Arbiter) -> None:
    arbiter.handle(ReplicaHeld(1, 1_000), 0)
    arrive(arbiter, 1, 1, 0)
    arrive(arbiter, 2, 1, 0, deadline=5_000)
    assert [type(each) for each in arbiter.handle(ReplicaRemoved(1, 9_000), 10)] == []
    (cancelled,) = arbiter.handle(Cancelled(1), 20)
    assert cancelled.reason == "CANCELLED"
    late, gone = arbiter.handle(TimePassed(), 5_000)
    assert (late.reason, type(gone)) == ("DEADLINE_EXCEEDED", ReplicaGone)
    assert arbiter.handle(ReplicaReady(1), 6_000) == []


def test_being_held_gives_no_claim_on_what_others_had_meanwhile(arbiter: Arbiter) -> None:
    arbiter.handle(ReplicaHeld(1, 10_000), 0)
    arrive(arbiter, 1, 1, 0, objective=1_000_000)
    for call in range(10, 20):
        arrive(arbiter, call, 3, 0, objective=1_000_000, rows=4)
    for turn in range(5):
        assert run(arbiter, 100 * turn) is not None
    arbiter.handle(ReplicaReady(1), 1_000)
    for call in range(2, 6):
        arrive(arbiter, call, 1, 1_000, objective=1_000_000, rows=4)
    order = [run(arbiter, 1_000 + 100 * turn) for turn in range(6)]
    assert sum(bool(each) and each[0] >= 10 for each in order) >= 2
