"""The scheduler as its callers meet it: real servers, a registry and executors of the tests' own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from scheduler_fakes import (
    KIND,
    SIGNATURE,
    FakeExecutor,
    FakeRegistry,
    Starts,
    key,
    model,
    registry_server,
    scheduler,
    tenant,
)

from services._proto.apportion.v1 import common_pb2, registry_pb2
from services._proto.apportion.v1 import scheduler_pb2 as pb
from services.common.errors import Reason, Refusal
from services.common.status import from_rpc_error
from services.scheduler import serve as serving


async def ended(call: Any) -> None:
    """Reads a call to its end."""
    if not hasattr(call, "read"):
        await call
        return
    while await call.read() is not grpc.aio.EOF:
        pass


async def refusal(call: Any) -> Refusal:
    """The refusal that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ended(call)
    found = from_rpc_error(caught.value)
    assert found is not None, caught.value
    return found


async def routes_until(watch: Any, name: str, state: int) -> pb.WatchRoutesResponse:
    """Reads a watch until a model's last version is in a state; the message that said so."""
    while True:
        message = await asyncio.wait_for(watch.read(), 10)
        assert message is not grpc.aio.EOF
        for route in (*message.snapshot.routes, *message.changes.routes):
            if route.key == key(name) and route.versions and route.versions[-1].state == state:
                return message


def reserve(name: str, millidevices: int) -> pb.CheckReservationRequest:
    return pb.CheckReservationRequest(tenant=name, reservation=common_pb2.Share(millidevices=millidevices))


async def test_a_model_of_the_catalogue_is_loaded_routed_and_its_inspection_recorded(
    start: Starts, registry: FakeRegistry
) -> None:
    registry.tenants, registry.models = [tenant("search", 250)], [model("search/embed")]
    stub, executor = await start(), FakeExecutor()
    welcome = await executor.attach(stub)
    assert welcome.report_interval_ms == 1000
    load = await executor.load()
    assert load.replica_id >> 32 == welcome.epoch
    assert (load.key, load.version, load.digest, load.size_bytes) == (key("search/embed"), 1, "sha256:1", 100)
    assert (load.bandwidth.millidevices, load.weight, load.objective_us) == (250, 2, 20_000)
    assert load.traffic_class == common_pb2.TRAFFIC_CLASS_INTERACTIVE
    assert registry_pb2.VersionConfig.FromString(load.config).max_batch_size == 8
    watch = stub.WatchRoutes(pb.WatchRoutesRequest())
    await executor.become_ready(load.replica_id)
    message = await routes_until(watch, "search/embed", pb.VERSION_STATE_READY)
    route = (*message.snapshot.routes, *message.changes.routes)[0]
    assert route.versions[0].signature == SIGNATURE
    assert route.versions[0].replicas[0] == pb.ReplicaRoute(
        replica_id=load.replica_id, executor_id="cpu-0", address="127.0.0.1:8110"
    )
    assert [(each.version, each.ppm) for each in route.splits] == [(1, 1_000_000)]
    await asyncio.wait_for(registry.recorded.wait(), 10)
    assert registry.inspections[0].passed.signature == SIGNATURE
    assert registry.inspections[0].passed.profile.device_kind == KIND


async def test_an_inspection_is_recorded_again_and_again_until_the_registry_has_it(
    start: Starts, registry: FakeRegistry
) -> None:
    registry.models, registry.fails = [model("search/embed")], 3
    stub, executor = await start(), FakeExecutor()
    await executor.attach(stub)
    load = await executor.load()
    replica = executor.replicas[load.replica_id]
    replica.state, replica.message = pb.REPLICA_STATE_REFUSED, "Loop is not allowed"
    await executor.tell()
    await asyncio.wait_for(registry.recorded.wait(), 10)
    assert [each.refused.message for each in registry.inspections] == ["Loop is not allowed"]
    assert (await executor.next()).unload.replica_id == load.replica_id


async def test_a_change_of_the_objective_reaches_the_executor_as_an_update(
    start: Starts, registry: FakeRegistry
) -> None:
    registry.models = [model("search/embed")]
    stub, executor = await start(), FakeExecutor()
    await executor.attach(stub)
    load = await executor.serve_next()
    registry.change(models=[model("search/embed", objective_us=30_000)])
    update = (await executor.next()).update
    assert (update.replica_id, update.objective_us) == (load.replica_id, 30_000)


async def test_a_restarted_scheduler_adopts_what_executors_hold_and_unloads_what_nobody_wants(
    start: Starts, registry: FakeRegistry
) -> None:
    registry.models = [model("search/embed"), model("search/old")]
    first, executor = await start(), FakeExecutor()
    before = await executor.attach(first)
    held = {load.key.name: load.replica_id for load in [await executor.serve_next(), await executor.serve_next()]}
    registry.models = [model("search/embed")]
    second = await start()
    after = await executor.attach(second)
    assert after.epoch > before.epoch
    told = [await executor.next(), await executor.next()]
    assert {each.WhichOneof("event"): each for each in told}.keys() == {"update", "unload"}
    unload = next(each.unload for each in told if each.HasField("unload"))
    assert unload.replica_id == held["old"]
    message = await routes_until(second.WatchRoutes(pb.WatchRoutesRequest()), "search/embed", pb.VERSION_STATE_READY)
    route = (*message.snapshot.routes, *message.changes.routes)[0]
    assert [each.replica_id for each in route.versions[0].replicas] == [held["embed"]]


async def test_a_newer_stream_of_an_executor_ends_the_older_one(start: Starts, registry: FakeRegistry) -> None:
    registry.models = [model("search/embed")]
    stub, older, newer = await start(), FakeExecutor(), FakeExecutor()
    await older.attach(stub)
    await older.serve_next()
    newer.replicas = older.replicas
    await newer.attach(stub)
    assert (await refusal(older.call)).reason is Reason.REPLACED
    await newer.next()
    fleet = await stub.GetFleet(pb.GetFleetRequest())
    assert [each.attached for each in fleet.executors] == [True]


async def test_a_stream_that_does_not_begin_with_hello_is_refused(start: Starts) -> None:
    call = (await start()).Attach()
    await call.write(pb.AttachRequest(report=pb.ExecutorReport()))
    assert (await refusal(call)).reason is Reason.PROTOCOL


async def test_a_hello_without_lanes_is_refused_with_the_field_named(start: Starts) -> None:
    executor = FakeExecutor()
    hello = executor.hello()
    del hello.device.lanes[:]
    call = (await start()).Attach()
    await call.write(pb.AttachRequest(hello=hello))
    assert (await refusal(call)).field == "hello.device.lanes"


async def test_a_lost_stream_leaves_the_routes_alone_until_the_grace_is_over(
    start: Starts, registry: FakeRegistry
) -> None:
    registry.models = [model("search/embed")]
    stub, executor = await start(grace_s=0.5), FakeExecutor()
    await executor.attach(stub)
    await executor.serve_next()
    watch = stub.WatchRoutes(pb.WatchRoutesRequest())
    await routes_until(watch, "search/embed", pb.VERSION_STATE_READY)
    executor.call.cancel()
    # The next change comes with the end of the grace: by then the fleet says that the stream is gone.
    await routes_until(watch, "search/embed", pb.VERSION_STATE_UNPLACED)
    fleet = await stub.GetFleet(pb.GetFleetRequest())
    assert [each.attached for each in fleet.executors] == [False]
    assert fleet.unplaced[0].message == "no executor is attached"


async def test_a_watcher_goes_on_where_it_was(start: Starts, registry: FakeRegistry) -> None:
    registry.models = [model("search/embed")]
    stub, executor = await start(), FakeExecutor()
    watch = stub.WatchRoutes(pb.WatchRoutesRequest())
    seen = await routes_until(watch, "search/embed", pb.VERSION_STATE_UNPLACED)
    watch.cancel()
    await executor.attach(stub)
    await executor.serve_next()
    again = stub.WatchRoutes(pb.WatchRoutesRequest(epoch=seen.epoch, after_revision=seen.revision))
    first = await again.read()
    assert first.WhichOneof("event") == "changes"
    assert first.revision == seen.revision + 1
    await routes_until(again, "search/embed", pb.VERSION_STATE_READY)
    registry.change(removed_models=[key("search/embed")])
    gone = await asyncio.wait_for(again.read(), 10)
    assert list(gone.changes.removed) == [key("search/embed")]
    assert (await again.read()).WhichOneof("event") == "bookmark"


async def test_a_watcher_of_another_epoch_is_told_to_take_a_new_snapshot(start: Starts) -> None:
    call = (await start()).WatchRoutes(pb.WatchRoutesRequest(epoch=1, after_revision=5))
    found = await refusal(call)
    assert found.reason is Reason.REVISION_COMPACTED
    assert "epoch 1 is over" in found.message


async def test_a_watcher_of_another_epoch_keeps_what_it_has_until_executors_had_time_to_come_back(
    start: Starts,
) -> None:
    stub = await start(settle_s=0.6)
    call = stub.WatchRoutes(pb.WatchRoutesRequest(epoch=1, after_revision=5))
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(call.code())), 0.2)
    assert (await refusal(call)).reason is Reason.REVISION_COMPACTED


async def test_a_watcher_that_is_too_far_behind_is_told_to_take_a_new_snapshot(
    start: Starts, registry: FakeRegistry
) -> None:
    registry.models = [model("search/embed")]
    stub = await start(route_changes=2)
    watch = stub.WatchRoutes(pb.WatchRoutesRequest())
    seen = await routes_until(watch, "search/embed", pb.VERSION_STATE_UNPLACED)
    for number in range(4):
        registry.change(models=[model(f"search/more-{number}")])
        await routes_until(watch, f"search/more-{number}", pb.VERSION_STATE_UNPLACED)
    call = stub.WatchRoutes(pb.WatchRoutesRequest(epoch=seen.epoch, after_revision=seen.revision - 1))
    assert (await refusal(call)).reason is Reason.REVISION_COMPACTED


async def test_an_oversold_reservation_is_refused_with_the_numbers(start: Starts, registry: FakeRegistry) -> None:
    registry.tenants = [tenant("files", 250), tenant("voice", 250), tenant("search", 100)]
    registry.models = [model("files/scan")]
    stub, executor = await start(), FakeExecutor()
    await executor.attach(stub)
    await executor.serve_next()
    fits = await stub.CheckReservation(reserve("search", 500))
    assert (fits.free_after.millidevices, fits.capacity.millidevices) == (0, 1000)
    found = await refusal(stub.CheckReservation(reserve("search", 800)))
    assert found.reason is Reason.OVERSOLD
    assert found.facts == {"subject": "search", "asked": "800", "free": "500", "capacity": "1000"}
    assert "search needs 0.800 devices, 0.500 free of 1.000 (files 0.250, voice 0.250)" in found.message


async def test_without_an_executor_only_a_promise_of_nothing_can_be_made(start: Starts) -> None:
    stub = await start()
    assert (await stub.CheckReservation(reserve("search", 0))).capacity.millidevices == 0
    found = await refusal(stub.CheckReservation(reserve("search", 1)))
    assert found.reason is Reason.NOT_SERVING
    assert "no executor is attached" in found.message


async def test_a_reservation_beyond_the_largest_is_invalid(start: Starts) -> None:
    found = await refusal((await start()).CheckReservation(reserve("search", 64_001)))
    assert (found.reason, found.field) == (Reason.FIELD_INVALID, "reservation.millidevices")


async def test_the_fleet_shows_devices_replicas_and_what_tenants_used(start: Starts, registry: FakeRegistry) -> None:
    registry.tenants, registry.models = [tenant("search", 250)], [model("search/embed")]
    stub, executor = await start(), FakeExecutor()
    await executor.attach(stub)
    load = await executor.serve_next()
    report = executor.report()
    report.usage.add(key=key("search/embed"), device_ns=5_000, requests=3, incarnation="one")
    await executor.call.write(pb.AttachRequest(report=report))
    fleet = await stub.GetFleet(pb.GetFleetRequest())
    while not fleet.tenants[0].device_ns:
        fleet = await stub.GetFleet(pb.GetFleetRequest())
    assert (fleet.tenants[0].device_ns, fleet.tenants[0].requests, fleet.tenants[0].weight) == (5_000, 3, 2)
    assert fleet.executors[0].device == executor.hello().device
    assert fleet.executors[0].report == report
    assert load.replica_id >> 32 == fleet.epoch


async def test_a_scheduler_starts_while_the_registry_is_down_and_keeps_what_executors_hold(
    start: Starts, registry: FakeRegistry, registry_address: str, tmp_path: Path
) -> None:
    registry.models = [model("search/embed")]
    first, executor = await start(), FakeExecutor()
    await executor.attach(first)
    await executor.serve_next()
    stub = await start(registry="127.0.0.1:1")
    await executor.attach(stub)
    watch = stub.WatchRoutes(pb.WatchRoutesRequest())
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(watch.code())), 0.3)
    fleet = await stub.GetFleet(pb.GetFleetRequest())
    assert fleet.executors[0].report == executor.report()


async def test_the_catalogue_is_followed_through_a_restart_of_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, executor = FakeRegistry(), FakeExecutor()

    async def epoch() -> int:
        return 9

    monkeypatch.setattr(serving, "new_epoch", epoch)
    async with registry_server(registry) as address:
        pass
    async with scheduler(tmp_path, address) as stub:
        await executor.attach(stub)
        registry.models = [model("search/embed")]
        async with registry_server(registry, address):
            assert (await executor.serve_next()).key == key("search/embed")


async def test_an_epoch_is_a_second_that_has_begun_and_no_other_scheduler_has() -> None:
    first = await serving.new_epoch()
    assert await serving.new_epoch() == first + 1
    assert first < 1 << 32
