"""ModelStreamInfer: order, errors in the message, bounds, and what happens when a caller leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from frontend_fakes import FakeExecutor, echo, infer_request, route, tenant
from frontend_world import Start, World
from hypothesis import given
from hypothesis import strategies as st

from services._proto.apportion.v1 import executor_pb2
from services._proto.inference import grpc_service_pb2 as oip
from services.common.errors import Reason, Refusal
from services.common.status import from_rpc_error
from services.frontend.core.order import Order
from services.frontend.core.wire import framed


class Gate:
    """An executor's answer that waits until the test lets it go, request by request, by content."""

    def __init__(self) -> None:
        self.open: dict[bytes, asyncio.Event] = {}
        self.begun: list[bytes] = []

    def of(self, content: bytes) -> asyncio.Event:
        return self.open.setdefault(content, asyncio.Event())

    async def __call__(self, executor: FakeExecutor, infer: executor_pb2.Infer, payload: bytes) -> bytes | Refusal:
        content = oip.ModelInferRequest.FromString(payload).raw_input_contents[0]
        self.begun.append(content)
        await self.of(content).wait()
        return await echo(executor, infer, payload)


def stream(world: World, requests: Any, **metadata: str) -> Any:
    return world.stub.ModelStreamInfer(requests, metadata=tuple(metadata.items()))


async def rest_of(call: Any) -> list[Any]:
    answers = []
    while (answer := await call.read()) is not grpc.aio.EOF:
        answers.append(answer)
    return answers


async def then_wait(requests: list[Any], until: asyncio.Event) -> AsyncIterator[Any]:
    for request in requests:
        yield request
    await until.wait()


async def test_answers_come_as_they_are_ready_those_of_one_id_in_their_order(start: Start) -> None:
    gate = Gate()
    world = await start(FakeExecutor(gate))
    asked = [infer_request("m", content, key) for content, key in ((b"a1", "a"), (b"a2", "a"), (b"b1", "b"))]
    call = stream(world, iter(asked))
    await world.until(lambda: len(gate.begun) == 3)
    gate.of(b"a2").set()
    gate.of(b"b1").set()
    first = await call.read()
    assert (first.infer_response.id, first.infer_response.raw_output_contents[0]) == ("b", b"b1")
    gate.of(b"a1").set()
    rest = [answer.infer_response for answer in await rest_of(call)]
    assert [answer.raw_output_contents[0] for answer in rest] == [b"a1", b"a2"]
    assert all(answer.parameters["triton_final_response"].bool_param for answer in rest)


async def test_requests_without_an_id_are_answered_in_their_order(start: Start) -> None:
    gate = Gate()
    world = await start(FakeExecutor(gate))
    call = stream(world, iter([infer_request("m", content) for content in (b"1", b"2", b"3")]))
    await world.until(lambda: len(gate.begun) == 3)
    for content in (b"3", b"2", b"1"):
        gate.of(content).set()
        await asyncio.sleep(0.01)
    assert [a.infer_response.raw_output_contents[0] async for a in call] == [b"1", b"2", b"3"]


async def test_a_refusal_travels_in_the_message_and_the_stream_goes_on(start: Start) -> None:
    world = await start(FakeExecutor())
    asked = [infer_request("nobody", request_id="7"), infer_request("m", b"x", "8")]
    told = {answer.infer_response.id: answer async for answer in stream(world, iter(asked))}
    assert "MODEL_NOT_FOUND" in told["7"].error_message
    assert 'no model "nobody"' in told["7"].error_message
    assert not told["8"].error_message
    assert told["8"].infer_response.raw_output_contents[0] == b"x"


async def test_whoever_asks_for_grpc_errors_gets_the_refusal_as_the_status(start: Start) -> None:
    world = await start(FakeExecutor())
    asked = iter([infer_request("m", b"x"), infer_request("nobody")])
    call = stream(world, asked, triton_grpc_error="true")
    assert (await call.read()).infer_response.raw_output_contents[0] == b"x"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    refusal = from_rpc_error(caught.value)
    assert refusal is not None
    assert refusal.reason is Reason.MODEL_NOT_FOUND


async def test_bytes_that_are_no_request_get_a_message_of_their_own(start: Start) -> None:
    world = await start(FakeExecutor())
    call = world.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    answers = [oip.ModelStreamInferResponse.FromString(answer) async for answer in call(iter([b"\x0a\xff"]))]
    assert ["FIELD_INVALID" in answer.error_message for answer in answers] == [True]


async def test_no_more_is_read_than_may_be_in_hand(start: Start) -> None:
    gate = Gate()
    world = await start(FakeExecutor(gate), stream_requests=3)
    call = stream(world, iter([infer_request("m", b"%d" % n, str(n)) for n in range(9)]))
    await world.until(lambda: len(gate.begun) == 3)
    await asyncio.sleep(0.05)
    assert len(gate.begun) == 3
    for number in range(9):
        gate.of(b"%d" % number).set()
    assert len([answer async for answer in call]) == 9


async def test_a_caller_who_does_not_read_is_not_read_from(start: Start) -> None:
    executor = FakeExecutor()
    world = await start(executor, stream_requests=4)
    big, done = bytes(32 << 10), asyncio.Event()
    call = stream(world, then_wait([infer_request("m", big, str(n)) for n in range(800)], done))
    await asyncio.sleep(0.3)
    begun = len(executor.infers)
    # What gRPC itself buffers on the way has room for some, never for all.
    assert begun < 400
    done.set()
    assert len(await rest_of(call)) == 800


async def test_the_end_of_a_stream_cancels_what_is_in_flight(start: Start) -> None:
    gate = Gate()
    executor = FakeExecutor(gate)
    world = await start(executor)
    call = stream(world, then_wait([infer_request("m", b"%d" % n) for n in range(3)], asyncio.Event()))
    await world.until(lambda: len(gate.begun) == 3)
    call.cancel()
    await world.until(lambda: len(executor.cancelled) == 3)
    counts = world.frontend.accounts.counts("default", "m")
    await world.until(lambda: counts.outcomes.get("CANCELLED") == 3)
    assert counts.in_flight == 0


async def test_a_tenant_may_open_so_many_streams(start: Start) -> None:
    executor = await FakeExecutor().start()
    routes = [route("m", [executor.address], tenant=name) for name in ("acme", "other")]
    world = await start(executor, routes=routes, tenants=[tenant("acme", "one"), tenant("other", "two")], streams=2)
    done = asyncio.Event()
    held = [stream(world, then_wait([infer_request("m", b"x")], done), authorization="Bearer one") for _ in range(2)]
    for call in held:
        assert (await call.read()).infer_response.raw_output_contents[0] == b"x"
    with pytest.raises(grpc.aio.AioRpcError, match="2 streams open") as caught:
        await stream(world, iter([infer_request("m", b"x")]), authorization="Bearer one").read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    others = stream(world, iter([infer_request("m", b"x")]), authorization="Bearer two")
    assert (await others.read()).infer_response.raw_output_contents[0] == b"x"
    done.set()
    for call in held:
        assert await call.read() is grpc.aio.EOF
    assert (await stream(world, iter([infer_request("m", b"x")]), authorization="Bearer one").read()) is not None


async def test_large_answers_of_a_stream_give_their_credit_back(start: Start) -> None:
    executor = FakeExecutor()
    world = await start(executor)
    big = bytes(1 << 20)
    answers = [a async for a in stream(world, iter([infer_request("m", big, str(n)) for n in range(4)]))]
    assert all(answer.infer_response.raw_output_contents[0] == big for answer in answers)
    await world.until(lambda: executor.credits_returned > 4 << 20)
    assert executor.broken == []


@given(st.lists(st.tuples(st.sampled_from([b"", b"a", b"b"]), st.integers(0, 1000)), max_size=30))
def test_whatever_finishes_first_each_id_keeps_its_order_and_nothing_is_lost(asked: list[tuple[bytes, int]]) -> None:
    order: Order[int] = Order()
    tickets = [(order.begin(key), number) for number, (key, _) in enumerate(asked)]
    told = [n for at in sorted(range(len(asked)), key=lambda i: asked[i][1]) for n in order.finish(*tickets[at])]
    assert sorted(told) == list(range(len(asked)))
    for key in (b"", b"a", b"b"):
        mine = [number for number in told if asked[number][0] == key]
        assert mine == sorted(mine)
    assert len(order) == 0


@given(st.binary(max_size=400), st.binary(max_size=100))
def test_a_response_is_framed_as_protobuf_would(output: bytes, more: bytes) -> None:
    response = oip.ModelInferResponse(model_name="m", raw_output_contents=[output]).SerializeToString()
    extra = oip.ModelInferResponse(raw_output_contents=[more]).SerializeToString()
    parsed = oip.ModelStreamInferResponse.FromString(framed(response, extra))
    assert list(parsed.infer_response.raw_output_contents) == [output, more]
