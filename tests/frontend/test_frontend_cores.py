"""Routing, keys, credit, deadlines and verdicts: decisions without any I/O."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import Reason, Refusal
from services.frontend.core import describe
from services.frontend.core.credit import Credits
from services.frontend.core.deadlines import BUCKET_NS, Deadlines
from services.frontend.core.routes import Link, Replica, Route, Signature, State, Tensor, Version
from services.frontend.core.routing import RoutingTable
from services.frontend.core.verdict import judge


def table(*routes: Route, down: frozenset[str] = frozenset(), connecting: frozenset[str] = frozenset()) -> RoutingTable:
    made = RoutingTable(lambda a: Link.DOWN if a in down else Link.CONNECTING if a in connecting else Link.UP)
    made.replace(routes)
    return made


def model(*states: State, splits: tuple[tuple[int, int], ...] = ((1, 1_000_000),), replicas: int = 1) -> Route:
    versions = {
        number: Version(
            number, state, "why", None, tuple(Replica(10 * number + i, f"e{i}", f"a{i}") for i in range(replicas))
        )
        for number, state in enumerate(states, 1)
    }
    return Route("t", "m", None, versions, splits)


def test_requests_that_name_no_version_fall_evenly_on_the_splits() -> None:
    route = model(State.READY, State.READY, splits=((1, 900_000), (2, 100_000)))
    routes = table(route)
    picks = [routes.version(route, "").version for _ in range(1000)]
    assert Counter(picks) == {1: 900, 2: 100} or abs(picks.count(2) - 100) <= 2
    assert all(1 <= picks[start : start + 30].count(2) <= 6 for start in range(0, 970, 30))


def test_a_version_that_does_not_serve_gets_no_requests_and_the_others_share_them() -> None:
    route = model(State.READY, State.LOADING, State.READY, splits=((1, 250_000), (2, 500_000), (3, 250_000)))
    picks = Counter(table(route).version(route, "").version for _ in range(1000))
    assert picks.keys() == {1, 3}
    assert abs(picks[1] - 500) <= 5


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (State.LOADING, Reason.MODEL_NOT_READY),
        (State.REFUSED, Reason.MODEL_REFUSED),
        (State.UNPLACED, Reason.MODEL_UNPLACED),
    ],
)
def test_a_model_that_does_not_serve_is_refused_with_the_schedulers_message(state: State, reason: Reason) -> None:
    route = model(state)
    for named in ("", "1"):
        with pytest.raises(Refusal, match="why") as caught:
            table(route).version(route, named)
        assert caught.value.reason is reason


@pytest.mark.parametrize("named", ["2", "01", "x", "-1", "1" * 40, "١"])
def test_a_version_that_is_not_there_is_refused_by_name(named: str) -> None:
    route = model(State.READY)
    with pytest.raises(Refusal) as caught:
        table(route).version(route, named)
    assert caught.value.reason is Reason.VERSION_NOT_FOUND


def test_an_unknown_model_is_not_found_and_before_the_first_snapshot_not_known() -> None:
    with pytest.raises(Refusal) as caught:
        table(model(State.READY)).route("other", "m")
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    with pytest.raises(Refusal) as caught:
        RoutingTable(lambda _: Link.UP).route("t", "m")
    assert caught.value.reason is Reason.NOT_SERVING


def test_the_replica_with_the_least_outstanding_is_taken_then_the_one_with_the_shorter_wait() -> None:
    route = model(State.READY, replicas=3)
    routes, version = table(route), route.versions[1]
    one, two, three = version.replicas
    one.outstanding, two.outstanding, three.outstanding = 2, 1, 1
    routes.report(two.replica_id, 1, 900)
    assert routes.replica(route, route.versions[1]) is three


def test_replicas_behind_a_broken_link_are_passed_over_and_none_left_is_told() -> None:
    route = model(State.READY, replicas=3)
    routes = table(route, down=frozenset({"a0"}), connecting=frozenset({"a1"}))
    assert routes.replica(route, route.versions[1]).address == "a2"
    assert routes.replica(route, route.versions[1], excluded=(12,)).address == "a1"
    with pytest.raises(Refusal) as caught:
        routes.replica(route, route.versions[1], excluded=(11, 12))
    assert caught.value.reason is Reason.EXECUTOR_LOST


def test_among_many_replicas_two_are_looked_at_and_all_get_their_turn() -> None:
    route = model(State.READY, replicas=20)
    routes = table(route)
    for _ in range(2000):
        routes.replica(route, route.versions[1]).outstanding += 1
    counts = [replica.outstanding for replica in route.versions[1].replicas]
    assert min(counts) > 80
    assert max(counts) < 120


def test_a_replicas_counts_live_through_a_change_of_its_route_and_tombstones_remove() -> None:
    routes = table(model(State.READY))
    routes.route("t", "m").versions[1].replicas[0].outstanding = 5
    routes.change([model(State.READY)], [])
    assert routes.route("t", "m").versions[1].replicas[0].outstanding == 5
    routes.change([], [("t", "m")])
    assert routes.addresses() == set()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 30)), max_size=60), st.data())
def test_credit_is_never_exceeded_and_nobody_waits_without_need(
    sizes: list[tuple[str, int]], data: st.DataObject
) -> None:
    window, credit = 20, Credits[int](20)
    out: dict[str, list[int]] = {"a": [], "b": []}
    waiting: dict[str, list[int]] = {"a": [], "b": []}
    for number, (tenant, size) in enumerate(sizes):
        (out if credit.draw(tenant, size, number) else waiting)[tenant].append(number)
        back = data.draw(st.sampled_from(["", "a", "b"]))
        if back and out[back]:
            done = out[back].pop(0)
            admitted = credit.grant(back, sizes[done][1])
            assert admitted == waiting[back][: len(admitted)]
            out[back] += admitted
            del waiting[back][: len(admitted)]
        for name in "ab":
            drawn = sum(sizes[number][1] for number in out[name])
            assert drawn <= window or len(out[name]) == 1
            assert not waiting[name] or (drawn > 0 and drawn + sizes[waiting[name][0]][1] > window)


def test_a_withdrawn_item_leaves_its_place_to_the_next() -> None:
    credit = Credits[str](10)
    assert credit.draw("t", 6, "first")
    assert not credit.draw("t", 9, "second")
    assert not credit.draw("t", 4, "third")
    assert credit.withdraw("t", "second") == ["third"]


@given(st.lists(st.tuples(st.integers(0, 50 * BUCKET_NS), st.booleans()), max_size=80))
def test_deadlines_are_told_never_early_and_at_most_a_bucket_late(items: list[tuple[int, bool]]) -> None:
    wheel: Deadlines[int] = Deadlines()
    for number, (at, _) in enumerate(items):
        wheel.add(number, at)
    for number, (at, removed) in enumerate(items):
        if removed:
            wheel.remove(number, at)
    told: list[int] = []
    while (now := wheel.next_ns()) is not None:
        for number in wheel.expired(now):
            assert items[number][0] < now <= items[number][0] + BUCKET_NS
            told.append(number)
    assert sorted(told) == [number for number, (_, removed) in enumerate(items) if not removed]


@pytest.mark.parametrize(
    ("reason", "elapsed", "objective", "deadline", "outcome", "violated"),
    [
        (None, 5, 10, 60, "ok", False),
        (None, 11, 10, 60, "late", True),
        (None, 99, None, 600, "ok", False),
        (Reason.FIELD_INVALID, 5, 10, 60, "FIELD_INVALID", False),
        (Reason.OVERLOADED, 5, 10, 60, "OVERLOADED", True),
        (Reason.EXECUTOR_LOST, 5, None, 60, "EXECUTOR_LOST", True),
        (Reason.CANCELLED, 5, 10, 60, "CANCELLED", False),
        (Reason.CANCELLED, 11, 10, 60, "CANCELLED", True),
        (Reason.DEADLINE_EXCEEDED, 5, 10, 5, "DEADLINE_EXCEEDED", False),
        (Reason.DEADLINE_EXCEEDED, 5, 10, 60, "DEADLINE_EXCEEDED", True),
        (Reason.DEADLINE_EXCEEDED, 60, None, 60, "DEADLINE_EXCEEDED", False),
    ],
)
def test_a_verdict_blames_the_service_for_what_it_did_and_nothing_else(
    reason: Reason | None, elapsed: int, objective: int | None, deadline: int, outcome: str, violated: bool
) -> None:
    judgement = judge(reason, elapsed, objective, deadline)
    assert (judgement.outcome, judgement.violated) == (outcome, violated)


def test_a_batch_axis_that_is_not_first_makes_clients_see_whole_shapes() -> None:
    first = Tensor("x", "FP32", (None, 4, None), batch_axis=0)
    state = Tensor("state", "FP32", (2, None, 128), batch_axis=1)
    plain, mixed = Signature((first,), (first,), 8), Signature((first, state), (first,), 8)
    assert (describe.batch_rows(plain), describe.batch_rows(mixed)) == (8, 0)
    assert (describe.shape(first), describe.dims(first, 8), describe.dims(state, 0)) == (
        [-1, 4, -1],
        [4, -1],
        [2, -1, 128],
    )
