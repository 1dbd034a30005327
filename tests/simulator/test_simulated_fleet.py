"""A fleet in virtual time. `World.run` audits every lane's books, and that each request was answered once."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_sharing.simulation import arrivals
from gpu_sharing.simulation.models import Segment, SimulatedModel
from gpu_sharing.units import MS, SECOND
from services.scheduler.core.catalogue import Key, Tenant
from services.simulator.world import Load, World

MODEL = SimulatedModel((Segment(MS),) * 5, weight_bytes=60)


def chance(seed: int = 1) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def poisson(per_second: float, start: int = 3 * SECOND, seconds: int = 5) -> tuple[int, ...]:
    return tuple(arrivals.poisson(chance(7), per_second, start, start + seconds * SECOND))


def test_models_are_placed_loaded_and_answer_within_their_objectives() -> None:
    loads = [
        Load(Tenant("acme", 300), "a", MODEL, poisson(20), 60 * MS),
        Load(Tenant("bolt", 300), "b", MODEL, poisson(20), 60 * MS),
    ]
    world = World(loads, chance(), executors=2)
    fared = world.run(8 * SECOND)
    assert {key: each.outcomes.keys() for key, each in fared.items()} == {load.key: {"OK"} for load in loads}
    assert all(each.attainment > 0.99 for each in fared.values())
    # Bandwidth is spread: each got a device of its own.
    assert all(sum(executor.device.busy_ns) > 0 for executor in world.executors.values())


def test_requests_before_a_model_is_loaded_are_refused_and_later_ones_served() -> None:
    load = Load(Tenant("acme"), "a", MODEL, (0, 4 * SECOND), None)
    fared = World([load], chance()).run(5 * SECOND)[load.key]
    assert fared.outcomes == {"MODEL_NOT_READY": 1, "OK": 1}


def test_replicas_share_a_models_requests() -> None:
    load = Load(Tenant("acme", 800), "a", MODEL, poisson(250), 60 * MS, replicas=2)
    world = World([load], chance(), executors=2)
    fared = world.run(8 * SECOND)[load.key]
    busy = [sum(executor.device.busy_ns) for executor in world.executors.values()]
    assert max(busy) < 1.5 * min(busy)
    assert fared.attainment > 0.95


def test_a_model_that_fits_nowhere_is_refused_and_says_so_and_the_others_serve() -> None:
    large = SimulatedModel((Segment(MS),), weight_bytes=1000)
    loads = [
        Load(Tenant("acme"), "a", MODEL, (4 * SECOND,), SECOND),
        Load(Tenant("huge"), "h", large, (4 * SECOND,), SECOND),
    ]
    fared = World(loads, chance(), memory_bytes=200).run(5 * SECOND)
    assert fared[Key("acme", "a")].outcomes == {"OK": 1}
    assert fared[Key("huge", "h")].outcomes == {"MODEL_UNPLACED": 1}


def test_what_an_unloaded_model_has_is_finished_and_its_memory_serves_another_until_it_is_loaded_again() -> None:
    """Only one of the two fits. The request of 4 s is in flight when its model is unloaded."""
    first = Load(
        Tenant("acme"),
        "a",
        MODEL,
        (4 * SECOND, 5 * SECOND, 11 * SECOND),
        None,
        unloaded=(4 * SECOND + MS,),
        loaded=(8 * SECOND,),
    )
    second = Load(Tenant("bolt"), "b", MODEL, (3 * SECOND, 7 * SECOND, 11 * SECOND), None, unloaded=(8 * SECOND,))
    world = World([first, second], chance(), memory_bytes=150)
    fared = world.run(12 * SECOND)
    assert fared[first.key].outcomes == {"OK": 2, "MODEL_NOT_READY": 1}
    assert fared[second.key].outcomes == {"MODEL_UNPLACED": 1, "OK": 1, "MODEL_NOT_READY": 1}


def test_two_fleets_with_one_seed_live_the_same_life() -> None:
    def digest() -> str:
        load = Load(Tenant("acme", 300), "a", MODEL, poisson(150), 30 * MS, replicas=2)
        world = World([load], chance(), executors=3)
        world.run(8 * SECOND)
        return world.trace.digest()

    assert digest() == digest()


FLAT = SimulatedModel((Segment(MS),) * 5, weight_bytes=60)
STEEP = SimulatedModel((Segment(4 * MS),) * 10, weight_bytes=60, parallel_part=1.0)


def switching(seed: int = 1, seconds: int = 157) -> World:
    """Two models that gain nothing from more units keep a whole device busy; later comes one that needs all of it."""
    steady = tuple(range(75 * SECOND, max(75, 3 + seconds) * SECOND, 200 * MS))
    loads = [
        Load(Tenant("acme", 200), "a", FLAT, poisson(85, seconds=seconds), SECOND),
        Load(Tenant("bolt", 200), "b", FLAT, poisson(85, seconds=seconds), SECOND),
        # 20 ms on two units, which is not half its objective; 10 ms on four.
        Load(Tenant("core", 300), "c", STEEP, steady, 38 * MS, pushed=70 * SECOND),
    ]
    return World(loads, chance(seed), layouts="0-3|0-1;2-3")


@pytest.mark.slow
def test_a_device_changes_its_layout_under_load_and_back_and_no_request_fails() -> None:
    world = switching()
    fared = world.run(160 * SECOND)
    (executor,) = world.executors.values()
    halves = [(each.started, each.ended) for lane in executor.lanes[1:] for each in lane.slices]
    whole = [(each.started, each.ended) for each in executor.lanes[0].slices]
    # Whole, divided, whole again.
    first, last = min(start for start, _ in halves), max(end for _, end in halves)
    assert min(start for start, _ in whole) < first < 60 * SECOND
    assert 75 * SECOND < last < 140 * SECOND
    assert any(start > last for start, _ in whole)
    assert executor.layout == 0
    for key in (Key("acme", "a"), Key("bolt", "b"), Key("core", "c")):
        assert fared[key].outcomes.keys() == {"OK"}, fared[key].outcomes


@pytest.mark.slow
def test_two_fleets_that_change_layouts_with_one_seed_live_the_same_life() -> None:
    def digest() -> str:
        world = switching(3, seconds=30)
        fared = world.run(33 * SECOND)
        assert {outcome for key in (Key("acme", "a"), Key("bolt", "b")) for outcome in fared[key].outcomes} == {"OK"}
        assert all(lane.slices for lane in world.executors["executor-0"].lanes)
        return world.trace.digest()

    assert digest() == digest()


def test_models_run_faster_on_more_units_as_far_as_their_parallel_part_goes() -> None:
    assert [STEEP.on(units).cost(1) for units in (1, 2, 4)] == [40 * MS, 20 * MS, 10 * MS]
    half = SimulatedModel((Segment(8 * MS),), parallel_part=0.5)
    assert [half.on(units).cost(1) for units in (1, 2, 4)] == [8 * MS, 6 * MS, 5 * MS]
    assert half.on(4).on(1) == half
