"""Which lanes have workers: those of the layout in force, and others for as long as they hold anything."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.devices.simulated import SimulatedDevice
from gpu_sharing.measurements import Profile
from gpu_sharing.tensors import Signature
from gpu_sharing.worker.messages import Loaded, Unload, Unloaded
from services.common.process import StartupError
from services.executor.core.replica import Phase
from services.executor.core.replica_events import (
    Fetched,
    LayoutSet,
    Send,
    StartWorker,
    StopWorker,
    Unwanted,
    Wanted,
    WorkerDown,
    WorkerUp,
)
from services.executor.core.replicas import Replicas
from services.executor.serve import choose_partitions
from services.executor.settings import ExecutorSettings

WHOLE, HALVES = LayoutSet((0,)), LayoutSet((1, 2))


def wanted(replica: int, lane: int) -> Wanted:
    return Wanted(replica, "acme", f"m{replica}", 1, "sha256:0", 10, lane, 100, 1)


def staffing(actions: list[Any]) -> list[Any]:
    return [each for each in actions if isinstance(each, StartWorker | StopWorker)]


def whole() -> Replicas:
    """A device in one piece, with a replica that serves there."""
    core = Replicas([0, 1, 2])
    assert staffing(core.handle(WHOLE, 0)) == [StartWorker(0, 0)]
    core.handle(WorkerUp(0), 0)
    core.handle(wanted(1, 0), 0)
    core.handle(Fetched(1, "/a", "onnx"), 0)
    core.handle(Loaded(1, Signature((), ()), Profile("d", "cpu", 1), 5), 0, 0)
    return core


def test_only_lanes_of_the_layout_in_force_get_workers() -> None:
    assert staffing(Replicas([0, 1, 2]).handle(HALVES, 0)) == [StartWorker(1, 0), StartWorker(2, 0)]


def test_a_worker_that_is_not_in_force_stays_until_its_last_replica_is_gone() -> None:
    core = whole()
    assert staffing(core.handle(HALVES, 1)) == [StartWorker(1, 0), StartWorker(2, 0)]
    assert Send(0, Unload(1, 9)) in core.handle(Unwanted(1, 9), 2)
    assert staffing(core.handle(Unloaded(1), 3, 0)) == [StopWorker(0)]
    assert staffing(core.handle(WorkerDown(0, "stopped"), 4)) == []
    core.check_invariants()


def test_a_replica_for_a_lane_that_is_not_in_force_starts_its_worker() -> None:
    core = whole()
    assert staffing(core.handle(wanted(2, 2), 1)) == [StartWorker(2, 0)]
    core.handle(Fetched(2, "/a", "onnx"), 1)
    core.handle(WorkerUp(2), 2)
    replica = core.get(2)
    assert replica is not None
    assert replica.phase is Phase.LOADING


def test_a_worker_that_is_stopping_is_started_again_for_who_comes_meanwhile() -> None:
    core = whole()
    core.handle(HALVES, 1)
    core.handle(Unwanted(1, 0), 1)
    assert staffing(core.handle(Unloaded(1), 1, 0)) == [StopWorker(0)]
    assert staffing(core.handle(WHOLE, 2)) == []
    assert staffing(core.handle(WorkerDown(0, "stopped"), 3)) == [StartWorker(0, 0)]


def test_a_worker_that_comes_up_when_nobody_needs_it_any_more_is_stopped() -> None:
    core = whole()
    core.handle(HALVES, 1)
    core.handle(WHOLE, 2)
    assert staffing(core.handle(WorkerUp(1), 3)) == [StopWorker(1)]


def test_a_lost_worker_of_a_lane_that_is_being_left_is_replaced_while_its_replica_serves() -> None:
    core = whole()
    core.handle(HALVES, 1)
    assert [type(each) for each in staffing(core.handle(WorkerDown(0, "gone"), 2))] == [StartWorker]


@given(
    st.lists(
        st.tuples(st.sampled_from(["whole", "halves", "want", "unwant", "unloaded", "up", "down"]), st.integers(0, 2))
    )
)
def test_whatever_happens_each_lane_has_at_most_one_worker_and_those_needed_have_one(
    steps: list[tuple[str, int]],
) -> None:
    core, workers = Replicas([0, 1, 2]), dict.fromkeys(range(3), "none")
    in_force, now = (0,), 0

    def take(event: Any, lane: int | None = None) -> None:
        for each in staffing(core.handle(event, now, lane)):
            before = workers[each.lane]
            assert before == ("none" if isinstance(each, StartWorker) else "up")
            workers[each.lane] = "starting" if isinstance(each, StartWorker) else "stopping"
        core.check_invariants()

    take(LayoutSet(in_force))
    for step, lane in steps:
        now += 1
        if step in ("whole", "halves"):
            in_force = (0,) if step == "whole" else (1, 2)
            take(LayoutSet(in_force))
        elif step == "want":
            take(wanted(lane + 1, lane))
        elif step == "unwant":
            take(Unwanted(lane + 1, 0))
        elif step == "unloaded":
            take(Unloaded(lane + 1), lane)
        elif step == "up" and workers[lane] == "starting":
            workers[lane] = "up"
            take(WorkerUp(lane))
        elif step == "down" and workers[lane] != "none":
            workers[lane] = "none"
            take(WorkerDown(lane, "gone"))
        assert all(workers[each] != "none" for each in in_force)


@pytest.mark.parametrize(
    ("layouts", "problem"),
    [
        ("0-3|0-4", "executor: layouts: core 4 is not one of 0,1,2,3"),
        ("0;0", "executor: layouts: core 0 is given twice; workers share no core"),
        ("0|0", "executor: layouts: the layout '0' is given twice"),
    ],
)
def test_an_executor_does_not_start_with_layouts_that_it_cannot_have(layouts: str, problem: str) -> None:
    with pytest.raises(StartupError, match=problem):
        choose_partitions(ExecutorSettings(layouts=layouts), SimulatedDevice(compute_units=4))


def test_cores_are_the_form_for_a_single_layout_and_keep_their_order() -> None:
    found = choose_partitions(ExecutorSettings(cores="2-3;1"), SimulatedDevice(compute_units=4))
    assert (found.lanes, found.layouts) == (((2, 3), (1,)), ((0, 1),))
