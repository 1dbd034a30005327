"""Callers that do not read: what is held for them is bounded, let go of when they leave, and nobody else's."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from types import FrameType
from typing import Any

import grpc
import pytest
from frontend_fakes import FakeExecutor, infer_request, route, tenant
from frontend_world import Start, World
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from bench.http2 import END_STREAM, PREFACE, Connection, call, message, settings
from services._proto.apportion.v1 import executor_pb2
from services._proto.inference import grpc_service_pb2 as oip
from services.common.errors import Reason, Refusal
from services.common.status import from_rpc_error
from services.frontend.core.held import Held

ANSWER_BYTES = 32 << 10
LIMIT_BYTES = 256 << 10


async def large(_executor: FakeExecutor, _infer: executor_pb2.Infer, _payload: bytes) -> bytes | Refusal:
    """A large answer to a small question."""
    return oip.ModelInferResponse(model_name="m", raw_output_contents=[bytes(ANSWER_BYTES)]).SerializeToString()


async def two_tenants(start: Start, executor: FakeExecutor, **more: Any) -> World:
    await executor.start()
    routes = [route("m", [executor.address], tenant=name) for name in ("bad", "good")]
    tenants = [tenant("bad", "b"), tenant("good", "g")]
    return await start(executor, routes=routes, tenants=tenants, tenant_unread_bytes=LIMIT_BYTES, **more)


async def asks_and_never_reads(world: World, calls: int) -> Connection:
    """That many single calls on one connection without a window for their answers."""
    connection = Connection(world.address)
    body = message(infer_request("m", b"x").SerializeToString())
    connection.send(PREFACE + settings(window_bytes=0))
    for number in range(1, 2 * calls, 2):
        assert connection.send(call(number, "ModelInfer", world.address, "b"))
        assert connection.send_data(number, body, END_STREAM)
        await asyncio.sleep(0.002)
    return connection


async def ask(world: World, key: str) -> Any:
    return await world.stub.ModelInfer(infer_request("m", b"x"), metadata=(("authorization", f"Bearer {key}"),))


async def test_answers_that_are_not_read_are_bounded_and_cost_their_own_tenant_alone(start: Start) -> None:
    executor = FakeExecutor(large)
    world = await two_tenants(start, executor)
    connection = await asks_and_never_reads(world, 100)
    counts = world.frontend.accounts.counts("bad", "m")
    await world.until(lambda: sum(counts.outcomes.values()) == 100)
    unread = world.frontend.unread
    assert LIMIT_BYTES - 2 * ANSWER_BYTES < unread.of("bad") <= LIMIT_BYTES
    assert counts.outcomes["QUOTA_EXCEEDED"] > 80
    # Those that came once it was full were refused before anything was computed.
    assert len(executor.infers) < 60
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(world, "b")
    refusal = from_rpc_error(caught.value)
    assert refusal is not None
    assert refusal.reason is Reason.QUOTA_EXCEEDED
    assert "APPORTION_FRONTEND_TENANT_UNREAD_BYTES" in refusal.message
    assert refusal.facts["limit_bytes"] == str(LIMIT_BYTES)
    assert len((await ask(world, "g")).raw_output_contents[0]) == ANSWER_BYTES
    connection.close()
    await world.until(lambda: unread.of("bad") == 0)
    assert len((await ask(world, "b")).raw_output_contents[0]) == ANSWER_BYTES
    await world.until(lambda: not list(unread.all()))


async def test_a_stream_that_is_never_read_gets_a_few_requests_in_and_is_let_go_of(start: Start) -> None:
    executor = FakeExecutor(large)
    world = await two_tenants(start, executor)
    connection = Connection(world.address)
    connection.send(PREFACE + settings(window_bytes=0) + call(1, "ModelStreamInfer", world.address, "b"))
    for _ in range(60):
        assert connection.send_data(1, message(infer_request("m", b"x").SerializeToString()))
    await world.until(lambda: world.frontend.unread.of("bad") >= 8 * ANSWER_BYTES - LIMIT_BYTES // 8)
    await asyncio.sleep(0.1)
    assert len(executor.infers) == 8
    assert world.frontend.unread.of("bad") <= LIMIT_BYTES
    connection.close()
    await world.until(lambda: not list(world.frontend.unread.all()))


async def test_large_answers_that_nobody_reads_give_their_credit_back_when_the_stream_ends(start: Start) -> None:
    async def bulky(_executor: FakeExecutor, _infer: executor_pb2.Infer, _payload: bytes) -> bytes | Refusal:
        return oip.ModelInferResponse(model_name="m", raw_output_contents=[bytes(1 << 20)]).SerializeToString()

    executor = FakeExecutor(bulky)
    world = await start(executor)
    connection = Connection(world.address)
    connection.send(PREFACE + settings(window_bytes=0) + call(1, "ModelStreamInfer", world.address))
    for _ in range(3):
        assert connection.send_data(1, message(infer_request("m", b"x").SerializeToString()))
    await world.until(lambda: len(executor.sessions) == 1)
    (session,) = executor.sessions.values()
    await world.until(lambda: session.results_drawn.get("default", 0) > 3 << 20)
    connection.close()
    await world.until(lambda: not any(session.results_drawn.values()))
    assert executor.broken == []


async def test_requests_that_wait_are_bounded_for_each_tenant(start: Start) -> None:
    gate = asyncio.Event()

    async def slow(_executor: FakeExecutor, infer: executor_pb2.Infer, payload: bytes) -> bytes | Refusal:
        await gate.wait()
        return await large(_executor, infer, payload)

    executor = FakeExecutor(slow)
    world = await two_tenants(start, executor, tenant_request_bytes=1 << 16)
    asked = infer_request("m", bytes(40_000))
    metadata = (("authorization", "Bearer b"),)
    first = asyncio.ensure_future(world.stub.ModelInfer(asked, metadata=metadata))
    await world.until(lambda: len(executor.infers) == 1)
    with pytest.raises(grpc.aio.AioRpcError, match="APPORTION_FRONTEND_TENANT_REQUEST_BYTES"):
        await world.stub.ModelInfer(asked, metadata=metadata)
    gate.set()
    await first
    assert await world.stub.ModelInfer(asked, metadata=metadata)
    assert not list(world.frontend.waiting.all())


async def test_refused_and_broken_off_requests_leave_nothing_of_their_payload_behind(start: Start) -> None:
    async def never(_executor: FakeExecutor, _infer: executor_pb2.Infer, _payload: bytes) -> None:
        await asyncio.sleep(3600)

    world = await start(FakeExecutor(never))
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError):
                await world.stub.ModelInfer(infer_request("nobody", bytes(50_000)))
            late = world.stub.ModelInfer(infer_request("m", bytes(50_000)), timeout=0.4)
            with pytest.raises(grpc.aio.AioRpcError):
                await late
        counts = world.frontend.accounts.counts("default", "m")
        await world.until(lambda: counts.outcomes.get("DEADLINE_EXCEEDED") == 3)
        await asyncio.sleep(0.05)
        frames = [each for each in gc.get_objects() if isinstance(each, FrameType)]
        held = [value for frame in frames for value in frame.f_locals.values() if isinstance(value, bytes)]
        assert not [value for value in held if len(value) > 50_000]
    finally:
        gc.enable()


async def then_nothing(requests: list[Any]) -> AsyncIterator[Any]:
    for request in requests:
        yield request
    await asyncio.Event().wait()


async def test_a_stream_whose_answers_are_read_may_have_all_its_requests_in_hand(start: Start) -> None:
    gate = asyncio.Event()
    begun = []

    async def gated(executor: FakeExecutor, infer: executor_pb2.Infer, payload: bytes) -> bytes | Refusal:
        begun.append(infer.call)
        if len(begun) > 40:
            await gate.wait()
        return await large(executor, infer, payload)

    world = await start(FakeExecutor(gated), stream_requests=32)
    stream = world.stub.ModelStreamInfer(then_nothing([infer_request("m", b"x", str(n)) for n in range(100)]))
    for _ in range(40):
        assert await stream.read() is not grpc.aio.EOF
    await world.until(lambda: len(begun) == 72)
    await asyncio.sleep(0.05)
    assert len(begun) == 72
    gate.set()
    stream.cancel()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 300), st.booleans()), max_size=60))
def test_what_is_held_is_what_was_taken_and_not_given_and_never_beyond_the_limit(
    steps: list[tuple[str, int, bool]],
) -> None:
    held, taken = Held(200), {"a": list[int](), "b": list[int]()}
    for name, size, gives in steps:
        mine = taken[name]
        if gives and mine:
            held.give(name, mine.pop())
        elif held.take(name, size):
            mine.append(size)
        assert held.of(name) == sum(mine)
        assert sum(mine) <= 200 or sum(1 for each in mine if each) == 1
    assert dict(held.all()) == {name: sum(mine) for name, mine in taken.items() if sum(mine)}


async def test_a_tenant_may_watch_the_health_of_so_many_models(start: Start) -> None:
    world = await start(FakeExecutor(), streams=2)
    health = health_pb2_grpc.HealthStub(world.channel)
    watches = [health.Watch(health_pb2.HealthCheckRequest(service="m")) for _ in range(2)]
    for watch in watches:
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError, match="APPORTION_FRONTEND_STREAMS"):
        await health.Watch(health_pb2.HealthCheckRequest(service="m")).read()
    watches[0].cancel()
    await world.until(lambda: world.frontend.server.health.watched("default") == 1)
    assert (await health.Watch(health_pb2.HealthCheckRequest(service="m")).read()).status
    for watch in watches:
        watch.cancel()
