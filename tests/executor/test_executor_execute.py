"""Execute over real gRPC, with a worker that answers what it is given."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
from google.rpc import status_pb2
from harness import Frontend, house, request

from services._proto.apportion.v1 import executor_pb2 as pb
from services._proto.apportion.v1.executor_pb2_grpc import ExecutorServiceStub
from services._proto.inference.grpc_service_pb2 import ModelInferResponse
from services.common.channel import connect
from services.common.errors import Reason
from services.common.status import from_rpc_error, from_status

SMALL = np.arange(6, dtype=np.float32).reshape(2, 3)
LARGE = np.arange(2 << 20, dtype=np.float32).reshape(2, -1)


def reason(result: pb.Result) -> Reason:
    return from_status(status_pb2.Status.FromString(result.status)).reason


def values(payload: bytes) -> np.ndarray:
    response = ModelInferResponse.FromString(payload)
    return np.frombuffer(response.raw_output_contents[0], "<f4").reshape(response.outputs[0].shape)


async def test_a_small_request_is_answered_inline_with_its_id_and_its_stages() -> None:
    async with house() as built, Frontend(built.address) as frontend:
        built.load(1)
        await built.serving(1)
        call = await frontend.infer(request(SMALL, request_id="r-7"))
        result = await frontend.result(call)
        response = ModelInferResponse.FromString(result.payload)
        assert (response.id, response.model_name, response.model_version) == ("r-7", "echo", "1")
        assert (response.outputs[0].name, response.outputs[0].datatype) == ("y", "FP32")
        assert np.array_equal(values(result.payload), SMALL)
        assert result.stages.compute_ns == 1000
        assert result.stages.batch_rows == 2
        await built.until(lambda: built.worker.inputs.used_bytes == built.worker.output_bytes == 0)


async def test_an_8_mib_request_travels_in_chunks_both_ways() -> None:
    async with house() as built, Frontend(built.address) as frontend:
        built.load(1)
        await built.serving(1)
        call = await frontend.infer_bulk(payload := request(LARGE))
        assert np.array_equal(values(await frontend.payload(call)), LARGE)
        assert frontend.results[call].bulk_bytes > 8 << 20
        await frontend.until(lambda: frontend.granted == {"acme": len(payload)})
        await built.until(lambda: built.worker.inputs.used_bytes == built.worker.output_bytes == 0)


async def test_the_first_tensor_of_a_large_request_lies_aligned() -> None:
    async with house() as built, Frontend(built.address) as frontend:
        built.load(1)
        await built.serving(1)
        await frontend.payload(await frontend.infer_bulk(request(LARGE, request_id="x" * 13)))
        submit = next(each for each in built.worker.commands if type(each).__name__ == "Submit")
        assert submit.inputs[0].offset % 64 == 0


async def test_chunks_of_two_large_answers_take_turns() -> None:
    async with house() as built, Frontend(built.address) as frontend:
        built.load(1)
        await built.serving(1)
        built.worker.hold = True
        calls = [await frontend.infer_bulk(request(LARGE)) for _ in range(2)]
        await built.until(lambda: len(built.worker.held) == 2)
        built.worker.answer_held()
        await asyncio.gather(*(frontend.payload(call) for call in calls))
        switches = sum(a != b for a, b in zip(frontend.order, frontend.order[1:], strict=False))
        assert switches > 20


async def test_large_requests_may_come_interleaved() -> None:
    async with house() as built, Frontend(built.address) as frontend:
        built.load(1)
        await built.serving(1)
        payloads = {call: request(LARGE + call) for call in (1, 2)}
        infers = [pb.Infer(call=call, replica_id=1, bulk_bytes=len(data)) for call, data in payloads.items()]
        await frontend.send(infers=infers)
        for offset in range(0, len(payloads[1]), 1 << 20):
            parts = [pb.Chunk(call=c, offset=offset, data=d[offset : offset + (1 << 20)]) for c, d in payloads.items()]
            await frontend.bulk.write(pb.ExecuteRequest(chunks=parts))
        for call in payloads:
            assert np.array_equal(values(await frontend.payload(call)), LARGE + call)


async def test_a_chunk_that_comes_before_its_infer_waits_for_it() -> None:
    async with house() as built, Frontend(built.address) as frontend:
        built.load(1)
        await built.serving(1)
        payload = request(SMALL)
        await frontend.bulk.write(pb.ExecuteRequest(chunks=[pb.Chunk(call=1, data=payload)]))
        await asyncio.sleep(0.02)
        await frontend.send(infers=[pb.Infer(call=1, replica_id=1, bulk_bytes=len(payload))])
        assert np.array_equal(values(await frontend.payload(1)), SMALL)


async def test_a_result_waits_until_its_tenant_has_credit_and_holds_up_nobody_else() -> None:
    async with house() as built, Frontend(built.address, credit=9 << 20) as frontend:
        built.load(1)
        built.load(2, tenant="other")
        await built.serving(1, 2)
        first = await frontend.infer_bulk(request(LARGE))
        await frontend.payload(first)
        second = await frontend.infer_bulk(request(LARGE))
        third = await frontend.infer(request(SMALL), replica=2)
        await frontend.result(third)
        assert second not in frontend.results
        length = frontend.results[first].bulk_bytes
        await frontend.send(credits=[pb.Credit(tenant="acme", bytes=length)])
        assert np.array_equal(values(await frontend.payload(second)), LARGE)


async def test_a_cancelled_call_is_never_answered_and_its_memory_is_free() -> None:
    async with house() as built, Frontend(built.address) as frontend:
        built.load(1)
        await built.serving(1)
        built.worker.hold = True
        call = await frontend.infer(request(SMALL))
        await built.until(lambda: built.worker.held)
        assert built.worker.inputs.used_bytes > 0
        await frontend.send(cancels=[pb.Cancel(call=call)])
        await built.until(lambda: built.worker.inputs.used_bytes == 0)
        built.worker.hold = False
        later = await frontend.infer(request(SMALL))
        await frontend.result(later)
        assert call not in frontend.results


async def test_a_large_call_that_is_cancelled_half_way_gives_its_credit_back() -> None:
    async with house() as built, Frontend(built.address) as frontend:
        built.load(1)
        await built.serving(1)
        await frontend.send(infers=[pb.Infer(call=1, replica_id=1, bulk_bytes=1 << 20)])
        await frontend.bulk.write(pb.ExecuteRequest(chunks=[pb.Chunk(call=1, data=b"\0" * 1000)]))
        await frontend.send(cancels=[pb.Cancel(call=1)])
        await frontend.until(lambda: frontend.granted == {"acme": 1 << 20})
        assert built.worker.inputs.used_bytes == 0
        await frontend.bulk.write(pb.ExecuteRequest(chunks=[pb.Chunk(call=1, offset=1000, data=b"\0" * 1000)]))
        next(frontend.calls)
        await frontend.result(await frontend.infer(request(SMALL)))
        assert not frontend.errors


async def test_the_end_of_the_primary_stream_frees_everything() -> None:
    async with house() as built:
        async with Frontend(built.address, credit=9 << 20) as frontend:
            built.load(1)
            await built.serving(1)
            await frontend.payload(await frontend.infer_bulk(request(LARGE)))
            await frontend.infer_bulk(request(LARGE))  # its answer waits for credit
            await built.until(lambda: built.worker.output_bytes > 0)
            built.worker.hold = True
            await frontend.infer(request(SMALL))
            await frontend.send(infers=[pb.Infer(call=50, replica_id=1, bulk_bytes=1 << 20)])
            await built.until(lambda: built.worker.held)
        await built.until(lambda: not built.servicer.sessions)
        await built.until(lambda: built.worker.inputs.used_bytes == built.worker.output_bytes == 0)
        assert not built.executor.lanes[0].calls


async def test_a_lost_worker_answers_its_calls_at_once_and_the_replica_returns() -> None:
    async with house() as built, Frontend(built.address) as frontend:
        built.load(1)
        await built.serving(1)
        built.worker.hold = True
        call = await frontend.infer(request(SMALL))
        await frontend.send(infers=[pb.Infer(call=9, replica_id=1, bulk_bytes=1 << 20)])
        await built.until(lambda: len(built.executor.lanes[0].calls) == 2)
        built.worker.die()
        assert reason(await frontend.result(call)) is Reason.WORKER_LOST
        assert reason(await frontend.result(9)) is Reason.WORKER_LOST
        await built.until(lambda: len(built.workers) == 2)
        await built.serving(1)
        await frontend.send(infers=[pb.Infer(call=10, replica_id=1, payload=request(SMALL))])
        assert np.array_equal(values(await frontend.payload(10)), SMALL)


async def test_a_replica_that_is_not_here_says_so_and_returns_the_credit() -> None:
    async with house() as built, Frontend(built.address) as frontend:
        assert reason(await frontend.result(await frontend.infer(request(SMALL), replica=77))) is Reason.MODEL_NOT_READY
        bulk = await frontend.infer_bulk(payload := request(LARGE), replica=77)
        assert reason(await frontend.result(bulk)) is Reason.MODEL_NOT_READY
        await frontend.until(lambda: frontend.granted == {"acme": len(payload)})


async def test_a_request_whose_deadline_has_passed_is_refused_with_the_stage() -> None:
    async with house() as built, Frontend(built.address) as frontend:
        built.load(1)
        await built.serving(1)
        result = await frontend.result(await frontend.infer(request(SMALL), deadline_us=0))
        refusal = from_status(status_pb2.Status.FromString(result.status))
        assert refusal.reason is Reason.DEADLINE_EXCEEDED
        assert refusal.facts["stage"] == "decode"
        assert built.worker.inputs.used_bytes == 0


async def test_what_the_worker_gets_says_when_it_is_due() -> None:
    async with house() as built, Frontend(built.address) as frontend:
        built.load(1)
        await built.serving(1)
        await frontend.result(await frontend.infer(request(SMALL), deadline_us=10**6, objective_us=10**5, priority=3))
        await frontend.result(await frontend.infer(request(SMALL)))
        first, second = (each for each in built.worker.commands if type(each).__name__ == "Submit")
        assert (first.deadline - first.arrived, first.objective - first.arrived) == (10**9, 10**8)
        assert (first.priority, second.deadline, second.objective) == (3, None, None)


async def test_a_request_for_which_there_is_no_memory_is_refused_with_the_numbers() -> None:
    async with house() as built, Frontend(built.address) as frontend:
        built.load(1)
        await built.serving(1)
        payload = request(np.zeros((1, 9 << 20), np.float32))
        call = await frontend.infer_bulk(payload)
        refusal = from_status(status_pb2.Status.FromString((await frontend.result(call)).status))
        assert refusal.reason is Reason.OUT_OF_MEMORY
        assert refusal.facts["capacity_bytes"] == str(32 << 20)
        await frontend.until(lambda: frontend.granted == {"acme": len(payload)})


async def test_a_frontend_is_told_how_busy_a_replica_is() -> None:
    async with house() as built, Frontend(built.address) as frontend:
        built.load(1)
        await built.serving(1)
        built.worker.hold = True
        for _ in range(3):
            await frontend.infer(request(SMALL))
        await frontend.until(lambda: 1 in frontend.loads and frontend.loads[1].waiting_requests == 3)
        built.worker.answer_held()
        await frontend.until(lambda: frontend.loads[1].waiting_requests == 0)


GARBAGE = {
    "a second hello": pb.ExecuteRequest(hello=pb.ExecuteHello(session=b"0" * 16, kind=pb.STREAM_KIND_PRIMARY)),
    "a chunk": pb.ExecuteRequest(chunks=[pb.Chunk(call=1)]),
    "a call number twice": pb.ExecuteRequest(infers=[pb.Infer(call=3, replica_id=1), pb.Infer(call=3, replica_id=1)]),
    "a payload both ways": pb.ExecuteRequest(infers=[pb.Infer(call=3, replica_id=1, payload=b"x", bulk_bytes=5)]),
    "too much inline": pb.ExecuteRequest(infers=[pb.Infer(call=3, replica_id=1, payload=bytes((256 << 10) + 1))]),
    "more than the credit": pb.ExecuteRequest(
        infers=[pb.Infer(call=call, replica_id=1, bulk_bytes=700 << 10, tenant="acme") for call in (3, 4)]
    ),
    "another's tenant": pb.ExecuteRequest(infers=[pb.Infer(call=3, replica_id=1, bulk_bytes=2000, tenant="other")]),
    "credit never drawn": pb.ExecuteRequest(credits=[pb.Credit(tenant="acme", bytes=1)]),
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_a_primary_stream_that_breaks_the_rules_ends(what: str) -> None:
    async with house(tenant_credit_bytes=1 << 20) as built, Frontend(built.address) as frontend:
        built.load(1)
        await built.serving(1)
        await frontend.primary.write(GARBAGE[what])
        await frontend.until(lambda: frontend.errors)
        refusal = from_rpc_error(frontend.errors[0])
        assert refusal is not None
        assert refusal.reason is Reason.PROTOCOL, what
        await built.until(lambda: not built.servicer.sessions)
        assert built.worker.inputs.used_bytes == 0


@pytest.mark.parametrize(
    "chunk",
    [pb.Chunk(call=1, offset=5, data=b"x"), pb.Chunk(call=1, data=bytes(2000))],
    ids=["out of order", "beyond the end"],
)
async def test_a_bulk_stream_whose_chunks_do_not_fit_ends_and_its_call_is_answered(chunk: pb.Chunk) -> None:
    async with house() as built, Frontend(built.address) as frontend:
        built.load(1)
        await built.serving(1)
        await frontend.send(infers=[pb.Infer(call=1, replica_id=1, bulk_bytes=1000)])
        await frontend.bulk.write(pb.ExecuteRequest(chunks=[chunk]))
        # The bulk stream's end and the call's result come on different streams, in either order.
        await frontend.until(lambda: 1 in frontend.results)
        assert reason(frontend.results[1]) is Reason.EXECUTOR_LOST
        assert built.worker.inputs.used_bytes == 0


HELLOS = {
    "no hello": pb.ExecuteRequest(infers=[pb.Infer(call=1)]),
    "hello and more": pb.ExecuteRequest(
        hello=pb.ExecuteHello(session=bytes(16), kind=pb.STREAM_KIND_PRIMARY), infers=[pb.Infer(call=1)]
    ),
    "a short session": pb.ExecuteRequest(hello=pb.ExecuteHello(session=b"x", kind=pb.STREAM_KIND_PRIMARY)),
    "no kind": pb.ExecuteRequest(hello=pb.ExecuteHello(session=bytes(16))),
}


@pytest.mark.parametrize("what", HELLOS)
async def test_a_stream_begins_with_hello_and_nothing_else(what: str) -> None:
    async with house() as built, connect(built.address) as channel:
        stream = ExecutorServiceStub(channel).Execute()
        await stream.write(HELLOS[what])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        refusal = from_rpc_error(caught.value)
        assert refusal is not None
        assert refusal.reason is Reason.PROTOCOL, what


async def test_a_session_has_one_stream_of_a_kind() -> None:
    async with house() as built, Frontend(built.address) as frontend, connect(built.address) as channel:
        stream = ExecutorServiceStub(channel).Execute()
        hello = pb.ExecuteHello(session=frontend.session, kind=pb.STREAM_KIND_PRIMARY)
        await stream.write(pb.ExecuteRequest(hello=hello))
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.read()
        assert len(built.servicer.sessions) == 1
