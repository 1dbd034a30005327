"""Objectives: what the scheduler says can be promised, of which models it is not, and profiles from lanes of several sizes."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import grpc
import pytest
from scheduler_fakes import PROFILE, FakeExecutor, FakeRegistry, Starts, key, model, tenant
from scheduler_world import World, device
from scheduler_world import model as core_model
from scheduler_world import tenant as core_tenant

from services._proto.apportion.v1 import scheduler_pb2 as pb
from services.common.errors import Reason, Refusal
from services.common.objectives import Ask, Point, Verdict
from services.common.status import from_rpc_error
from services.scheduler.core.catalogue import Key, Model, Profile, TrafficClass
from services.scheduler.core.events import Passed
from services.scheduler.core.objectives import Question
from services.scheduler.core.state import Learnt

MS = 1_000_000
KIND = "simulated"


def measured(*units: int, cost_ns: int = 10 * MS, kind: str = KIND) -> Profile:
    return Profile(kind, 70, b"", tuple(Point(1, "4", each, cost_ns, cost_ns) for each in units))


def profiled(name: str, *profiles: Profile, objective_us: int | None = 100_000, replicas: int = 1) -> Model:
    made = core_model(name, objective_us=objective_us, replicas=replicas)
    versions = tuple(dataclasses.replace(each, profiles=profiles) for each in made.versions)
    return dataclasses.replace(made, versions=versions)


def serving(*models: Model, reservation: int = 500, lanes: int = 1) -> World:
    world = World()
    world.add("gpu-0", device(lanes=lanes))
    world.replace_catalogue([core_tenant("search", reservation)], list(models))
    world.settle()
    return world


def ask(world: World, name: str = "search/embed", **question: object) -> list:
    owner, _, of = name.partition("/")
    return world.scheduler.objective(Question(Key(owner, of), **question))[1]  # type: ignore[arg-type]


def test_the_tenants_reservation_is_a_part_of_the_lane() -> None:
    (whole,) = ask(serving(profiled("search/embed", measured(8))))
    assert (whole.answer.burst_ns, whole.serves) == (20 * MS, True)
    (half,) = ask(serving(profiled("search/embed", measured(4)), lanes=2))
    assert (half.answer.burst_ns, half.answer.lane.worth) == (10 * MS, 500)


def test_another_reservation_objective_and_traffic_can_be_asked_about() -> None:
    world = serving(profiled("search/embed", measured(8)))
    (found,) = ask(world, reservation=250, objective_us=30_000, ask=Ask(0, burst=2, way_ns=0))
    assert (found.answer.burst_ns, found.answer.verdict) == (80 * MS, Verdict.TOO_TIGHT)


def test_a_model_on_two_executors_has_half_of_the_reservation_on_each() -> None:
    world = World()
    world.add("gpu-0")
    world.add("gpu-1")
    world.replace_catalogue([core_tenant("search", 500)], [profiled("search/embed", measured(8), replicas=2)])
    world.settle()
    (found,) = ask(world)
    assert (found.answer.on_lane, found.answer.most_rate) == (250, 50.0)


def test_the_tenants_other_models_are_told_of_and_nobody_elses() -> None:
    models = [profiled(f"search/{each}", measured(8)) for each in ("embed", "rank")]
    world = serving(*models, core_model("else/one"))
    assert "where the tenant's 1 other model leaves it all of that" in ask(world)[0].answer.message


def test_a_reservation_beyond_every_lane_is_refused_with_the_limit() -> None:
    with pytest.raises(Refusal, match=r"reservation.millidevices: 1.5 devices are asked for, and no more than 1 fit"):
        ask(serving(profiled("search/embed", measured(8))), reservation=1500)


def test_what_is_not_there_is_not_found() -> None:
    world = serving(profiled("search/embed", measured(8)))
    with pytest.raises(Refusal, match="no model 'other'"):
        ask(world, "search/other")
    with pytest.raises(Refusal, match="has no version 7"):
        ask(world, version=7)


def test_versions_that_serve_without_their_objective_being_promised_are_listed() -> None:
    tight = profiled("search/tight", measured(8), objective_us=15_000)
    fine = profiled("search/fine", measured(8))
    free = profiled("search/free", measured(8), objective_us=None)
    batch = dataclasses.replace(profiled("search/batch", measured(8), objective_us=1), traffic_class=TrafficClass.BATCH)
    poor = profiled("poor/one", measured(8))
    unpromised = serving(tight, fine, free, batch, poor).scheduler.fleet().unpromised
    assert [(str(each.key), each.verdict) for each in unpromised] == [
        ("poor/one", Verdict.NOTHING_RESERVED),
        ("search/tight", Verdict.TOO_TIGHT),
    ]


def test_a_profile_with_more_sizes_takes_the_place_of_one_with_fewer_and_others_stay() -> None:
    learnt = Learnt(b"")
    for profile in (measured(1), measured(2), measured(1, kind="other")):
        learnt.take(profile)
    assert [each.units for each in learnt.profiles] == [{1}, {2}, {1}]
    learnt.take(measured(1, 2))
    learnt.take(measured(1))
    assert [(each.device_kind, each.units) for each in learnt.profiles] == [("other", {1}), (KIND, {1, 2})]


def test_what_was_measured_on_a_lane_of_another_size_is_recorded_too() -> None:
    world = serving(profiled("search/embed", measured(1)))
    (ref,) = {each.ref for each in world.scheduler.state.fleet.replicas()}
    world.scheduler.state.learnt[ref].take(measured(8))
    world.wait(1000)
    world.crash("gpu-0")
    world.attach("gpu-0")
    told = [each.outcome.profile for each in world.inspections if isinstance(each.outcome, Passed)]
    assert measured(8) in told


async def test_an_objective_is_answered_over_the_wire_and_shown_with_the_fleet(
    start: Starts, registry: FakeRegistry
) -> None:
    registry.tenants, registry.models = [tenant("search", 250)], [model("search/embed", objective_us=20_000)]
    stub, executor = await start(), FakeExecutor()
    await executor.attach(stub)
    load = await executor.load()
    replica = executor.replicas[load.replica_id]
    replica.profile.CopyFrom(PROFILE)
    del replica.profile.points[:]
    replica.profile.points.add(rows=1, shape_bucket="4", compute_units=2, p50_ns=8 * MS, p99_ns=10 * MS)
    replica.state = pb.REPLICA_STATE_READY
    replica.signature.max_batch_size = 8
    await executor.tell()
    for _ in range(500):
        if (await stub.GetObjective(question())).answers[0].serves:
            break
        await asyncio.sleep(0.01)
    (found,) = (await stub.GetObjective(question())).answers
    assert (found.verdict, found.cost_us, found.burst_us) == (pb.OBJECTIVE_VERDICT_TOO_TIGHT, 10_000, 40_000)
    assert (found.least_objective_us, found.slices_us, found.way_us) == (62_000, 20_000, 2_000)
    assert not found.HasField("reservation_needed")
    (asked,) = (await stub.GetObjective(question(objective_us=62_000, burst=2, rate=1.5))).answers
    assert (asked.verdict, asked.reservation_needed.millidevices) == (pb.OBJECTIVE_VERDICT_TOO_TIGHT, 500)
    (unpromised,) = (await stub.GetFleet(pb.GetFleetRequest())).unpromised
    assert (unpromised.key, unpromised.version, unpromised.verdict) == (key("search/embed"), 1, found.verdict)
    assert unpromised.message == found.message


def question(**fields: object) -> pb.GetObjectiveRequest:
    return pb.GetObjectiveRequest(key=key("search/embed"), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"rate": float("nan")}, "rate"),
        ({"rate": -1.0}, "rate"),
        ({"burst": 2_000_000}, "burst"),
        ({"rows": 5_000}, "rows"),
        ({"error": 0.5}, "error"),
        ({"objective_us": 0}, "objective_us"),
        ({"way_us": 1 << 60}, "way_us"),
    ],
)
async def test_nonsense_over_the_wire_is_refused_by_its_field(
    start: Starts, registry: FakeRegistry, fields: dict[str, object], field: str
) -> None:
    registry.models = [model("search/embed")]
    stub = await start()
    await known(stub)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetObjective(question(**fields))
    found = from_rpc_error(caught.value)
    assert found is not None
    assert (found.reason, found.field) == (Reason.FIELD_INVALID, field)


async def known(stub: Any) -> None:
    """Waits until the scheduler has heard of the catalogue, which it tells nobody anything before."""
    watch = stub.WatchRoutes(pb.WatchRoutesRequest())
    await asyncio.wait_for(watch.read(), 10)
    watch.cancel()
