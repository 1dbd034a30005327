"""Requests through a real frontend to a faithful executor."""

from __future__ import annotations

import asyncio
import random
from time import monotonic_ns

import grpc
import pytest
from frontend_fakes import FakeExecutor, echo, infer_request, route, tenant
from frontend_world import Start

from services._proto.apportion.v1 import executor_pb2
from services.common.errors import Reason, Refusal
from services.common.status import from_rpc_error
from services.frontend.calls import Call
from services.frontend.outbox import Outbox


async def test_a_request_is_answered_with_the_bytes_that_its_executor_gave(start: Start) -> None:
    world = await start(FakeExecutor())
    response = await world.stub.ModelInfer(infer_request("m", b"abc", "17"))
    assert (response.id, list(response.raw_output_contents)) == ("17", [b"abc"])


@pytest.mark.slow
async def test_each_of_many_answers_of_mixed_sizes_belongs_to_its_question(start: Start) -> None:
    executor = FakeExecutor()
    world = await start(executor)
    chance = random.Random(7)
    sizes = [64] * 60 + [4_000] * 25 + [200_000] * 11 + [1 << 20] * 3 + [8 << 20]
    questions = iter(range(2_000))

    async def caller() -> None:
        for number in questions:
            size = chance.choice(sizes)
            content = number.to_bytes(4, "big") + bytes([number % 251]) * (size - 4)
            response = await world.stub.ModelInfer(infer_request("m", content, str(number)))
            assert response.id == str(number)
            assert response.raw_output_contents[0] == content

    await asyncio.gather(*(caller() for _ in range(32)))
    assert executor.broken == []
    assert executor.messages < len(executor.infers) + 2_000
    await world.until(lambda: len(executor.verdicts) == 2_000)


async def test_small_calls_that_are_ready_together_share_a_message_and_large_ones_take_turns() -> None:
    sent: dict[int, Call] = {}
    outbox = Outbox(100, 1 << 30, sent)
    loop, later = asyncio.get_running_loop(), monotonic_ns() + 10**10
    payloads = [b"a" * 10, b"b" * 600_000, b"c" * 10, b"d" * 300_000]
    for payload in payloads:
        outbox.submit(Call("t", 1, payload, loop.create_future(), deadline_ns=later))
    message = await outbox.message()
    assert [(infer.call, len(infer.payload), infer.bulk_bytes) for infer in message.infers] == [
        (1, 10, 0),
        (2, 0, 600_000),
        (3, 10, 0),
        (4, 0, 300_000),
    ]
    chunks = [(await outbox.chunk()).chunks[0] for _ in range(5)]
    assert [chunk.call for chunk in chunks] == [2, 4, 2, 4, 2]
    assert b"".join(chunk.data for chunk in chunks if chunk.call == 2) == payloads[1]


async def test_a_call_that_was_left_before_it_was_sent_is_never_sent() -> None:
    outbox = Outbox(100, 1 << 20, {})
    loop, later = asyncio.get_running_loop(), monotonic_ns() + 10**10
    calls = [Call("t", 1, bytes(size), loop.create_future(), deadline_ns=later) for size in (10, 1 << 20, 1 << 20)]
    for call in calls:
        outbox.submit(call)
    for call in calls[:2]:
        call.future.cancel()
        outbox.withdraw(call)
    message = await outbox.message()
    # The credit that the second had drawn goes to the third.
    assert [infer.bulk_bytes for infer in message.infers] == [1 << 20]
    assert not message.cancels


async def test_large_payloads_never_exceed_their_tenants_credit_and_all_arrive(start: Start) -> None:
    executor = FakeExecutor(credit_bytes=3 << 20)
    world = await start(executor, tenant_credit_bytes=3 << 20)
    content = bytes(range(256)) * (8 << 12)
    sizes = [1 << 20, 2 << 20, 8 << 20] * 4
    answers = await asyncio.gather(*(world.stub.ModelInfer(infer_request("m", content[:size])) for size in sizes))
    assert [answer.raw_output_contents[0] == content[:size] for answer, size in zip(answers, sizes, strict=True)] == [
        True
    ] * 12
    assert executor.broken == []
    assert executor.most_drawn < (9 << 20)
    # Everything that large answers drew is granted again.
    await world.until(lambda: all(not any(s.results_drawn.values()) for s in executor.sessions.values()))


async def test_a_tenant_without_credit_holds_up_no_other_tenant(start: Start) -> None:
    async def stall(executor: FakeExecutor, infer: executor_pb2.Infer, payload: bytes) -> bytes | None:
        return None if infer.replica_id == 1 and await asyncio.sleep(3600) else await echo(executor, infer, payload)

    executor = await FakeExecutor(stall, credit_bytes=1 << 20).start()
    routes = [route("m", [executor.address]), route("n", [executor.address], tenant="other", first_replica=2)]
    world = await start(executor, routes=routes, tenants=[tenant("other", "k")])
    blocked = [asyncio.ensure_future(world.stub.ModelInfer(infer_request("m", bytes(1 << 20)))) for _ in range(3)]
    await world.until(lambda: len(executor.infers) == 1)
    other = (("authorization", "Bearer k"),)
    response = await world.stub.ModelInfer(infer_request("n", bytes(1 << 20)), metadata=other, timeout=10)
    assert len(response.raw_output_contents[0]) == 1 << 20
    assert sum(infer.replica_id == 1 for infer in executor.infers) == 1
    for call in blocked:
        call.cancel()


async def test_a_cancelled_request_is_cancelled_at_its_executor_and_frees_its_credit(start: Start) -> None:
    async def never(executor: FakeExecutor, infer: executor_pb2.Infer, payload: bytes) -> None:
        await asyncio.sleep(3600)

    executor = FakeExecutor(never, credit_bytes=1 << 20)
    world = await start(executor)
    small, large, waiting = (world.stub.ModelInfer(infer_request("m", bytes(n))) for n in (64, 1 << 20, 1 << 20))
    await world.until(lambda: len(executor.infers) == 2)
    for call in (waiting, small, large):
        call.cancel()
    await world.until(lambda: len(executor.cancelled) == 2)
    executor.answer = echo
    response = await world.stub.ModelInfer(infer_request("m", bytes(1 << 20)), timeout=10)
    assert len(response.raw_output_contents[0]) == 1 << 20
    assert executor.broken == []


async def test_a_deadline_that_passes_is_answered_with_its_stage_and_cancels_the_work(start: Start) -> None:
    async def never(executor: FakeExecutor, infer: executor_pb2.Infer, payload: bytes) -> None:
        await asyncio.sleep(3600)

    executor = FakeExecutor(never)
    world = await start(executor)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.stub.ModelInfer(infer_request("m", timeout=("int64_param", 30_000)))
    refusal = from_rpc_error(caught.value)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert refusal is not None
    assert refusal.facts == {"stage": "executor"}
    await world.until(lambda: executor.cancelled == [1])
    assert 0 < executor.infers[0].deadline_us <= 30_000


async def test_the_executors_word_on_a_passed_deadline_is_waited_for_a_moment(start: Start) -> None:
    async def late(executor: FakeExecutor, infer: executor_pb2.Infer, payload: bytes) -> Refusal:
        await asyncio.sleep(infer.deadline_us / 1e6 + 0.0005)
        return Refusal(Reason.DEADLINE_EXCEEDED, "it waited for 30 ms", facts={"stage": "queue"})

    world = await start(FakeExecutor(late))
    stages = set()
    for _ in range(20):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.stub.ModelInfer(infer_request("m", timeout=("int64_param", 30_000)))
        refusal = from_rpc_error(caught.value)
        assert refusal is not None
        stages.add(refusal.facts["stage"])
        if "queue" in stages:
            break
    assert "queue" in stages


async def test_a_request_whose_time_is_up_on_arrival_is_never_sent(start: Start) -> None:
    executor = FakeExecutor()
    world = await start(executor)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.stub.ModelInfer(infer_request("m", timeout=("int64_param", 1)))
    refusal = from_rpc_error(caught.value)
    assert refusal is not None
    assert refusal.facts == {"stage": "admit"}
    assert executor.infers == []


async def test_an_executor_that_breaks_the_rules_costs_its_calls_and_not_the_link(start: Start) -> None:
    async def never(executor: FakeExecutor, infer: executor_pb2.Infer, payload: bytes) -> None:
        session = next(iter(executor.sessions.values()))
        bad = executor_pb2.Chunk(call=infer.call, offset=5, data=b"x")
        session.bulk.put_nowait(executor_pb2.ExecuteResponse(chunks=[bad]))

    executor = FakeExecutor(never)
    world = await start(executor)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.stub.ModelInfer(infer_request("m"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    executor.answer = echo
    await world.until(lambda: world.frontend.links.state(executor.address) == "up")
    assert (await world.stub.ModelInfer(infer_request("m", b"abc"))).raw_output_contents[0] == b"abc"


async def test_a_callers_grpc_deadline_reaches_the_executor_and_its_passing_cancels_the_work(start: Start) -> None:
    async def never(executor: FakeExecutor, infer: executor_pb2.Infer, payload: bytes) -> None:
        await asyncio.sleep(3600)

    executor = FakeExecutor(never)
    world = await start(executor)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.stub.ModelInfer(infer_request("m"), timeout=0.05)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await world.until(lambda: executor.cancelled == [1])
    assert executor.infers[0].deadline_us <= 50_000
    counts = world.frontend.accounts.counts("default", "m")
    await world.until(lambda: counts.outcomes == {"DEADLINE_EXCEEDED": 1})


async def test_a_broken_link_fails_its_calls_at_once_and_is_made_anew(start: Start) -> None:
    async def never(executor: FakeExecutor, infer: executor_pb2.Infer, payload: bytes) -> None:
        await asyncio.sleep(3600)

    executor = FakeExecutor(never)
    world = await start(executor)
    calls = [asyncio.ensure_future(world.stub.ModelInfer(infer_request("m"))) for _ in range(5)]
    await world.until(lambda: len(executor.infers) == 5)
    await executor.stop()
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, grpc.aio.AioRpcError)
        assert outcome.code() is grpc.StatusCode.UNAVAILABLE
        refusal = from_rpc_error(outcome)
        assert refusal is not None
        assert refusal.reason is Reason.EXECUTOR_LOST
    again = await FakeExecutor().start(executor.address)
    world.executors.append(again)
    try:
        await world.until(lambda: bool(again.sessions))
        await world.until(lambda: world.frontend.links.state(executor.address) == "up")
        assert (await world.stub.ModelInfer(infer_request("m", b"abc"))).raw_output_contents[0] == b"abc"
    finally:
        await again.stop()


@pytest.mark.parametrize("reason", [Reason.MODEL_NOT_READY, Reason.WORKER_LOST])
async def test_a_failure_of_one_replica_is_tried_once_on_another(start: Start, reason: Reason) -> None:
    async def gone(executor: FakeExecutor, infer: executor_pb2.Infer, payload: bytes) -> Refusal:
        return Refusal(reason, "not here")

    bad, good = FakeExecutor(gone, executor_id="e1"), FakeExecutor(executor_id="e2")
    world = await start(bad, good)
    await world.until(lambda: len(world.frontend.links.up()) == 2)
    response = await world.stub.ModelInfer(infer_request("m", b"abc"))
    assert response.raw_output_contents[0] == b"abc"
    assert (len(bad.infers), len(good.infers)) == (1, 1)
    await world.until(lambda: len(bad.verdicts) == len(good.verdicts) == 1)


async def test_calls_of_a_lost_executor_go_to_another_replica(start: Start) -> None:
    async def never(executor: FakeExecutor, infer: executor_pb2.Infer, payload: bytes) -> None:
        await asyncio.sleep(3600)

    bad, good = FakeExecutor(never, executor_id="e1"), FakeExecutor(executor_id="e2")
    world = await start(bad, good)
    await world.until(lambda: bool(bad.sessions) and bool(good.sessions))
    # The one that will be lost says that it is idle, so the request goes there first.
    good.report(2, 9, 50_000)
    await asyncio.sleep(0.05)
    call = asyncio.ensure_future(world.stub.ModelInfer(infer_request("m", b"abc")))
    await world.until(lambda: len(bad.infers) == 1)
    await bad.stop()
    assert (await call).raw_output_contents[0] == b"abc"


async def test_both_replicas_failing_is_told_and_not_tried_for_ever(start: Start) -> None:
    async def gone(executor: FakeExecutor, infer: executor_pb2.Infer, payload: bytes) -> Refusal:
        return Refusal(Reason.WORKER_LOST, "the worker died")

    first, second, third = FakeExecutor(gone), FakeExecutor(gone), FakeExecutor(gone)
    world = await start(first, second, third)
    await world.until(lambda: all(e.sessions for e in world.executors))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.stub.ModelInfer(infer_request("m"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert sum(len(e.infers) for e in world.executors) == 2


async def test_beyond_its_budget_a_tenants_failures_are_told_and_not_tried_elsewhere(start: Start) -> None:
    async def gone(executor: FakeExecutor, infer: executor_pb2.Infer, payload: bytes) -> Refusal:
        return Refusal(Reason.WORKER_LOST, "the worker died")

    bad, good = FakeExecutor(gone, executor_id="e1"), FakeExecutor(executor_id="e2")
    world = await start(bad, good, retry_ratio=0.0, retry_burst=2.0)
    await world.until(lambda: bool(bad.sessions) and bool(good.sessions))
    # The one that fails says that it is idle, so every request goes there first.
    good.report(2, 9, 50_000)
    await asyncio.sleep(0.05)
    outcomes = await asyncio.gather(
        *(world.stub.ModelInfer(infer_request("m", b"abc")) for _ in range(5)), return_exceptions=True
    )
    failed = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
    assert len(bad.infers) == 2 + len(failed)
    assert failed
    assert all(each.code() is grpc.StatusCode.UNAVAILABLE for each in failed)


async def test_a_request_for_an_executor_that_is_not_up_yet_waits_for_the_connection(start: Start) -> None:
    executor = await FakeExecutor().start()
    world = await start(executor, routes=[])
    world.mesh.change_routes([route("m", [executor.address])])
    await world.until(lambda: bool(world.frontend.table.addresses()))
    assert (await world.stub.ModelInfer(infer_request("m", b"abc"))).raw_output_contents[0] == b"abc"


async def test_a_replica_that_reports_a_long_wait_is_passed_over(start: Start) -> None:
    busy, idle = FakeExecutor(), FakeExecutor()
    world = await start(busy, idle)
    await world.until(lambda: bool(busy.sessions) and bool(idle.sessions))
    busy.report(1, 9, 50_000)
    await asyncio.sleep(0.05)
    for _ in range(10):
        await world.stub.ModelInfer(infer_request("m"))
    assert (len(busy.infers), len(idle.infers)) == (0, 10)
