"""What a model is judged by, over gRPC, on both databases."""

from __future__ import annotations

import grpc
import pytest
from registry_world import World, key, refusal, served

from services._proto.apportion.v1 import common_pb2
from services._proto.apportion.v1 import registry_pb2 as pb
from services.common.errors import Reason
from services.registry.core.slos import MOST_SLOS
from services.registry.settings import RegistrySettings

CODE = grpc.StatusCode


@pytest.fixture
async def world(world: World) -> World:
    await world.tenant()
    await world.push()
    return world


async def put(world: World, name: str = "fast", **slo: int) -> pb.Model:
    request = pb.SetModelSloRequest(key=key(), slo=pb.ModelSlo(name=name, slo=common_pb2.Slo(**slo)))
    return (await world.call.SetModelSlo(request)).model


def told(model: pb.Model) -> list[tuple[str, int | None, int, int]]:
    return [
        (
            each.name,
            each.slo.objective_us if each.slo.HasField("objective_us") else None,
            each.slo.ratio_ppm,
            each.slo.window_s,
        )
        for each in model.slos
    ]


async def test_objectives_are_kept_by_name_with_their_defaults_and_replaced_under_it(world: World) -> None:
    await put(world, "slow", objective_us=500_000, ratio_ppm=999_000, window_s=7 * 86_400)
    model = await put(world, "fast", objective_us=50_000)
    expected = [("fast", 50_000, 990_000, 2_592_000), ("slow", 500_000, 999_000, 604_800)]
    assert told(model) == expected
    assert (await world.call.GetModel(pb.GetModelRequest(key=key()))).model == model
    model = await put(world, "fast", ratio_ppm=950_000)
    assert told(model) == [("fast", None, 950_000, 2_592_000), expected[1]]


async def test_an_objective_that_is_set_again_as_it_is_changes_nothing(world: World) -> None:
    once = await put(world, objective_us=50_000)
    assert await put(world, objective_us=50_000) == once


async def test_a_removed_objective_is_gone_and_cannot_be_removed_again(world: World) -> None:
    await put(world)
    request = pb.RemoveModelSloRequest(key=key(), name="fast")
    assert not (await world.call.RemoveModelSlo(request)).model.slos
    await refusal(world.call.RemoveModelSlo(request), Reason.SLO_NOT_FOUND, CODE.NOT_FOUND)


async def test_a_watcher_is_told_of_objectives_and_a_push_leaves_them(world: World) -> None:
    before = await world.snapshot()
    await put(world, objective_us=50_000)
    watched = world.watch(after=before.revision)
    before.apply(await watched.read())
    assert told(before.models["acme", "m"]) == [("fast", 50_000, 990_000, 2_592_000)]
    assert told((await world.push(data=b"more")).model) == told(before.models["acme", "m"])
    assert (await world.snapshot()).models["acme", "m"].slos == before.models["acme", "m"].slos


@pytest.mark.parametrize(
    ("name", "slo"),
    [
        ("", {}),
        ("Fast", {}),
        ("<script>", {}),
        ("fast", {"objective_us": 0}),
        ("fast", {"ratio_ppm": 1_000_001}),
        ("fast", {"window_s": 367 * 86_400}),
    ],
)
async def test_an_objective_that_cannot_be_is_refused(world: World, name: str, slo: dict[str, int]) -> None:
    await refusal(put(world, name, **slo), Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT)


async def test_a_model_that_is_not_there_has_none_and_none_has_more_than_it_may(world: World) -> None:
    request = pb.SetModelSloRequest(key=key("other"), slo=pb.ModelSlo(name="fast"))
    await refusal(world.call.SetModelSlo(request), Reason.MODEL_NOT_FOUND, CODE.NOT_FOUND)
    for number in range(MOST_SLOS):
        await put(world, f"s{number}")
    await refusal(put(world, "more"), Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT)
    assert len((await put(world, "s0", objective_us=7)).slos) == MOST_SLOS


async def test_objectives_are_there_after_a_restart_and_go_with_their_model(settings: RegistrySettings) -> None:
    async with served(settings) as world:
        await world.tenant()
        await world.push()
        await put(world)
    async with served(settings) as world:
        assert told((await world.call.GetModel(pb.GetModelRequest(key=key()))).model)[0][0] == "fast"
        await world.call.DeleteModel(pb.DeleteModelRequest(key=key()))
        assert not (await world.push()).model.slos
