"""Whose slice runs next, and how what nobody reserved is divided."""

from __future__ import annotations

import itertools

import pytest
from arbiter_world import Model, World

from gpu_sharing.arbiter import Arbiter
from gpu_sharing.arbiter.calls import Tier
from gpu_sharing.arbiter.policies import arbiter_of
from gpu_sharing.arbiter.switching import EarliestDeadline
from gpu_sharing.units import MS, SECOND

TEN = Model(segments=10, each=MS)
QUICK = Model(segments=1, each=MS)


@pytest.fixture
def world() -> World:
    return World(Arbiter(), audit_every=50)


def order(world: World) -> list[int]:
    """Replicas in the order in which they had the lane."""
    return [replica for replica, _ in itertools.groupby(replica for _, replica, _ in world.slices)]


def flood(world: World, replica: int, *, until: int, every: int = 10 * MS, within: int | None = None) -> None:
    """Twice as much as the lane can do, if requests take `every`."""
    for at in range(0, until, every):
        for _ in range(2):
            world.arrive(replica, at=at, within=within)


def test_the_earliest_deadline_of_a_reservation_goes_first_at_the_next_boundary(world: World) -> None:
    world.host(1, TEN, bandwidth=200, tenant="slow")
    world.host(2, TEN, bandwidth=800, tenant="fast")
    world.arrive(1, within=SECOND)
    world.arrive(2, at=int(2.5 * MS), within=SECOND)
    world.run()
    assert order(world) == [1, 2, 1]
    assert world.endings[1].at == 13 * MS


def test_what_is_guaranteed_goes_before_anybodys_surplus_and_surplus_before_gaps(world: World) -> None:
    for replica, bandwidth in ((1, 0), (2, 0), (3, 100)):
        world.host(replica, TEN, bandwidth=bandwidth, tenant=f"tenant {replica}")
    world.arrive(1)
    world.arrive(2, at=2 * MS, within=50 * MS)
    world.arrive(3, at=4 * MS, within=SECOND)
    world.run()
    assert order(world) == [1, 2, 3, 2, 1]


def test_beyond_its_reservation_a_tenant_has_its_share_by_weight_and_no_more(world: World) -> None:
    """Two equal reservations, twice the weight for the first: 0.2 each, and what is left 2 : 1."""
    world.host(1, TEN, bandwidth=200, weight=2, tenant="a")
    world.host(2, TEN, bandwidth=200, weight=1, tenant="b")
    for replica in (1, 2):
        flood(world, replica, until=10 * SECOND, within=500 * MS)
    world.run()
    used = world.used(SECOND, 10 * SECOND)
    assert used[1] / 9e9 == pytest.approx(0.2 + 0.4, abs=0.01)
    assert used[2] / 9e9 == pytest.approx(0.2 + 0.2, abs=0.01)


def test_a_tenant_in_no_hurry_does_not_keep_the_surplus_of_others_waiting(world: World) -> None:
    """A reservation with an objective far away buys much at once; it is served at its pace."""
    world.host(1, TEN, bandwidth=500, tenant="patient")
    world.host(2, QUICK, tenant="quick")
    for _ in range(50):
        world.arrive(1, within=10 * SECOND)
    for at in range(100, 400, 20):
        world.arrive(2, at=at * MS, within=15 * MS)
    world.run()
    assert all(ending.is_good for ending in world.endings.values())


def test_class_batch_is_divided_by_weight(world: World) -> None:
    for replica, weight in ((1, 4), (2, 2), (3, 1), (4, 1)):
        world.host(replica, TEN, weight=weight, tenant=f"tenant {replica}")
        flood(world, replica, until=4 * SECOND)
    world.run(until=4 * SECOND)
    used = world.used(0, 4 * SECOND)
    assert [used[replica] / 4e9 for replica in (1, 2, 3, 4)] == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.01)


def test_who_was_idle_has_no_claim_on_the_surplus_of_the_past(world: World) -> None:
    world.host(1, TEN, tenant="always")
    world.host(2, TEN, tenant="late")
    flood(world, 1, until=2 * SECOND)
    for at in range(SECOND, 2 * SECOND, 10 * MS):
        world.arrive(2, at=at)
        world.arrive(2, at=at)
    world.run(until=2 * SECOND)
    used = world.used(SECOND, 2 * SECOND)
    assert used[1] / used[2] == pytest.approx(1, abs=0.05)


def test_reserved_work_is_not_charged_to_the_surplus(world: World) -> None:
    """Who uses its whole reservation has as much of the rest as one without."""
    world.host(1, TEN, bandwidth=400, tenant="reserved")
    world.host(2, TEN, tenant="other")
    for replica in (1, 2):
        flood(world, replica, until=5 * SECOND, within=400 * MS)
    world.run()
    statistics = {each.tenant: each for each in world.arbiter.statistics().tenants}
    used = world.used(SECOND, 5 * SECOND)
    assert used[1] / 4e9 == pytest.approx(0.4 + 0.3, abs=0.02)
    assert statistics["other"].guaranteed_ns == 0
    assert statistics["reserved"].guaranteed_ns / statistics["reserved"].surplus_ns == pytest.approx(4 / 3, rel=0.1)


def test_an_overrun_is_paid_by_its_own_tenant(world: World) -> None:
    """Everything takes twice as long as estimated, but for one tenant, who notices nothing."""
    world.host(
        1, Model(segments=10, each=MS, truth=lambda batch: 2.0), points=TEN.points(), bandwidth=500, tenant="wrong"
    )
    world.host(2, TEN, bandwidth=500, tenant="right")
    flood(world, 1, until=2 * SECOND, within=200 * MS)
    for at in range(0, 2000, 20):
        world.arrive(2, at=at * MS, within=24 * MS)
    world.run()
    assert all(ending.is_good for ending in world.endings.values() if ending.request.replica == 2)


def test_no_more_batches_than_allowed_are_suspended_and_the_guaranteed_start_all_the_same() -> None:
    world = World(Arbiter(switching=EarliestDeadline(max_in_flight=2)))
    for replica in range(1, 7):
        world.host(replica, TEN, tenant=f"tenant {replica}")
        # Each smaller than the one before: each would go first.
        world.arrive(replica, at=replica * MS, within=(200 - replica) * MS)
    world.host(7, QUICK, bandwidth=100, tenant="reserved")
    world.arrive(7, at=8 * MS, within=15 * MS)
    most = 0
    for moment in range(1, 80):
        world.run(until=moment * MS)
        most = max(most, world.arbiter.statistics().in_flight)
    assert most <= 3
    assert world.endings[6].is_good


def test_a_guaranteed_request_finds_a_place_beside_its_models_own_flood(world: World) -> None:
    world.host(1, TEN, bandwidth=300, tenant="a")
    world.arrive(1)
    world.arrive(1)
    world.arrive(1, at=int(1.5 * MS), within=50 * MS)
    world.run()
    assert world.endings[2].at == 12 * MS


def test_in_order_of_arrival_a_batch_runs_to_its_end_whoever_comes() -> None:
    world = World(arbiter_of("arrival_order"))
    world.host(1, TEN, tenant="a")
    world.host(2, QUICK, bandwidth=900, tenant="b")
    world.arrive(1)
    world.arrive(1, at=1)
    world.arrive(2, at=2, within=3 * MS)
    world.run()
    assert order(world) == [1, 2]
    assert [world.endings[call].at for call in range(3)] == [10 * MS, 20 * MS, 21 * MS]


def test_device_time_is_metered_to_the_slice_also_of_those_who_have_left(world: World) -> None:
    for replica in (1, 2, 3):
        world.host(replica, TEN, bandwidth=100, tenant="ab"[replica // 2 % 2])
        flood(world, replica, until=100 * MS, within=50 * MS)
    world.run()
    statistics = world.arbiter.statistics()
    used = world.used()
    assert {each.replica: each.device_ns for each in statistics.replicas} == used
    assert {each.tenant: each.device_ns for each in statistics.tenants} == {"a": used[1], "b": used[2] + used[3]}
    assert statistics.busy_ns == sum(used.values())


def test_what_runs_again_is_guaranteed_only_where_its_reservation_pays_for_it() -> None:
    """Two requests of 10 ms each break their batch after 15 ms, for which half a lane has 30 ms: again they are due at 50 and
    at 70 ms, and to be guaranteed they have to be the longest slice before their objective."""
    for within, second in ((80 * MS, Tier.SURPLUS), (200 * MS, Tier.GUARANTEED)):
        world = World(Arbiter(), audit_every=1)
        world.host(1, Model(each=10 * MS, max_batch_size=2), bandwidth=500, tenant="a")
        calls = [world.arrive(1, within=within) for _ in range(2)]
        world.schedule(15 * MS, lambda world=world: world.break_running(15 * MS))
        world.run(until=16 * MS)
        assert [world.arbiter._lane.calls[call].tier for call in calls] == [Tier.GUARANTEED, second]
        world.run()
        assert [world.endings[call].reason for call in calls] == ["OK", "OK"]
        (tenant,) = world.arbiter.statistics().tenants
        assert (tenant.guaranteed, tenant.surplus) == (2, 0)


def test_finding_out_what_breaks_a_batch_costs_nobody_else_anything() -> None:
    """Every batch of the first tenant breaks, over and over; the second is within its reservation."""
    world = World(Arbiter(), audit_every=20)
    world.host(1, Model(fixed=MS, each=MS, max_batch_size=8), bandwidth=300, tenant="broken")
    world.host(2, Model(segments=3, each=MS), bandwidth=500, tenant="sound")
    flood(world, 1, until=SECOND, every=2 * MS, within=SECOND)
    sound = [world.arrive(2, at=at, within=30 * MS) for at in range(0, SECOND, 8 * MS)]

    def break_it() -> None:
        running = world._running
        if running is not None and running.replica == 1:
            world.break_running(0)

    for at in range(0, 2 * SECOND, MS // 2):
        world.schedule(at, break_it)
    world.run()
    assert all(world.endings[call].is_good for call in sound)
    assert len(world.endings) == len(world.requests)
