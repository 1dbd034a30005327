"""Which requests run together."""

from __future__ import annotations

import pytest
from arbiter_world import Model, World

from gpu_sharing.arbiter import Arbiter
from gpu_sharing.arbiter.batching import Largest, LargestInTime
from gpu_sharing.arbiter.events import Slice
from gpu_sharing.measurements import ProfilePoint
from gpu_sharing.units import MS, SECOND

CHEAP = Model(segments=10, fixed=MS, each=MS // 10, max_batch_size=8)
"""11 ms alone, 18 ms for eight."""

DEAR = Model(segments=10, each=MS, max_batch_size=8)
"""10 ms alone, 80 ms for eight: together they take no less."""


def world_of(model: Model, **fields: object) -> World:
    world = World(Arbiter())
    world.host(1, model, tenant="a", **fields)
    return world


def first(world: World) -> Slice:
    world.run(until=world.now)
    chosen = world._running
    assert chosen is not None
    return chosen


def test_as_many_as_are_all_in_time() -> None:
    world = world_of(CHEAP)
    for call in range(8):
        world.arrive(1, within=(30 + call) * MS)
    assert len(first(world).calls) == 8


def test_no_more_than_leave_the_earliest_in_time() -> None:
    world = world_of(CHEAP)
    world.arrive(1, within=int(14.5 * MS))
    for _ in range(7):
        world.arrive(1, within=SECOND)
    # Four take 14 ms, eight 18 ms.
    assert len(first(world).calls) == 4


def test_guaranteed_requests_run_together_where_their_budget_is_due_before_the_earliest_of_them() -> None:
    world = world_of(DEAR, bandwidth=500)
    for _ in range(4):
        world.arrive(1, within=100 * MS)
    assert len(first(world).calls) == 4
    world = world_of(DEAR, bandwidth=500)
    for call in range(4):
        world.arrive(1, within=(50 + 30 * call) * MS)
    # Two are due at 40 ms and four at 80 ms, the first request at 50 ms.
    assert len(first(world).calls) == 1, "two longest slices are kept as a margin"


def test_a_batch_takes_no_time_from_a_request_of_the_same_tenant_that_is_due_before_its_riders() -> None:
    world = world_of(DEAR, bandwidth=1000)
    world.host(2, Model(segments=2, each=MS), bandwidth=1000, tenant="a")
    world.arrive(1, within=41 * MS)
    world.arrive(1, within=200 * MS)
    world.arrive(1, within=200 * MS)
    world.arrive(2, within=42 * MS)
    assert len(first(world).calls) == 1
    world.run()
    assert all(ending.is_good for ending in world.endings.values())


def test_who_takes_longer_together_runs_alone() -> None:
    model = Model(segments=1, each=MS, max_batch_size=4)
    points = tuple(ProfilePoint(rows, "", 1, rows**2 * MS, rows**2 * MS, 9) for rows in (1, 2, 4))
    world = world_of(model, points=points)
    for _ in range(4):
        world.arrive(1, within=SECOND)
    assert len(first(world).calls) == 1


def test_surplus_rides_with_what_is_guaranteed_for_nothing() -> None:
    world = world_of(CHEAP, bandwidth=150)
    for _ in range(6):
        world.arrive(1, within=200 * MS)
    chosen = first(world)
    statistics = world.arbiter.statistics().tenants[0]
    # Two are guaranteed, and have bought 22 ms; six take 16 ms.
    assert (statistics.guaranteed, statistics.surplus) == (2, 4)
    assert chosen.calls == (0, 1, 2, 3, 4, 5)
    world.run()
    assert world.arbiter.statistics().busy_ns == 16 * MS


def test_surplus_does_not_ride_at_the_expense_of_the_reservation() -> None:
    world = world_of(DEAR, bandwidth=150)
    for _ in range(4):
        world.arrive(1, within=160 * MS)
    assert len(first(world).calls) == world.arbiter.statistics().tenants[0].guaranteed == 2


def test_different_tenants_never_share_a_batch() -> None:
    world = world_of(CHEAP)
    world.host(2, CHEAP, tenant="b")
    for replica in (1, 2) * 4:
        world.arrive(replica, within=SECOND)
    assert len(first(world).calls) == 4


@pytest.mark.parametrize("batching", [Largest, LargestInTime])
def test_a_batch_is_so_small_that_its_longest_slice_fits_the_quantum(batching: type[Largest]) -> None:
    points = tuple(
        ProfilePoint(rows, "", 1, 2 * rows * MS, 2 * rows * MS, 9, segments_ns=(rows * MS, rows * MS))
        for rows in (1, 2, 4, 8)
    )
    for quantum, length in ((8 * MS, 8), (7 * MS, 4), (2 * MS, 2), (MS // 2, 1)):
        world = World(Arbiter(batching=batching(quantum)))
        world.host(1, Model(segments=2, each=MS, max_batch_size=8), points=points, tenant="a")
        for _ in range(8):
            world.arrive(1, within=SECOND)
        assert len(first(world).calls) == length


def test_a_quantum_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="quantum_ns: must be at least 1, is 0"):
        Largest(0)


def test_a_batch_waits_for_nobody_on_an_idle_lane() -> None:
    world = world_of(CHEAP, bandwidth=500)
    world.arrive(1, within=SECOND)
    world.arrive(1, at=1, within=SECOND)
    assert first(world).calls == (0,)


def test_a_tenants_batch_that_would_be_due_later_than_others_lets_them_go_first() -> None:
    """Eight together are due at 36 ms; meanwhile the neighbour has its turn."""
    world = world_of(CHEAP, bandwidth=500)
    world.host(2, Model(segments=2, each=MS), bandwidth=200, tenant="b")
    for _ in range(8):
        world.arrive(1, within=300 * MS)
    world.arrive(2, within=300 * MS)
    assert first(world).replica == 2
    world.run()
    assert len(world.slices) == 12, "and then all eight run together"
