"""The scheduler's parts, each by itself."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduler_world import World, device, model, tenant

from services.scheduler.core import reconcile
from services.scheduler.core.catalogue import MILLION, Key, Profile, Slo, Split, TrafficClass, Version
from services.scheduler.core.events import Passed, RecordInspection, SendLoad, SendUnload, SendUpdate, Tick
from services.scheduler.core.placement import SIZE_FACTOR, demand, memory_estimate, spread
from services.scheduler.core.replicas import STEPS, Phase
from services.scheduler.core.reports import Device, Lane, Seen
from services.scheduler.core.routes import Route, RouteLog, RoutesChanged, scaled, shares
from services.scheduler.core.state import Policy

KEY = Key("search", "embed")
versions = st.integers(1, 6)
splits = st.dictionaries(versions, st.integers(1, MILLION), min_size=1).map(
    lambda parts: tuple(Split(version, ppm) for version, ppm in sorted(parts.items()))
)


def route(key: Key = KEY, objective_us: int = 1) -> Route:
    return Route(key, Slo(objective_us), TrafficClass.INTERACTIVE, (), ())


# Replicas.


def test_the_table_of_steps_knows_every_phase_and_every_report() -> None:
    alive = [phase for phase in Phase if phase is not Phase.GONE]
    assert STEPS.keys() == set(itertools.product(alive, Seen))


def test_a_replica_that_was_told_to_go_never_comes_back() -> None:
    assert {STEPS[Phase.LEAVING, seen][0] for seen in Seen} == {Phase.LEAVING, Phase.GONE}


# Devices and placement.


def test_a_lane_is_worth_its_part_of_the_devices_compute_units() -> None:
    of = Device("cuda:x", 132, 0, (Lane(0, 0, 88), Lane(1, 0, 40)))
    assert [of.capacity(0), of.capacity(1), of.capacity(2)] == [666, 303, 0]


@given(st.lists(st.integers(1, 200), min_size=1, max_size=8), st.integers(0, 200))
def test_the_lanes_of_one_device_are_never_worth_more_than_the_device(units: list[int], whole: int) -> None:
    of = Device("x", whole, 0, tuple(Lane(number, 0, each) for number, each in enumerate(units)))
    assert sum(of.capacity(number) for number in range(len(units))) <= 1000


@given(st.integers(0, 4000), st.integers(1, 64), st.integers(0, 70))
def test_the_demands_of_a_models_replicas_cover_its_tenants_reservation(
    reservation: int, replicas: int, executors: int
) -> None:
    wanted = model("search/embed", replicas=replicas)
    count = spread(wanted, executors)
    each = demand(tenant("search", reservation), wanted, executors)
    assert reservation <= each * count < reservation + count


def test_memory_is_estimated_by_the_same_kind_of_device_then_by_any_then_by_size() -> None:
    profiles = (Profile("cpu", 70), Profile("cuda", 50))
    assert memory_estimate(Version(1, "d", 100, profiles=profiles), "cuda") == 50
    assert memory_estimate(Version(1, "d", 100, profiles=profiles), "other") == 70
    assert memory_estimate(Version(1, "d", 100), "cuda") == 100 * SIZE_FACTOR


def test_a_device_that_does_not_tell_its_memory_is_not_checked() -> None:
    world = World()
    world.add("gpu-0", device(memory_bytes=0))
    world.replace_catalogue([], [model("search/embed", size_bytes=1 << 40)])
    world.settle()
    assert world.placed() == {"gpu-0": ["search/embed version 1"]}


def test_larger_reservations_are_placed_before_smaller_ones() -> None:
    world = World(Policy(settle_s=1))
    world.replace_catalogue([tenant("big", 700), tenant("a", 400)], [model("a/one"), model("big/one")])
    world.add("gpu-0")
    world.wait(1)
    world.settle()
    assert world.placed() == {"gpu-0": ["big/one version 1"]}


# Splits and routes.


@given(splits)
def test_scaled_parts_add_up_to_a_million_and_keep_their_proportions(wanted: tuple[Split, ...]) -> None:
    total, parts = sum(split.ppm for split in wanted), {split.version: split.ppm for split in scaled(wanted)}
    assert sum(parts.values()) == MILLION
    for split in wanted:
        assert abs(parts.get(split.version, 0) - split.ppm * MILLION / total) <= len(wanted)


@given(splits, st.sets(versions), st.sets(versions))
def test_only_versions_that_serve_get_traffic_while_any_does(
    wanted: tuple[Split, ...], ready: set[int], known: set[int]
) -> None:
    known |= ready | {split.version for split in wanted}
    found = shares(wanted, sorted(ready), sorted(known))
    assert sum(split.ppm for split in found) == MILLION
    if ready:
        assert {split.version for split in found} <= ready


def test_a_model_whose_versions_are_all_refused_sends_its_callers_to_the_highest() -> None:
    assert shares((), (), (1, 2)) == (Split(2, MILLION),)
    assert shares((), (), ()) == ()


def test_a_log_of_routes_tells_what_changed_and_nothing_twice() -> None:
    log, other = RouteLog(), Key("voice", "vad")
    assert log.publish({KEY: route(), other: route(other)}, 0.0) == RoutesChanged(2, (route(), route(other)))
    assert log.publish({KEY: route(), other: route(other)}, 0.0) is None
    assert log.publish({KEY: route(KEY, 2)}, 0.0) == RoutesChanged(3, (route(KEY, 2),), (other,))
    assert log.snapshot() == (3, (route(KEY, 2),))


def test_a_log_of_routes_answers_from_any_revision_it_holds_and_from_no_other() -> None:
    log = RouteLog(length=2)
    changes = [log.publish({KEY: route(KEY, number)}, 0.0) for number in range(5)]
    assert log.revision == 6
    assert log.after(6) == ()
    assert log.after(5) == (changes[4],)
    assert log.after(4) == (changes[3], changes[4])
    assert [log.after(revision) for revision in (0, 3, 7)] == [None, None, None]


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 3)), max_size=12), st.integers(1, 20))
def test_a_watcher_that_applies_changes_holds_what_the_snapshot_says(states: list[dict[str, int]], length: int) -> None:
    log, held, revision = RouteLog(length), {}, 1
    for state in states:
        log.publish({Key("t", name): route(Key("t", name), objective) for name, objective in state.items()}, 0.0)
        for change in log.after(revision) or ():
            held.update({each.key: each for each in change.upserts})
            for key in change.removals:
                del held[key]
            revision = change.revision
    assert (revision, tuple(each for _, each in sorted(held.items()))) == log.snapshot()


# The whole.


def test_replica_ids_carry_the_epoch_and_those_that_executors_hold_are_not_given_again() -> None:
    world = World(epoch=7)
    world.add("gpu-0")
    world.replace_catalogue([], [model("search/embed")])
    world.settle()
    assert list(world.executors["gpu-0"].replicas) == [(7 << 32) + 1]
    world.restart(epoch=7)
    world.attach("gpu-0")
    world.replace_catalogue([], [model("search/embed"), model("search/more")])
    world.settle()
    assert sorted(world.executors["gpu-0"].replicas) == [(7 << 32) + 1, (7 << 32) + 2]


def test_nothing_is_unloaded_before_the_catalogue_is_known() -> None:
    world = World()
    world.add("gpu-0")
    world.replace_catalogue([], [model("search/embed")])
    world.settle()
    world.restart(epoch=8)
    world.attach("gpu-0")
    assert world.wait(100) == []
    world.replace_catalogue([], [model("search/embed")])
    assert not any(isinstance(action, SendUnload | SendLoad) for action in world.story[-5:])
    assert world.version("search/embed", 1).replicas


def test_a_load_without_visible_effect_is_sent_again_under_the_same_number() -> None:
    world = World()
    executor = world.add("gpu-0")
    world.replace_catalogue([], [model("search/embed")])
    first = executor.inbox.pop()
    assert world.wait(9) == []
    again = world.wait(1)
    assert isinstance(again[0], SendLoad)
    assert again == [first]


def test_an_unload_without_visible_effect_is_sent_again_after_the_drain() -> None:
    world = World()
    executor = world.add("gpu-0")
    world.replace_catalogue([], [model("search/embed")])
    world.settle()
    world.replace_catalogue([], [])
    first = executor.inbox.pop()
    assert world.wait(19) == []
    assert world.wait(1) == [first]


def test_a_replica_that_vanishes_is_placed_anew_after_a_delay() -> None:
    world = World()
    executor = world.add("gpu-0")
    world.replace_catalogue([], [model("search/embed")])
    world.settle()
    executor.replicas.clear()
    assert not any(isinstance(action, SendLoad) for action in world.report("gpu-0"))
    assert any(isinstance(action, SendLoad) for action in world.wait(1))


def test_delays_double_up_to_the_most_and_begin_anew_after_a_steady_while() -> None:
    world = World(Policy(settle_s=0, retry_first_s=1, retry_most_s=5, steady_s=60))
    executor = world.add("gpu-0")
    world.replace_catalogue([], [model("search/embed")])
    delays = []
    for _ in range(5):
        world.settle()
        executor.put(next(iter(executor.replicas)), Seen.FAILED, "broken")
        world.report("gpu-0")
        failures = next(iter(world.scheduler.state.failures.values()))
        delays.append(failures.retry_at - world.now)
        world.settle()
        world.wait(delays[-1])
    assert delays == [1, 2, 4, 5, 5]
    world.settle()
    world.wait(60)
    executor.put(next(iter(executor.replicas)), Seen.FAILED, "broken")
    world.report("gpu-0")
    assert next(iter(world.scheduler.state.failures.values())).count == 1


def test_a_version_that_failed_and_waits_is_listed_with_its_reason() -> None:
    world = World()
    executor = world.add("gpu-0")
    world.replace_catalogue([], [model("search/embed")])
    executor.obey()
    executor.put(next(iter(executor.replicas)), Seen.FAILED, "out of memory")
    world.report("gpu-0")
    told = world.scheduler.fleet().unplaced
    assert [(each.key, each.message) for each in told] == [(KEY, "failed 1 times, last on gpu-0: out of memory")]


def test_findings_on_another_kind_of_device_are_recorded_as_well() -> None:
    world = World()
    world.add("gpu-0", device(kind="h200"))
    world.add("gpu-1", device(kind="a100"))
    world.replace_catalogue([], [model("search/embed", replicas=2)])
    world.settle()
    outcomes = [each.outcome for each in world.inspections]
    assert [each.profile.device_kind for each in outcomes if isinstance(each, Passed) and each.profile] == [
        "h200",
        "a100",
    ]
    assert not list(reconcile.inspections(world.scheduler.state))


def test_a_detached_executor_is_sent_nothing() -> None:
    world = World()
    world.add("gpu-0")
    world.replace_catalogue([], [model("search/embed", objective_us=1)])
    world.settle()
    world.detach("gpu-0")
    told = world.replace_catalogue(
        [tenant("search", 500)], [model("search/embed", objective_us=2), model("search/more")]
    )
    assert not any(isinstance(action, SendLoad | SendUpdate | SendUnload) for action in told)
    told = world.attach("gpu-0")
    assert {type(action) for action in told} >= {SendLoad, SendUpdate}


def test_an_unload_that_was_lost_with_its_stream_is_sent_again_on_the_next() -> None:
    world = World()
    executor = world.add("gpu-0")
    world.replace_catalogue([], [model("search/embed")])
    world.settle()
    world.replace_catalogue([], [])
    assert len(executor.inbox) == 1
    world.detach("gpu-0")
    world.attach("gpu-0")
    world.settle()
    assert executor.replicas == {}


def test_what_one_tenant_gives_back_another_gets_at_once() -> None:
    world = World()
    world.add("gpu-0")
    models = [model("a/one"), model("b/one")]
    world.replace_catalogue([tenant("a", 300), tenant("b", 700)], models)
    world.settle()
    world.replace_catalogue([tenant("a", 700), tenant("b", 300)], models)
    grants = world.scheduler.state.fleet.executors["gpu-0"].grants[0]
    assert grants == {"a": 700, "b": 300}


def test_a_lost_executor_is_worth_nothing_and_told_of_once() -> None:
    world = World()
    world.add("gpu-0")
    world.replace_catalogue([], [])
    world.detach("gpu-0")
    assert world.scheduler.check_reservation("search", 500).refusal is None
    assert len(world.wait(10)) == 1
    assert world.scheduler.check_reservation("search", 500).capacity is None
    assert world.wait(1) == []


def test_free_parts_of_two_lanes_do_not_make_a_whole() -> None:
    world = World()
    world.add("gpu-0")
    world.add("gpu-1")
    tenants = [tenant("a", 600), tenant("b", 600)]
    world.replace_catalogue(tenants, [model("a/one"), model("b/one")])
    world.settle()
    promise = world.scheduler.check_reservation("search", 800)
    assert (promise.free, promise.capacity) == (400, 2000)
    assert "0.400 free of 2.000: no lane has more left" in (promise.refusal or "")
    world.replace_catalogue(tenants, [model("a/one"), model("b/one"), model("search/embed", replicas=2)])
    assert world.scheduler.check_reservation("search", 800).refusal is None
    assert world.scheduler.check_reservation("search", 801).refusal is not None


def test_an_executor_that_is_gone_for_long_is_no_longer_listed() -> None:
    world = World(Policy(settle_s=0, grace_s=10, forget_s=100))
    world.add("gpu-0")
    world.detach("gpu-0")
    world.wait(50)
    assert [each.attached for each in world.scheduler.fleet().executors] == [False]
    world.wait(50)
    assert world.scheduler.fleet().executors == ()


def test_a_report_that_only_says_how_busy_an_executor_is_leads_to_no_decision() -> None:
    world = World()
    executor = world.add("gpu-0")
    world.replace_catalogue([], [model("search/embed")])
    world.settle()
    executor.used_ns[KEY] = 5
    assert world.report("gpu-0") == []
    assert world.scheduler.state.usage.of("search").device_ns == 5


def test_a_refusal_that_the_registry_knows_is_not_recorded_again() -> None:
    world = World()
    executor = world.add("gpu-0")
    world.replace_catalogue([], [model("search/embed")])
    executor.obey()
    executor.put(next(iter(executor.replicas)), Seen.REFUSED, "pickle")
    world.report("gpu-0")
    world.settle()
    assert [type(each) for each in world.inspections] == [RecordInspection]
    assert world.version("search/embed", 1).message == "pickle"
    assert executor.replicas == {}


@pytest.mark.parametrize("models", [400])
def test_many_models_are_placed_without_a_storm(models: int) -> None:
    world = World()
    for number in range(8):
        world.add(f"gpu-{number}", device(lanes=2, memory_bytes=0))
    tenants = [tenant(f"t{number}", 40) for number in range(40)]
    wanted = [model(f"t{number % 40}/m{number}") for number in range(models)]
    loads = [action for action in world.replace_catalogue(tenants, wanted) if isinstance(action, SendLoad)]
    assert len(loads) == models
    assert world.settle() <= 4
    assert sum(isinstance(action, SendLoad) for action in world.story) == models
    assert world.handle(Tick()) == []


def test_a_version_that_the_traffic_names_with_no_part_is_loaded_and_gets_nothing_unasked() -> None:
    world, split = World(Policy(settle_s=0)), (Split(1, 0), Split(2, MILLION))
    world.replace_catalogue([tenant("a")], [model("a/one", 1, 2, 3, traffic={1: 0, 2: MILLION})])
    world.add("gpu-0")
    world.settle()
    assert world.placed() == {"gpu-0": ["a/one version 1", "a/one version 2"]}
    assert shares(split, (1, 2), (1, 2, 3)) == (Split(2, MILLION),)
    assert shares(split, (1,), (1, 2, 3)) == (Split(1, MILLION),)


def test_a_scheduler_that_nobody_has_come_back_to_waits_longer_before_it_says_that_nothing_serves() -> None:
    world = World(Policy(settle_s=2))
    world.replace_catalogue([tenant("a")], [model("a/one")])
    world.wait(9.9)
    assert not world.scheduler.settled(world.now)
    world.wait(0.2)
    assert world.scheduler.settled(world.now)
    world = World(Policy(settle_s=2))
    world.replace_catalogue([tenant("a")], [model("a/one")])
    world.add("gpu-0")
    world.wait(2)
    assert world.scheduler.settled(world.now)
