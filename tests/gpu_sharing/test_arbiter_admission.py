"""Who may wait, on what terms, and who has to go."""

from __future__ import annotations

import pytest
from arbiter_world import Model, World

from gpu_sharing.arbiter import Arbiter
from gpu_sharing.arbiter.admission import Reservations
from gpu_sharing.arbiter.events import ReplicaAdded, ReplicaRemoved, ReplicaUpdated, TenantStatistics
from gpu_sharing.arbiter.grants import Oversold
from gpu_sharing.units import MS, SECOND

TEN = Model(segments=10, each=MS)
"""10 ms in slices of 1 ms."""


@pytest.fixture
def world() -> World:
    return World(Arbiter(), audit_every=1)


def of(world: World, tenant: str) -> TenantStatistics:
    return next(each for each in world.arbiter.statistics().tenants if each.tenant == tenant)


def test_what_the_reservation_pays_for_in_time_is_guaranteed_and_the_rest_is_surplus(world: World) -> None:
    world.host(1, TEN, bandwidth=250, tenant="a")
    for _ in range(4):
        world.arrive(1, within=100 * MS)
    world.run(until=0)
    # At a quarter of the lane the third would be done after 120 ms.
    assert (of(world, "a").guaranteed, of(world, "a").surplus) == (2, 2)
    world.run()
    assert all(ending.is_good for ending in world.endings.values())


def test_a_reservation_is_renewed_as_time_passes(world: World) -> None:
    world.host(1, TEN, bandwidth=250, tenant="a")
    for second in range(20):
        world.arrive(1, at=second * 40 * MS, within=50 * MS)
    world.run()
    assert of(world, "a").guaranteed == 20


def test_without_a_reservation_nothing_is_guaranteed(world: World) -> None:
    world.host(1, TEN, tenant="a")
    world.arrive(1, within=SECOND)
    world.run()
    assert (of(world, "a").guaranteed, of(world, "a").surplus, of(world, "a").surplus_ns) == (0, 1, 10 * MS)


def test_all_replicas_of_a_tenant_share_its_reservation(world: World) -> None:
    world.host(1, TEN, bandwidth=250, tenant="a")
    world.host(2, TEN, bandwidth=250, tenant="a")
    for replica in (1, 2, 1, 2):
        world.arrive(replica, within=100 * MS)
    world.run(until=0)
    assert (of(world, "a").guaranteed, of(world, "a").bandwidth) == (2, 250)


def test_surplus_that_cannot_be_in_time_behind_what_waits_is_refused_with_the_numbers(world: World) -> None:
    world.host(1, TEN, tenant="a")
    for _ in range(3):
        world.arrive(1, within=25 * MS)
    world.run(until=0)
    (refused,) = world.endings.values()
    assert (refused.request.call, refused.reason) == (2, "OVERLOADED")
    assert refused.facts == {
        "stage": "admission",
        "estimated_start_us": "20000",
        "estimated_us": "10000",
        "left_us": "25000",
        "objective_us": "25000",
    }


def test_what_no_idle_lane_could_do_in_time_is_not_refused_but_waits_for_a_gap(world: World) -> None:
    world.host(1, TEN, bandwidth=500, tenant="a")
    world.arrive(1, within=5 * MS)
    world.run()
    assert world.endings[0].reason == "OK"
    assert (of(world, "a").gap, of(world, "a").gap_ns) == (1, 10 * MS)


def test_class_batch_that_would_miss_its_deadline_is_refused(world: World) -> None:
    world.host(1, TEN, tenant="a")
    for patience in (None, None, 25 * MS):
        world.arrive(1, patience=patience)
    world.run()
    assert [world.endings[call].reason for call in range(3)] == ["OK", "OK", "OVERLOADED"]


def test_a_request_about_which_nothing_is_known_is_admitted(world: World) -> None:
    world.host(1, TEN, points=(), bandwidth=100, tenant="a")
    world.arrive(1, within=50 * MS)
    world.run()
    assert of(world, "a").guaranteed == 1


def test_guaranteed_requests_revoke_at_once_the_surplus_that_they_leave_no_time(world: World) -> None:
    world.host(1, TEN, tenant="flood")
    world.host(2, TEN, bandwidth=900, tenant="reserved")
    for _ in range(2):
        world.arrive(1, within=35 * MS)
    for _ in range(3):
        world.arrive(2, at=5 * MS, within=60 * MS)
    world.run(until=5 * MS)
    (revoked,) = world.endings.values()
    assert (revoked.request.call, revoked.reason, revoked.at) == (1, "OVERLOADED", 5 * MS)
    assert revoked.facts["revoked"] == "true"
    assert (revoked.facts["left_us"], revoked.facts["objective_us"]) == ("30000", "35000")
    world.run()
    assert (of(world, "flood").revoked, of(world, "flood").surplus) == (1, 2)
    assert all(world.endings[call].is_good for call in (2, 3, 4))


def test_surplus_that_has_become_hopeless_lets_those_go_first_who_can_be_in_time(world: World) -> None:
    world.host(1, TEN, tenant="a")
    # The first batch takes five times as long as it should.
    world.models[1] = Model(segments=10, each=MS, truth=lambda batch: 5.0 if batch == 1 else 1.0)
    for within in (100 * MS, 40 * MS, 55 * MS, 90 * MS):
        world.arrive(1, within=within)
    world.run()
    order = sorted(world.endings, key=lambda call: world.endings[call].at)
    assert order == [1, 3, 0, 2]
    assert [world.endings[call].is_good for call in range(4)] == [True, False, False, True]


def test_a_full_queue_refuses_whatever_the_reservation() -> None:
    world = World(Arbiter(admission=Reservations(2)))
    world.host(1, TEN, bandwidth=1000, tenant="a")
    for _ in range(3):
        world.arrive(1, within=SECOND)
    world.run(until=0)
    assert world.endings[2].facts == {"waiting": "2", "queue_limit": "2"}
    assert of(world, "a").refused == 1


def test_more_bandwidth_than_the_lane_has_is_refused_with_the_numbers() -> None:
    arbiter = Arbiter(capacity=500)
    arbiter.handle(ReplicaAdded(1, 0, bandwidth=300, tenant="a"), 0)
    with pytest.raises(
        Oversold, match="bandwidth: 201 millidevices do not fit for tenant 'b': of 500 on this lane, others hold 300"
    ):
        arbiter.handle(ReplicaAdded(2, 0, bandwidth=201, tenant="b"), 0)
    arbiter.check_invariants()
    arbiter.handle(ReplicaAdded(2, 0, bandwidth=200, tenant="b"), 0)


def test_the_reservation_is_a_part_of_the_lane_not_of_the_device() -> None:
    world = World(Arbiter(capacity=500))
    world.host(1, TEN, bandwidth=250, tenant="a")
    for _ in range(4):
        world.arrive(1, within=100 * MS)
    world.run(until=0)
    assert of(world, "a").guaranteed == 4


def test_a_raise_beyond_what_is_free_waits_until_others_give_something_up(world: World) -> None:
    world.host(1, TEN, bandwidth=600, tenant="a")
    world.host(2, TEN, bandwidth=300, tenant="b")
    world.take(ReplicaUpdated(2, 700, 1))
    assert of(world, "b").bandwidth == 400
    world.take(ReplicaUpdated(1, 300, 1))
    assert (of(world, "a").bandwidth, of(world, "b").bandwidth) == (300, 700)


def test_who_leaves_frees_a_reservation_once_what_it_bought_is_due(world: World) -> None:
    world.host(1, TEN, bandwidth=600, tenant="a")
    for _ in range(3):
        world.arrive(1, within=100 * MS)
    world.run(until=0)
    world.take(ReplicaRemoved(1, drain_until=40 * MS))
    world.host(2, TEN, bandwidth=900, tenant="heir")
    # Of the lane, what the first has bought is taken until 50 ms.
    for at in (0, 49 * MS, 51 * MS):
        world.arrive(2, at=at, within=70 * MS)
    world.run()
    assert (of(world, "heir").guaranteed, of(world, "heir").surplus) == (1, 2)
    assert (of(world, "a").bandwidth, of(world, "a").guaranteed_ns) == (0, 30 * MS)


@pytest.mark.parametrize(("field", "value"), [("bandwidth", -1), ("weight", 0)])
def test_a_share_that_cannot_be_is_refused(field: str, value: int) -> None:
    with pytest.raises(ValueError, match="replica 1: weight"):
        Arbiter().handle(ReplicaAdded(1, 0, **{field: value}), 0)


def test_after_surplus_was_late_less_of_it_is_admitted_and_none_is_kept_from_an_empty_lane(world: World) -> None:
    world.host(1, TEN, tenant="a")
    lane = world.arbiter._lane
    for _ in range(20):
        lane.foresight.see(10 * MS, 30 * MS, 10 * MS, 0, 0)
    for _ in range(4):
        world.arrive(1, within=45 * MS)
    world.run(until=0)
    # By the estimates alone all four would be in time; three times as long, the first and nobody behind it.
    assert [ending.reason for ending in world.endings.values()] == ["OVERLOADED"] * 3
    world.run()
    assert sum(ending.is_good for ending in world.endings.values()) == 1
