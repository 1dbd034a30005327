"""Statistics, the repository, health by model, reflection."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from frontend_fakes import FakeExecutor, route, tenant
from frontend_world import Start
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services._proto.apportion.v1 import common_pb2, executor_pb2, scheduler_pb2
from services._proto.inference import grpc_service_pb2 as oip
from services.common.errors import Reason
from services.common.status import from_rpc_error


async def refusal_of(call: Any) -> tuple[grpc.StatusCode, Any]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), from_rpc_error(caught.value)


def counted(rows: int, *, tenant: str = "default", version: int = 1) -> executor_pb2.VersionStatistics:
    return executor_pb2.VersionStatistics(
        key=common_pb2.ModelKey(tenant=tenant, name="m"),
        version=version,
        rows=rows,
        batches=2,
        answered=3,
        answered_ns=300,
        failed=1,
        failed_ns=10,
        decode_ns=20,
        queue_ns=30,
        compute_ns=200,
        encode_ns=50,
        by_rows=[executor_pb2.BatchStatistics(rows=2, batches=2, compute_ns=150, decode_ns=20, encode_ns=50)],
        last_arrival_ms=rows,
    )


async def test_statistics_are_the_sums_over_all_executors(start: Start) -> None:
    executors = FakeExecutor(), FakeExecutor(executor_id="e2")
    executors[0].statistics = [counted(5), counted(900, tenant="other"), counted(9, version=7)]
    executors[1].statistics = [counted(6)]
    world = await start(*executors)
    await world.until(lambda: len(world.frontend.links.up()) == 2)
    (told,) = (await world.stub.ModelStatistics(oip.ModelStatisticsRequest(name="m", version="1"))).model_stats
    assert (told.name, told.version, told.inference_count, told.execution_count) == ("m", "1", 11, 4)
    assert told.last_inference == 6
    stats = told.inference_stats
    assert [(part.count, part.ns) for part in (stats.success, stats.fail, stats.queue)] == [(6, 600), (2, 20), (6, 60)]
    assert [(part.count, part.ns) for part in (stats.compute_input, stats.compute_infer, stats.compute_output)] == [
        (6, 40),
        (6, 400),
        (6, 100),
    ]
    (size,) = told.batch_stats
    assert (size.batch_size, size.compute_infer.count, size.compute_infer.ns) == (2, 4, 300)
    every = await world.stub.ModelStatistics(oip.ModelStatisticsRequest())
    assert [(each.name, each.version) for each in every.model_stats] == [("m", "1")]


async def test_a_version_that_has_served_nothing_has_zeros_and_one_that_is_not_there_is_told(start: Start) -> None:
    world = await start(FakeExecutor())
    await world.until(lambda: len(world.frontend.links.up()) == 1)
    (told,) = (await world.stub.ModelStatistics(oip.ModelStatisticsRequest(name="m"))).model_stats
    assert (told.version, told.inference_count) == ("1", 0)
    code, refusal = await refusal_of(world.stub.ModelStatistics(oip.ModelStatisticsRequest(name="m", version="9")))
    assert (code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, Reason.VERSION_NOT_FOUND)
    code, refusal = await refusal_of(world.stub.ModelStatistics(oip.ModelStatisticsRequest(name="nobody")))
    assert refusal.reason is Reason.MODEL_NOT_FOUND


async def test_sums_that_would_lack_an_executors_counts_are_not_told(start: Start) -> None:
    executor = FakeExecutor()
    executor.statistics = None
    world = await start(executor)
    await world.until(lambda: len(world.frontend.links.up()) == 1)
    code, refusal = await refusal_of(world.stub.ModelStatistics(oip.ModelStatisticsRequest()))
    assert (code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.EXECUTOR_LOST)


async def test_the_index_lists_the_callers_models_with_their_states(start: Start) -> None:
    executor = await FakeExecutor().start()
    unplaced = scheduler_pb2.VERSION_STATE_UNPLACED
    routes = [
        route("good", [executor.address], tenant="acme"),
        route("late", [], tenant="acme", state=scheduler_pb2.VERSION_STATE_LOADING, message="warming up"),
        route("big", [], tenant="acme", state=unplaced, message="3 GiB needed, 1 free"),
        route("others", [executor.address], tenant="other"),
    ]
    world = await start(executor, routes=routes, tenants=[tenant("acme", "k"), tenant("other", "o")])
    metadata = (("authorization", "Bearer k"),)
    told = (await world.stub.RepositoryIndex(oip.RepositoryIndexRequest(), metadata=metadata)).models
    assert [(each.name, each.version, each.state, each.reason) for each in told] == [
        ("big", "1", "UNAVAILABLE", "3 GiB needed, 1 free"),
        ("good", "1", "READY", ""),
        ("late", "1", "LOADING", "warming up"),
    ]
    ready = (await world.stub.RepositoryIndex(oip.RepositoryIndexRequest(ready=True), metadata=metadata)).models
    assert [each.name for each in ready] == ["good"]


async def test_each_model_has_a_health_of_its_own_for_its_tenant(start: Start) -> None:
    executor = await FakeExecutor().start()
    routes = [
        route("m", [executor.address], tenant="acme"),
        route("late", [], tenant="acme", state=scheduler_pb2.VERSION_STATE_LOADING),
    ]
    world = await start(executor, routes=routes, tenants=[tenant("acme", "k")])
    health = health_pb2_grpc.HealthStub(world.channel)
    ask = lambda name, key="k": health.Check(
        health_pb2.HealthCheckRequest(service=name), metadata=(("authorization", f"Bearer {key}"),)
    )
    await world.until(lambda: len(world.frontend.links.up()) == 1)
    for name in ("m", "m/1"):
        assert (await ask(name)).status == health_pb2.HealthCheckResponse.SERVING
    assert (await ask("late")).status == health_pb2.HealthCheckResponse.NOT_SERVING
    for name in ("nobody", "m/2"):
        code, _ = await refusal_of(ask(name))
        assert code is grpc.StatusCode.NOT_FOUND
    code, _ = await refusal_of(ask("m", "wrong"))
    assert code is grpc.StatusCode.UNAUTHENTICATED
    code, _ = await refusal_of(health.Check(health_pb2.HealthCheckRequest(service="m")))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_a_watch_of_a_models_health_tells_every_change(start: Start) -> None:
    world = await start(FakeExecutor(), routes=[])
    watch = health_pb2_grpc.HealthStub(world.channel).Watch(health_pb2.HealthCheckRequest(service="m"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    world.mesh.change_routes([route("m", [world.executors[0].address])])
    async with asyncio.timeout(5):
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


async def test_reflection_is_there_for_whoever_switches_it_on(start: Start) -> None:
    ask = lambda world: reflection_pb2_grpc.ServerReflectionStub(world.channel).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    )
    world = await start(FakeExecutor(), reflection=True)
    told = await ask(world).read()
    assert "inference.GRPCInferenceService" in {each.name for each in told.list_services_response.service}
    closed = await start(FakeExecutor())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(closed).read()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
