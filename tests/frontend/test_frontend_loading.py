"""RepositoryModelLoad and RepositoryModelUnload: a wish in the registry, and the wait until it has come true."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from frontend_fakes import FakeExecutor, infer_request, route, tenant
from frontend_world import Start, World

from services._proto.apportion.v1 import scheduler_pb2
from services._proto.inference import grpc_service_pb2 as oip
from services.common.errors import Reason, Refusal
from services.common.status import from_rpc_error

LOADING, UNPLACED = scheduler_pb2.VERSION_STATE_LOADING, scheduler_pb2.VERSION_STATE_UNPLACED
UNLOADED, REFUSED = scheduler_pb2.VERSION_STATE_UNLOADED, scheduler_pb2.VERSION_STATE_REFUSED
FORMS = pytest.mark.parametrize("wire", [{"model_name": "m"}, {"repository_name": "m"}], ids=["triton", "kserve"])


async def refusal_of(call: Any) -> tuple[grpc.StatusCode, Any]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), from_rpc_error(caught.value)


def load(world: World, **more: Any) -> Any:
    return world.stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="m"), **more)


def unload(world: World, **more: Any) -> Any:
    return world.stub.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="m"), **more)


async def wished(world: World, count: int = 1) -> None:
    await world.until(lambda: len(world.mesh.wishes) == count)


@FORMS
async def test_an_unload_is_noted_and_waits_until_the_scheduler_has_acted_on_it(
    start: Start, wire: dict[str, str]
) -> None:
    world = await start(FakeExecutor())
    asked = oip.RepositoryModelUnloadRequest(**wire)
    asked.parameters["unload_dependents"].bool_param = True
    task = asyncio.create_task(_awaited(world.stub.RepositoryModelUnload(asked)))
    await wished(world)
    assert world.mesh.wishes == [("default", "m", True)]
    await asyncio.sleep(0.1)
    assert not task.done()
    world.mesh.change_routes([route("m", [], state=UNLOADED, message="by request", model_revision=11)])
    await asyncio.wait_for(task, 5)


async def _awaited(call: Any) -> Any:
    return await call


@FORMS
async def test_a_load_takes_the_wish_back_and_waits_until_the_model_serves(start: Start, wire: dict[str, str]) -> None:
    executor = await FakeExecutor().start()
    gone = route("m", [], state=UNLOADED, message="by request", model_revision=10)
    elsewhere = route("other", [executor.address])
    world = await start(executor, routes=[gone, elsewhere])
    task = asyncio.create_task(_awaited(world.stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(**wire))))
    await wished(world)
    assert world.mesh.wishes == [("default", "m", False)]
    world.mesh.change_routes([route("m", [], state=LOADING, model_revision=11)])
    await asyncio.sleep(0.1)
    assert not task.done()
    world.mesh.change_routes([route("m", [executor.address], model_revision=11)], revision=3)
    await asyncio.wait_for(task, 5)


async def test_routes_from_before_the_wish_do_not_count(start: Start) -> None:
    """Another frontend has unloaded the model; here the routes still say that it serves."""
    executor = await FakeExecutor().start()
    world = await start(executor, routes=[route("m", [executor.address], model_revision=10)])
    task = asyncio.create_task(_awaited(load(world)))
    await wished(world)
    await asyncio.sleep(0.1)
    assert not task.done()
    world.mesh.change_routes([route("m", [executor.address], model_revision=11)])
    await asyncio.wait_for(task, 5)


async def test_a_load_that_does_not_end_in_the_callers_time_says_what_it_waited_for(start: Start) -> None:
    world = await start(routes=[route("m", [], state=LOADING, model_revision=11)])
    code, refusal = await refusal_of(load(world, timeout=0.5))
    assert (code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.MODEL_NOT_READY)
    assert "is loading" in refusal.message


async def test_a_refused_artefact_and_a_later_unload_are_told_at_once(start: Start) -> None:
    world = await start(routes=[route("m", [], state=REFUSED, message="hostile", model_revision=11)])
    code, refusal = await refusal_of(load(world, timeout=20))
    assert (code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, Reason.MODEL_REFUSED)
    assert "hostile" in refusal.message
    world.mesh.change_routes([route("m", [], state=UNLOADED, message="by request", model_revision=13)])
    code, refusal = await refusal_of(load(world, timeout=20))
    assert (code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.MODEL_NOT_READY)


async def test_a_model_without_a_place_is_waited_for_a_while(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.frontend.core.loading.UNPLACED_S", 0.2)
    world = await start(routes=[route("m", [], state=UNPLACED, message="3 GiB needed, 1 free", model_revision=11)])
    code, refusal = await refusal_of(load(world, timeout=20))
    assert (code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.MODEL_UNPLACED)
    assert "3 GiB needed" in refusal.message


async def test_nothing_is_wished_of_models_that_nobody_has_or_names(start: Start) -> None:
    world = await start(FakeExecutor(), tenants=[tenant("acme", "k")])
    world.mesh.wish_refusal = Refusal(Reason.MODEL_NOT_FOUND, "key: tenant 'acme' has no model 'm'", field="key")
    for call in (load, unload):
        code, refusal = await refusal_of(call(world, metadata=(("authorization", "Bearer k"),)))
        assert (code, refusal.reason, refusal.field) == (
            grpc.StatusCode.NOT_FOUND,
            Reason.MODEL_NOT_FOUND,
            "model_name",
        )
    assert world.mesh.wishes == [("acme", "m", False), ("acme", "m", True)]
    code, refusal = await refusal_of(world.stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest()))
    assert (refusal.reason, refusal.field) == (Reason.FIELD_INVALID, "model_name")


async def test_without_a_registry_what_serves_counts_as_loaded_and_nothing_can_be_unloaded(start: Start) -> None:
    world = await start(FakeExecutor())
    await world.until(lambda: len(world.frontend.links.up()) == 1)
    world.mesh.wish_refusal = Refusal(Reason.NOT_SERVING, "the database does not answer")
    await load(world)
    code, refusal = await refusal_of(unload(world))
    assert (code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.NOT_SERVING)
    assert "the database does not answer" in refusal.message


@pytest.mark.parametrize("name", ["config", "file:1/model.onnx", "surprise"])
async def test_what_would_change_a_model_as_it_is_loaded_is_refused_by_name(start: Start, name: str) -> None:
    world = await start(FakeExecutor())
    asked = oip.RepositoryModelLoadRequest(model_name="m")
    asked.parameters[name].string_param = "{}"
    code, refusal = await refusal_of(world.stub.RepositoryModelLoad(asked))
    assert (code, refusal.field) == (grpc.StatusCode.UNIMPLEMENTED, f"parameters[{name}]")
    assert name in refusal.message
    assert "apportion model push" in refusal.message
    other = oip.RepositoryModelUnloadRequest(model_name="m")
    other.parameters[name].string_param = "{}"
    code, refusal = await refusal_of(world.stub.RepositoryModelUnload(other))
    assert (code, refusal.field) == (grpc.StatusCode.UNIMPLEMENTED, f"parameters[{name}]")
    assert world.mesh.wishes == []


async def test_an_operator_may_keep_loads_and_unloads_to_himself(start: Start) -> None:
    world = await start(FakeExecutor(), model_control=False)
    for call in (load, unload):
        code, refusal = await refusal_of(call(world))
        assert (code, refusal.reason) == (grpc.StatusCode.UNIMPLEMENTED, Reason.UNSUPPORTED)
        assert "apportion model unload m" in refusal.message
    assert world.mesh.wishes == []


async def test_callers_of_an_unloaded_model_are_told_so_and_the_index_has_tritons_word(start: Start) -> None:
    message = "by request; `apportion model load m`, or RepositoryModelLoad, has it served again"
    world = await start(routes=[route("m", [], state=UNLOADED, message=message)])
    code, refusal = await refusal_of(world.stub.ModelInfer(infer_request("m")))
    assert (code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.MODEL_NOT_READY)
    assert refusal.message == f'model "m" version 1 is unloaded: {message}'
    assert not (await world.stub.ModelReady(oip.ModelReadyRequest(name="m"))).ready
    (told,) = (await world.stub.RepositoryIndex(oip.RepositoryIndexRequest())).models
    assert (told.name, told.version, told.state, told.reason) == ("m", "1", "UNAVAILABLE", "unloaded")
    assert not (await world.stub.RepositoryIndex(oip.RepositoryIndexRequest(ready=True))).models
