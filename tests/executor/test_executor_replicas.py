"""The states of replicas: what is loaded when, what a lost worker means, and who is refused."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_sharing.measurements import Profile
from gpu_sharing.tensors import Signature
from gpu_sharing.worker.messages import Load, Loaded, LoadFailed, Stage, Unload, Unloaded, Update
from services.executor.core.replica import Phase
from services.executor.core.replica_events import (
    Changed,
    Fetch,
    Fetched,
    Happened,
    LetGo,
    NotFetched,
    Send,
    Serve,
    StartWorker,
    Tell,
    Unwanted,
    Wanted,
    Withdraw,
    WorkerDown,
    WorkerUp,
)
from services.executor.core.replicas import FIRST_RESTART_NS, STEADY_NS, Replicas

SIGNATURE = Signature((), ())
PROFILE = Profile("d", "cpu", 1)


def wanted(replica: int, lane: int = 0) -> Wanted:
    return Wanted(replica, "acme", f"m{replica}", 1, "sha256:0", 10, lane, 100, 1)


def loaded(replica: int) -> Loaded:
    return Loaded(replica, SIGNATURE, PROFILE, 5)


def sent(actions: list[Any], kind: type) -> list[Any]:
    return [each.command for each in actions if isinstance(each, Send) and isinstance(each.command, kind)]


def ready(*replicas: int) -> Replicas:
    core = Replicas([0])
    core.handle(WorkerUp(0), 0)
    for replica in replicas:
        core.handle(wanted(replica), 0)
        core.handle(Fetched(replica, "/a", "onnx"), 0)
        core.handle(loaded(replica), 0, 0)
    return core


def phase(core: Replicas, replica: int) -> Phase | None:
    found = core.get(replica)
    return found.phase if found else None


def test_a_wanted_replica_is_fetched_then_loaded_then_served() -> None:
    core = Replicas([0])
    core.handle(WorkerUp(0), 0)
    assert Fetch(wanted(1)) in core.handle(wanted(1), 0)
    (load,) = sent(core.handle(Fetched(1, "/a", "onnx"), 0), Load)
    assert (load.path, load.format, load.bandwidth) == ("/a", "onnx", 100)
    assert Serve(1) in core.handle(loaded(1), 0, 0)
    assert phase(core, 1) is Phase.READY
    core.check_invariants()


def test_wanting_a_replica_twice_changes_nothing() -> None:
    core = ready(1)
    assert core.handle(wanted(1), 0) == [Tell()]
    assert phase(core, 1) is Phase.READY


def test_a_worker_loads_one_replica_at_a_time() -> None:
    core = Replicas([0])
    core.handle(WorkerUp(0), 0)
    for replica in (1, 2):
        core.handle(wanted(replica), 0)
    assert sent(core.handle(Fetched(1, "/a", "onnx"), 0), Load)
    assert not sent(core.handle(Fetched(2, "/b", "onnx"), 0), Load)
    (second,) = sent(core.handle(loaded(1), 0, 0), Load)
    assert second.replica == 2


def test_a_replica_waits_for_its_worker_to_run() -> None:
    core = Replicas([0])
    core.handle(wanted(1), 0)
    assert not sent(core.handle(Fetched(1, "/a", "onnx"), 0), Load)
    assert sent(core.handle(WorkerUp(0), 0), Load)


def test_an_artefact_that_cannot_be_had_fails_and_may_be_wanted_again() -> None:
    core = ready()
    core.handle(wanted(1), 0)
    core.handle(NotFetched(1, "disk full"), 0)
    assert (phase(core, 1), core.all()[0].message) == (Phase.FAILED, "disk full")
    assert Fetch(wanted(1)) in core.handle(wanted(1), 0)


def test_a_refused_artefact_is_not_tried_again() -> None:
    core = ready()
    core.handle(wanted(1), 0)
    core.handle(Fetched(1, "/a", "onnx"), 0)
    core.handle(LoadFailed(1, True, "hostile"), 0, 0)
    assert phase(core, 1) is Phase.REFUSED
    assert core.handle(wanted(1), 0) == [Tell()]
    core.check_invariants()


def test_a_lane_that_does_not_exist_is_named() -> None:
    core = ready()
    assert core.handle(wanted(1, lane=7), 0) == [Tell()]
    assert core.all()[0].message == "lane: 7 is none of [0]"


def test_an_unwanted_replica_is_withdrawn_drained_and_forgotten() -> None:
    core = ready(1)
    actions = core.handle(Unwanted(1, 500), 0)
    assert actions[0] == Withdraw(1)
    assert sent(actions, Unload) == [Unload(1, 500)]
    assert phase(core, 1) is Phase.DRAINING
    assert LetGo(1) in core.handle(Unloaded(1), 0, 0)
    assert phase(core, 1) is None


def test_a_replica_that_is_unwanted_while_it_loads_makes_room_for_the_next() -> None:
    core = ready()
    for replica in (1, 2):
        core.handle(wanted(replica), 0)
        core.handle(Fetched(replica, "/a", "onnx"), 0)
    assert sent(core.handle(Unwanted(1, 0), 0), Unload)
    assert core.handle(loaded(1), 0, 0) == []
    (load,) = sent(core.handle(Unloaded(1), 0, 0), Load)
    assert load.replica == 2
    core.check_invariants()


def test_an_unwanted_replica_that_is_being_fetched_goes_at_once() -> None:
    core = ready()
    core.handle(wanted(1), 0)
    assert LetGo(1) in core.handle(Unwanted(1, 0), 0)
    assert core.handle(Fetched(1, "/a", "onnx"), 0) == []


def test_a_changed_share_reaches_the_worker_and_outlives_it() -> None:
    core = ready(1)
    assert sent(core.handle(Changed(1, 300, 2, 5), 0), Update) == [Update(1, 300, 2, 5)]
    core.handle(WorkerDown(0, "gone"), 0)
    (load,) = sent(core.handle(WorkerUp(0), 0), Load)
    assert (load.bandwidth, load.weight, load.objective_ns) == (300, 2, 5)


def test_a_lost_worker_is_replaced_and_its_replicas_loaded_again_without_measuring() -> None:
    core = ready(1, 2)
    actions = core.handle(WorkerDown(0, "killed"), STEADY_NS)
    assert StartWorker(0, 0) in actions
    assert [each for each in actions if isinstance(each, Withdraw)] == [Withdraw(1), Withdraw(2)]
    (first,) = sent(core.handle(WorkerUp(0), STEADY_NS), Load)
    assert (first.replica, first.profile, first.signature) == (1, PROFILE, SIGNATURE)
    (second,) = sent(core.handle(loaded(1), 0, 0), Load)
    assert second.replica == 2
    assert all(each.crashes == 0 for each in core.all())


def test_a_worker_that_keeps_dying_is_started_less_and_less_often() -> None:
    core = Replicas([0])
    waits = [core.handle(WorkerDown(0, "x"), 0)[-2] for _ in range(12)]
    times = [each.after_ns for each in waits if isinstance(each, StartWorker)]
    assert times[:3] == [FIRST_RESTART_NS, 2 * FIRST_RESTART_NS, 4 * FIRST_RESTART_NS]
    assert times[-1] == times[-2] == 100 * FIRST_RESTART_NS


def test_a_replica_whose_load_kills_its_worker_twice_is_refused_and_others_go_first() -> None:
    core = ready(5)
    core.handle(wanted(1), 0)
    core.handle(Fetched(1, "/a", "onnx"), 0)
    core.handle(WorkerDown(0, "killed by SIGSEGV"), 0)
    (first,) = sent(core.handle(WorkerUp(0), 0), Load)
    assert first.replica == 5
    (second,) = sent(core.handle(loaded(5), 0, 0), Load)
    assert second.replica == 1
    core.handle(WorkerDown(0, "killed by SIGSEGV"), 0)
    refused = core.get(1)
    assert refused is not None
    assert (refused.phase, refused.crashes) == (Phase.REFUSED, 2)
    assert refused.message == "crashes its worker while loading: killed by SIGSEGV"


def test_what_another_lane_says_of_a_replica_is_ignored() -> None:
    core = Replicas([0, 1])
    core.handle(WorkerUp(0), 0)
    core.handle(wanted(1), 0)
    core.handle(Fetched(1, "/a", "onnx"), 0)
    assert core.handle(loaded(1), 0, 1) == []
    assert phase(core, 1) is Phase.LOADING


_REPLICAS = st.integers(1, 3)
_LANES = st.integers(0, 1)
EVENTS: st.SearchStrategy[tuple[Happened, int | None]] = st.one_of(
    st.tuples(st.builds(wanted, _REPLICAS, _LANES), st.none()),
    st.tuples(st.builds(Unwanted, _REPLICAS, st.just(0)), st.none()),
    st.tuples(st.builds(Changed, _REPLICAS, st.just(1), st.just(1)), st.none()),
    st.tuples(st.builds(Fetched, _REPLICAS, st.just("/a"), st.just("onnx")), st.none()),
    st.tuples(st.builds(NotFetched, _REPLICAS, st.just("no")), st.none()),
    st.tuples(st.builds(WorkerUp, _LANES), st.none()),
    st.tuples(st.builds(WorkerDown, _LANES, st.just("x")), st.none()),
    st.tuples(st.builds(loaded, _REPLICAS), _LANES),
    st.tuples(st.builds(LoadFailed, _REPLICAS, st.booleans(), st.just("no")), _LANES),
    st.tuples(st.builds(Unloaded, _REPLICAS), _LANES),
    st.tuples(st.builds(Stage, _REPLICAS, st.just("warming up")), _LANES),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENTS, max_size=60))
def test_whatever_happens_in_whatever_order_the_books_add_up(events: list[tuple[Happened, int | None]]) -> None:
    core, served = Replicas([0, 1]), set()
    for now, (event, lane) in enumerate(events):
        for action in core.handle(event, now, lane):
            if isinstance(action, Serve):
                served.add(action.replica)
            elif isinstance(action, Withdraw):
                served.discard(action.replica)
        core.check_invariants()
        assert served == {each.wanted.replica for each in core.all() if each.phase is Phase.READY}
