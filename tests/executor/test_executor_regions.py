"""Regions of device memory in an executor: opened in every worker, checked before a request leaves, gone with their session."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
from harness import Frontend, House, house
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.tensors import Signature, TensorSpec
from gpu_sharing.worker.messages import CloseRegion, OpenRegion, RegionPart, Submit
from services._proto.apportion.v1 import executor_pb2 as pb
from services._proto.apportion.v1.executor_pb2_grpc import ExecutorServiceStub
from services._proto.inference.grpc_service_pb2 import ModelInferRequest, ModelInferResponse
from services.common.channel import connect
from services.common.errors import Reason, Refusal
from services.common.machine import boot_id
from services.common.status import from_rpc_error, from_status
from services.executor.core.regions import InRegions
from services.executor.decode import Decoder, shape_key
from services.executor.inflight import Lane
from services.executor.regions import DeviceRegions, _Held

A, HANDLE, SIZE = "a" * 32, b"h" * 64, 4096
ON: dict[str, Any] = {"cuda_shared_memory": "host"}


class Asking:
    """The unary methods, over a connection."""

    def __init__(self, built: House, frontend: Frontend) -> None:
        self._channel = connect(built.address)
        self._stub: Any = ExecutorServiceStub(self._channel)
        self._session = frontend.session

    async def __aenter__(self) -> Asking:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def open(self, **changed: Any) -> pb.OpenRegionResponse:
        fields = {
            "session": self._session, "region": A, "tenant": "acme", "handle": HANDLE, "byte_size": SIZE,
            "machine": boot_id(),
        }  # fmt: skip
        return await self._stub.OpenRegion(pb.OpenRegionRequest(**{**fields, **changed}), timeout=20)

    async def close(self, region: str = A) -> None:
        await self._stub.CloseRegion(pb.CloseRegionRequest(region=region))

    async def refusal(self, **changed: Any) -> tuple[grpc.StatusCode, Refusal]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.open(**changed)
        refusal = from_rpc_error(caught.value)
        assert refusal is not None
        return caught.value.code(), refusal


def at(parameters: Any, size: int, offset: int = 0, region: str = A) -> None:
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_byte_size"].int64_param = size
    parameters["shared_memory_offset"].int64_param = offset


def request(*, source: tuple[int, int] | None = (8, 0), sink: tuple[int, int] | None = None) -> ModelInferRequest:
    """One row of two numbers. source, sink: size and offset in the region."""
    message = ModelInferRequest(model_name="echo", id="7")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    if source is None:
        message.raw_input_contents.append(np.array([1, 2], "<f4").tobytes())
    else:
        at(message.inputs[0].parameters, *source)
        message.raw_input_contents.append(b"")
    message.outputs.add(name="y")
    if sink is not None:
        at(message.outputs[0].parameters, *sink)
    return message


def reason(result: pb.Result) -> Reason:
    from google.rpc import status_pb2

    return from_status(status_pb2.Status.FromString(result.status)).reason


async def test_a_tensor_is_read_from_a_region_and_written_there_and_none_of_its_bytes_pass_the_arena() -> None:
    async with house(**ON) as built, Frontend(built.address) as frontend, Asking(built, frontend) as asking:
        assert frontend.welcome.opens_regions
        built.load(1)
        await built.serving(1)
        built.worker.memories[HANDLE] = 2 * SIZE
        assert (await asking.open()).memory_bytes == 2 * SIZE
        memory = built.worker.regions[A]
        memory[16:24] = content = np.array([3, 4], "<f4").tobytes()
        call = await frontend.infer(request(source=(8, 16), sink=(100, 64)).SerializeToString())
        answer = ModelInferResponse.FromString(await frontend.payload(call))
        assert (answer.id, list(answer.raw_output_contents)) == ("7", [b""])
        assert answer.outputs[0].parameters["shared_memory_byte_size"].int64_param == 8
        assert memory[64:72] == content
        (submit,) = (each for each in built.worker.commands if isinstance(each, Submit))
        assert submit.sources == (RegionPart(0, A, 16, 8),)
        assert submit.sinks == (RegionPart(0, A, 64, 100),)
        assert [ref.length_bytes for ref in submit.inputs] == [0]
        await built.until(lambda: built.worker.inputs.used_bytes == 0)
        assert built.worker.output_bytes == 0
        plain = await frontend.infer(request(source=None).SerializeToString())
        assert len(ModelInferResponse.FromString(await frontend.payload(plain)).raw_output_contents[0]) == 8


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (request(source=(8, SIZE - 7)), Reason.FIELD_INVALID),
        (request(source=(7, 0)), Reason.FIELD_INVALID),
        (request(source=(8, 0), sink=(8, SIZE)), Reason.FIELD_INVALID),
        (request(source=(8, 0), sink=(SIZE + 1, 0)), Reason.FIELD_INVALID),
    ],
)
async def test_what_lies_outside_a_region_never_reaches_the_worker(message: ModelInferRequest, problem: Reason) -> None:
    async with house(**ON) as built, Frontend(built.address) as frontend, Asking(built, frontend) as asking:
        built.load(1)
        await built.serving(1)
        built.worker.memories[HANDLE] = SIZE
        await asking.open()
        assert reason(await frontend.result(await frontend.infer(message.SerializeToString()))) is problem
        assert not any(isinstance(each, Submit) for each in built.worker.commands)


async def test_a_region_that_is_not_open_is_a_typed_refusal_whoever_made_it_up() -> None:
    async with house(**ON) as built, Frontend(built.address) as frontend, Asking(built, frontend) as asking:
        built.load(1)
        await built.serving(1)
        call = await frontend.infer(request().SerializeToString())
        assert reason(await frontend.result(call)) is Reason.REGION_NOT_FOUND
        built.worker.memories[HANDLE] = SIZE
        await asking.open()
        await asking.close()
        call = await frontend.infer(request().SerializeToString())
        assert reason(await frontend.result(call)) is Reason.REGION_NOT_FOUND
        await asking.close()


@pytest.mark.parametrize(
    ("changed", "code", "why"),
    [
        ({"handle": b"h" * 63}, grpc.StatusCode.INVALID_ARGUMENT, "63 bytes given, 64 are needed"),
        ({"region": "A" * 32}, grpc.StatusCode.INVALID_ARGUMENT, "hexadecimal"),
        ({"byte_size": 0}, grpc.StatusCode.INVALID_ARGUMENT, "1 to"),
        ({"machine": "another"}, grpc.StatusCode.UNIMPLEMENTED, "one machine alone"),
        ({"session": b"x" * 16}, grpc.StatusCode.NOT_FOUND, "no open primary stream"),
        ({"handle": b"n" * 64}, grpc.StatusCode.INVALID_ARGUMENT, "no memory that can be opened here"),
    ],
)
async def test_what_cannot_be_opened_is_refused_and_leaves_nothing_open(
    changed: dict[str, Any], code: grpc.StatusCode, why: str
) -> None:
    async with house(**ON) as built, Frontend(built.address) as frontend, Asking(built, frontend) as asking:
        await built.until(lambda: built.executor.running())
        built.worker.memories[HANDLE] = SIZE
        got, refusal = await asking.refusal(**changed)
        assert (got, why in refusal.message) == (code, True), refusal.message
        assert not built.worker.regions
        await asking.open()


async def test_without_a_device_that_shares_memory_the_refusal_names_what_to_use_instead() -> None:
    async with house() as built, Frontend(built.address) as frontend, Asking(built, frontend) as asking:
        assert not frontend.welcome.opens_regions
        code, refusal = await asking.refusal()
        assert (code, refusal.reason) == (grpc.StatusCode.UNIMPLEMENTED, Reason.UNSUPPORTED)
        assert "system shared memory" in refusal.message


async def test_a_worker_that_does_not_answer_is_a_refusal_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.executor.regions.ANSWER_S", 0.1)
    async with house(**ON) as built, Frontend(built.address) as frontend, Asking(built, frontend) as asking:
        await built.until(lambda: built.executor.running())
        built.worker.hold_regions = True
        code, refusal = await asking.refusal()
        assert (code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.WORKER_LOST)
        await built.until(lambda: CloseRegion(A) in built.worker.commands)


async def test_a_worker_that_is_started_anew_opens_its_regions_again() -> None:
    async with house(**ON) as built, Frontend(built.address) as frontend, Asking(built, frontend) as asking:
        built.load(1)
        await built.serving(1)
        built.worker.memories[HANDLE] = SIZE
        await asking.open()
        built.worker.die()
        await built.until(lambda: len(built.workers) == 2)
        opened = OpenRegion(A, "acme", HANDLE, SIZE)
        await built.until(lambda: opened in built.worker.commands)
        await built.serving(1)
        # This one has lost the memory: it says so, rather than serve something else.
        call = await frontend.infer(request().SerializeToString())
        assert reason(await frontend.result(call)) is Reason.REGION_NOT_FOUND


async def test_a_worker_that_is_lost_while_it_opens_is_a_refusal() -> None:
    async with house(**ON) as built, Frontend(built.address) as frontend, Asking(built, frontend) as asking:
        await built.until(lambda: built.executor.running())
        built.worker.hold_regions = True
        asked = asyncio.ensure_future(asking.refusal())
        await built.until(lambda: any(isinstance(each, OpenRegion) for each in built.worker.commands))
        built.worker.die()
        assert (await asked)[1].reason is Reason.WORKER_LOST


async def test_regions_go_with_the_session_that_opened_them_unless_another_has_opened_them_since() -> None:
    async with house(**ON) as built, Frontend(built.address) as second, Asking(built, second) as asking:
        await built.until(lambda: built.executor.running())
        built.worker.memories[HANDLE] = SIZE
        async with Frontend(built.address) as first, Asking(built, first) as earlier:
            await earlier.open()
            await earlier.open(region="b" * 32)
            await asking.open()
        await built.until(lambda: "b" * 32 not in built.worker.regions)
        assert list(built.worker.regions) == [A]


async def test_an_id_that_is_open_is_never_other_memory() -> None:
    async with house(**ON) as built, Frontend(built.address) as frontend, Asking(built, frontend) as asking:
        await built.until(lambda: built.executor.running())
        built.worker.memories[HANDLE] = SIZE
        await asking.open()
        _, refusal = await asking.refusal(tenant="other")
        assert refusal.field == "region"
        assert A in built.worker.regions


@given(
    offset=st.integers(0, 3 * SIZE) | st.integers(0, 1 << 62),
    length=st.integers(0, 3 * SIZE) | st.integers(0, 1 << 62),
    size=st.integers(1, 2 * SIZE),
)
def test_a_part_passes_if_and_only_if_it_lies_within_its_region(offset: int, length: int, size: int) -> None:
    regions = DeviceRegions({0: Lane(0)}, opens=True)
    held = regions._held[A] = _Held(OpenRegion(A, "acme", HANDLE, size), b"s")
    held.lanes.add(0)
    used = InRegions((), (RegionPart(0, A, offset, length),))
    if offset + length <= size:
        regions.check(0, used)
    else:
        with pytest.raises(Refusal, match="reach beyond"):
            regions.check(0, used)
    with pytest.raises(Refusal, match="not open on its device"):
        regions.check(1, used)


SCALED = Signature(
    (TensorSpec("x", "FP32", (None, 2), batch_axis=0), TensorSpec("s", "FP32", (1,)), TensorSpec("t", "BYTES", (1,), optional=True)),
    (TensorSpec("y", "FP32", (None, 2), batch_axis=0), TensorSpec("u", "BYTES", (1,))),
    max_batch_size=8,
)  # fmt: skip


def scaled() -> ModelInferRequest:
    message = request(source=None)
    message.inputs.add(name="s", datatype="FP32", shape=[1])
    at(message.inputs[1].parameters, 4)
    message.raw_input_contents.append(b"")
    return message


def test_requests_whose_unbatched_inputs_lie_in_a_region_share_a_batch_with_none() -> None:
    decoded = Decoder(SCALED).decode(scaled().SerializeToString())
    contents = (b"12345678", b"")
    assert shape_key(decoded.plan, contents, 1) != shape_key(decoded.plan, contents, 2)


def text_input(message: ModelInferRequest) -> None:
    message.inputs.add(name="t", datatype="BYTES", shape=[1])
    at(message.inputs[2].parameters, 4)
    message.raw_input_contents.append(b"")


def text_output(message: ModelInferRequest) -> None:
    message.outputs[0].name = "u"
    at(message.outputs[0].parameters, 4)


def classes(message: ModelInferRequest) -> None:
    message.outputs[0].parameters["classification"].int64_param = 1
    at(message.outputs[0].parameters, 4)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (text_input, "BYTES cannot lie in memory of the device"),
        (text_output, "BYTES cannot go to memory of the device"),
        (classes, "classes go in raw_output_contents"),
        (lambda m: m.raw_input_contents.__setitem__(1, b"1234"), "one way only"),
        (lambda m: at(m.inputs[1].parameters, -4), "0 or more"),
        (lambda m: at(m.inputs[1].parameters, 4, 1 << 62), "0 or more"),
        (lambda m: at(m.inputs[1].parameters, 4, region="by name"), "not supported here"),
        (lambda m: m.inputs[1].parameters["shared_memory_offset"].__setattr__("bool_param", True), "0 or more"),
        (lambda m: m.inputs[1].parameters.pop("shared_memory_byte_size"), "0 or more"),
    ],
)
def test_what_makes_no_sense_in_a_region_is_named(change: Any, problem: str) -> None:
    message = scaled()
    change(message)
    with pytest.raises(Refusal) as caught:
        Decoder(SCALED).decode(message.SerializeToString())
    assert problem in caught.value.message
