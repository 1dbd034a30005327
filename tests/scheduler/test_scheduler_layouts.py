"""Devices that are prepared for several layouts: which is chosen, and how a change of layouts goes."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from scheduler_world import KIND, World, divided, model, tenant

from services.scheduler.core.catalogue import Key, Model, Profile
from services.scheduler.core.events import SendLayout, SendLoad, SendUnload
from services.scheduler.core.layouts import LayoutRefused
from services.scheduler.core.rates import Rates
from services.scheduler.core.reports import Seen, UsageReport
from services.scheduler.core.routes import VersionState
from services.scheduler.core.state import Policy

MS = 1_000_000
POLICY = Policy(settle_s=0, layout_steady_s=5, layout_dwell_s=60, layout_limit_s=100)


def world(*models: object, memory_bytes: int = 10_000, reserve: int = 0) -> World:
    """One executor whose device of 4 units is whole, or two halves."""
    made = World(POLICY)
    made.replace_catalogue([tenant("acme", reserve), tenant("bolt")], list(models))  # type: ignore[arg-type]
    made.add("one", divided((4,), (2, 2), memory_bytes=memory_bytes))
    return made


def measured(key: str, memory_bytes: int) -> Model:
    """A model that is known to take so much."""
    made = model(key)
    version = replace(made.versions[0], profiles=(Profile(KIND, memory_bytes),))
    return replace(made, versions=(version,))


def passes(made: World, seconds: float, step_s: float = 0.5) -> None:
    """Time passes while executors work; at each moment whatever was served is served."""
    served: set[str] = set()
    for _ in range(round(seconds / step_s)):
        made.round(step_s)
        made.check_invariants()
        ready = {str(key) for key in made.routes if _ready(made, key)}
        assert served <= ready, f"{served - ready} is not served any more"
        served = ready


def _ready(made: World, key: Key) -> bool:
    return any(each.state is VersionState.READY for each in made.routes[key].versions)


def lanes(made: World, name: str = "one") -> list[int]:
    return sorted(each.lane for each in made.executors[name].replicas.values())


def work(made: World, busy: dict[str, float], seconds: float, name: str = "one") -> None:
    """Models use device time."""
    for _ in range(round(seconds / 0.5)):
        for key, part in busy.items():
            owner, _, called = key.partition("/")
            used = made.executors[name].used_ns
            used[Key(owner, called)] = used.get(Key(owner, called), 0) + int(part * 0.5e9)
        passes(made, 0.5)


def test_replicas_are_placed_only_on_lanes_of_the_layout_in_force() -> None:
    made = world(*(model(f"acme/m{number}") for number in range(4)))
    passes(made, 3)
    assert lanes(made) == [0, 0, 0, 0]


def test_capacity_counts_within_one_layout() -> None:
    device = divided((4,), (2, 2), (1, 1, 2))
    assert [device.capacity(lane.number) for lane in device.lanes] == [1000, 500, 500, 250, 250, 500]
    made = world(reserve=0)
    assert made.scheduler.check_reservation("bolt", 1000).refusal is None
    assert made.scheduler.check_reservation("bolt", 1001).refusal is not None


def test_a_busy_device_is_divided_and_no_model_is_without_a_replica_meanwhile() -> None:
    made = world(model("acme/a"), model("bolt/b"))
    passes(made, 3)
    flat = {4: 10 * MS, 2: 10 * MS}
    made.executors["one"].measured = {each.ref: flat for each in made.executors["one"].replicas.values()}
    work(made, {"acme/a": 0.45, "bolt/b": 0.45}, 60)
    assert lanes(made) == [1, 2]
    assert made.executors["one"].layout == 1
    story = [each for each in made.story if isinstance(each, SendLayout | SendLoad | SendUnload)]
    changed = next(number for number, each in enumerate(story) if isinstance(each, SendLayout))
    assert [type(each) for each in story[changed:]] == [SendLayout, SendLoad, SendLoad, SendUnload, SendUnload]


def test_a_device_that_is_hardly_used_stays_as_it_is() -> None:
    made = world(model("acme/a"), model("bolt/b"))
    work(made, {"acme/a": 0.2, "bolt/b": 0.2}, 120)
    assert not any(isinstance(each, SendLayout) for each in made.story)


def test_load_that_comes_and_goes_does_not_make_layouts_come_and_go() -> None:
    made = world(model("acme/a"), model("bolt/b"))
    passes(made, 3)
    for _ in range(12):
        work(made, {"acme/a": 0.5, "bolt/b": 0.5}, 15)
        work(made, {}, 15)
    assert sum(isinstance(each, SendLayout) for each in made.story) <= 1


def test_a_model_that_needs_the_whole_device_for_its_objective_gets_it() -> None:
    made = world(model("acme/a"), model("bolt/b"))
    made.handle(made.scheduler.pin_layout("one", "2+2"))
    passes(made, 5)
    assert lanes(made) == [1, 2]
    made.handle(made.scheduler.pin_layout("one", ""))
    tight = model("acme/tight", objective_us=20_000)
    made.replace_catalogue([tenant("acme"), tenant("bolt")], [model("acme/a"), model("bolt/b"), tight])
    ref = tight.ref(tight.versions[0])
    made.executors["one"].measured = {ref: {2: 14 * MS, 4: 8 * MS}}
    passes(made, 80)
    assert lanes(made) == [0, 0, 0]
    assert any("compute units that acme/tight version 1 needs" in getattr(each, "why", "") for each in made.story)
    passes(made, 200)
    assert lanes(made) == [0, 0, 0]


def test_a_model_that_is_too_large_for_the_partitions_gets_a_layout_that_holds_it() -> None:
    made = World(POLICY)
    made.replace_catalogue([tenant("acme")], [measured("acme/large", 6_000)])
    made.add("one", divided((2, 2), (4,), memory_bytes=10_000))
    made.round(0.5)
    found = made.version("acme/large", 1)
    assert found is not None
    assert found.message == (
        "acme/large needs 6000 bytes of memory, the largest partition has 5000; another layout has one of 10000"
    )
    passes(made, 10)
    assert lanes(made) == [2]


def test_a_model_that_is_too_large_for_every_partition_is_told_the_figures() -> None:
    made = world(measured("acme/large", 12_000))
    passes(made, 100)
    found = made.version("acme/large", 1)
    assert found is not None
    assert (found.state, found.message) == (
        VersionState.UNPLACED,
        "acme/large needs 12000 bytes of memory, the largest partition has 10000",
    )
    assert not any(isinstance(each, SendLayout) for each in made.story)


def test_an_operators_layout_is_kept_and_given_back() -> None:
    made = world(model("acme/a"), model("bolt/b"))
    passes(made, 3)
    made.handle(made.scheduler.pin_layout("one", "2+2"))
    passes(made, 5)
    assert lanes(made) == [1, 2]
    assert made.executors["one"].pinned
    made.restart(epoch=8)
    made.handle(made.catalogue)
    made.attach("one")
    passes(made, 200)
    assert (lanes(made), made.scheduler.state.fleet.executors["one"].division.pinned) == ([1, 2], True)


@pytest.mark.parametrize(
    ("executor", "layout", "problem"),
    [
        ("two", "4", "'two' is not attached; there are: one"),
        ("one", "3+1", "'3+1' is none of those that one is prepared for: 4, 2+2"),
        ("one", "2+2", "in '2+2' there would be no place for acme/a version 1"),
    ],
)
def test_a_layout_that_cannot_be_brought_into_force_is_refused_with_the_reason(
    executor: str, layout: str, problem: str
) -> None:
    made = world(model("acme/a"), reserve=800)
    passes(made, 3)
    with pytest.raises(LayoutRefused, match=re.escape(problem)):
        made.scheduler.pin_layout(executor, layout)


def test_without_memory_for_two_of_it_a_model_is_moved_only_when_an_operator_says_so() -> None:
    made = world(model("acme/a", size_bytes=2_000), model("bolt/b", size_bytes=2_000), memory_bytes=9_000)
    work(made, {"acme/a": 0.5, "bolt/b": 0.5}, 100)
    assert lanes(made) == [0, 0]
    made.handle(made.scheduler.pin_layout("one", "2+2"))
    for _ in range(20):
        made.round(0.5)
        made.check_invariants()
    assert lanes(made) == [1, 2]


def test_a_change_that_does_not_get_on_is_taken_back_and_nobody_lost_anything() -> None:
    made = world(model("acme/a"), model("bolt/b"))
    passes(made, 3)
    made.executors["one"].stubborn = True
    work(made, {"acme/a": 0.5, "bolt/b": 0.5}, 60)
    assert made.executors["one"].layout == 1
    assert {each.state for each in made.executors["one"].replicas.values() if each.lane == 0} == {Seen.READY}
    work(made, {"acme/a": 0.5, "bolt/b": 0.5}, 60)
    assert made.executors["one"].layout == 0
    assert lanes(made) == [0, 0]
    assert any("was not reached" in getattr(each, "why", "") for each in made.story)


def test_one_device_changes_at_a_time() -> None:
    made = world(model("acme/a", replicas=2), model("bolt/b", replicas=2))
    made.add("two", divided((4,), (2, 2)))
    for _ in range(140):
        for name in ("one", "two"):
            for key in (Key("acme", "a"), Key("bolt", "b")):
                used = made.executors[name].used_ns
                used[key] = used.get(key, 0) + int(0.25e9)
        passes(made, 0.5)
        changing = [each for each in made.scheduler.state.fleet.executors.values() if each.division.before is not None]
        assert len(changing) <= 1
    assert [made.executors[name].layout for name in ("one", "two")] == [1, 1]


def test_how_busy_a_model_is_follows_what_its_executor_counts_also_over_a_restart() -> None:
    rates, key = Rates(), Key("acme", "a")
    used = 0
    for second in range(100):
        used += 400_000_000
        rates.take([UsageReport(key, "1", used)], float(second))
    assert rates.busy(key) == pytest.approx(0.4, rel=0.02)
    for second in range(100):
        rates.take([UsageReport(key, "2", second * 100_000_000)], 100.0 + second)
    assert rates.busy(key) == pytest.approx(0.1, rel=0.05)
