"""Regions of a GPU's memory at the frontend: whose they are, who is asked to open them, what travels, and when they go."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import grpc
import pytest
from frontend_fakes import FakeExecutor, at, infer_request, route, shared_request, tenant
from frontend_world import OPTIONS, Start, World
from hypothesis import given
from hypothesis import strategies as st

from services._proto.apportion.v1 import executor_pb2
from services._proto.inference import grpc_service_pb2 as oip
from services._proto.inference import grpc_service_pb2_grpc
from services.common.errors import Reason, Refusal, invalid
from services.common.machine import boot_id
from services.common.status import from_rpc_error
from services.frontend.core.regions import DeviceRegion, Part, check_part

HANDLE, SIZE, MOST_REGIONS = b"h" * 64, 4096, 12


def register(name: str = "r", *, handle: bytes = HANDLE, device: int = 0, size: int = SIZE) -> Any:
    return oip.CudaSharedMemoryRegisterRequest(name=name, raw_handle=handle, device_id=device, byte_size=size)


async def stored(_executor: FakeExecutor, _infer: Any, payload: bytes) -> bytes:
    """The answer of an executor that has written the output to its region."""
    asked = oip.ModelInferRequest.FromString(payload)
    response = oip.ModelInferResponse(model_name="m")
    told = response.outputs.add(name="X", datatype="UINT8", shape=[8])
    if asked.outputs and asked.outputs[0].parameters:
        told.parameters["shared_memory_byte_size"].int64_param = 8
    response.raw_output_contents.append(b"")
    return response.SerializeToString()


def executor(answer: Any = stored, **more: Any) -> FakeExecutor:
    made = FakeExecutor(answer, **more)
    made.opens_regions = True
    return made


async def refusal_of(call: Any) -> tuple[grpc.StatusCode, Refusal]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    refusal = from_rpc_error(caught.value)
    assert refusal is not None
    return caught.value.code(), refusal


async def connected(world: World) -> World:
    await world.until(lambda: world.frontend.device_regions.offered)
    return world


def status(world: World, name: str = "", **more: Any) -> Any:
    return world.stub.CudaSharedMemoryStatus(oip.CudaSharedMemoryStatusRequest(name=name), **more)


async def test_a_request_goes_on_with_the_regions_id_and_none_of_its_bytes(start: Start) -> None:
    gpu = executor()
    world = await connected(await start(gpu))
    await world.stub.CudaSharedMemoryRegister(register())
    ((number, opened),) = gpu.regions.items()
    assert (opened.tenant, opened.handle, opened.byte_size) == ("default", HANDLE, SIZE)
    assert (opened.region, opened.machine) == (number, boot_id())
    answer = await world.stub.ModelInfer(shared_request(8, offset=16, into=64))
    told = answer.outputs[0].parameters
    assert told["shared_memory_region"].string_param == "r"
    assert (told["shared_memory_byte_size"].int64_param, told["shared_memory_offset"].int64_param) == (8, 64)
    assert list(answer.raw_output_contents) == [b""]
    forwarded = oip.ModelInferRequest.FromString(gpu.infers[0].payload)
    assert list(forwarded.raw_input_contents) == [b""]
    given_ = forwarded.inputs[0].parameters
    assert given_["shared_memory_region"].string_param == forwarded.outputs[0].parameters[
        "shared_memory_region"
    ].string_param == number  # fmt: skip
    assert (given_["shared_memory_byte_size"].int64_param, given_["shared_memory_offset"].int64_param) == (8, 16)
    assert not gpu.broken


async def test_an_input_in_the_request_may_stand_beside_one_in_a_gpus_region(start: Start) -> None:
    gpu = executor()
    world = await connected(await start(gpu))
    await world.stub.CudaSharedMemoryRegister(register())
    request = shared_request(8)
    request.inputs.add(name="w", datatype="UINT8", shape=[3])
    request.raw_input_contents.append(b"raw")
    await world.stub.ModelInfer(request)
    assert list(oip.ModelInferRequest.FromString(gpu.infers[0].payload).raw_input_contents) == [b"", b"raw"]


async def test_where_no_executor_opens_a_gpus_memory_the_refusal_names_what_to_use_instead(start: Start) -> None:
    world = await start(FakeExecutor())
    await world.stub.ModelInfer(infer_request("m", b"x"))
    code, refusal = await refusal_of(world.stub.CudaSharedMemoryRegister(register()))
    assert (code, refusal.reason) == (grpc.StatusCode.UNIMPLEMENTED, Reason.UNSUPPORTED)
    assert "system shared memory" in refusal.message
    assert "cuda_shared_memory" not in (await world.stub.ServerMetadata(oip.ServerMetadataRequest())).extensions


async def test_the_extension_is_listed_where_an_executor_serves_it(start: Start) -> None:
    world = await connected(await start(executor()))
    assert "cuda_shared_memory" in (await world.stub.ServerMetadata(oip.ServerMetadataRequest())).extensions


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (register(handle=b"h" * 63), "raw_handle"),
        (register(handle=b"h" * 65), "raw_handle"),
        (register(handle=b""), "raw_handle"),
        (register(""), "name"),
        (register("n" * 257), "name"),
        (register(device=-1), "device_id"),
        (register(device=1 << 40), "device_id"),
        (register(size=0), "byte_size"),
        (register(size=(1 << 64) - 1), "byte_size"),
    ],
)
async def test_what_can_be_no_memory_of_a_gpu_is_refused_before_anybody_is_asked(
    start: Start, asked: Any, field: str
) -> None:
    gpu = executor()
    world = await connected(await start(gpu))
    code, refusal = await refusal_of(world.stub.CudaSharedMemoryRegister(asked))
    assert (code, refusal.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert not gpu.opened


@pytest.mark.parametrize(
    ("refuses", "code", "text"),
    [
        (
            invalid("handle", "is of no memory that can be opened here"),
            "INVALID_ARGUMENT",
            "raw_handle: is of no memory",
        ),
        (Refusal(Reason.OUT_OF_MEMORY, "the device has no room"), "RESOURCE_EXHAUSTED", "no room"),
        (Refusal(Reason.WORKER_LOST, "no worker runs"), "UNAVAILABLE", "no worker runs"),
        (Refusal(Reason.UNSUPPORTED, "this driver does not"), "UNIMPLEMENTED", "this driver"),
    ],
)
async def test_what_executors_say_reaches_the_caller_and_nothing_is_registered(
    start: Start, refuses: Refusal, code: str, text: str
) -> None:
    gpu = executor()
    gpu.refuses = refuses
    world = await connected(await start(gpu))
    got, refusal = await refusal_of(world.stub.CudaSharedMemoryRegister(register()))
    assert (got.name, text in refusal.message) == (code, True)
    assert not (await status(world)).regions


async def test_a_request_goes_to_a_replica_beside_its_region_and_nowhere_else(start: Start) -> None:
    plain, gpu = await FakeExecutor(stored, executor_id="plain").start(), await executor(executor_id="gpu").start()
    world = await connected(await start(plain, gpu, routes=[route("m", [plain.address, gpu.address])]))
    await world.stub.CudaSharedMemoryRegister(register())
    for _ in range(8):
        await world.stub.ModelInfer(shared_request(8))
    assert (len(plain.infers), len(gpu.infers)) == (0, 8)
    world.mesh.tell_routes([route("m", [plain.address])])
    await world.until(lambda: len(world.frontend.table.route("default", "m").versions[1].replicas) == 1)
    code, refusal = await refusal_of(world.stub.ModelInfer(shared_request(8)))
    assert (code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.MODEL_NOT_READY)
    assert not plain.infers


async def test_another_tenants_region_is_as_one_that_is_not_there(start: Start) -> None:
    gpu = await executor().start()
    routes = [route("m", [gpu.address], tenant=name) for name in ("acme", "other")]
    world = await connected(await start(gpu, routes=routes, tenants=[tenant("acme", "one"), tenant("other", "two")]))
    mine, others = ((("authorization", f"Bearer {key}"),) for key in ("one", "two"))
    await world.stub.CudaSharedMemoryRegister(register(), metadata=mine)
    await world.stub.ModelInfer(shared_request(8), metadata=mine)
    code, theirs = await refusal_of(world.stub.ModelInfer(shared_request(8), metadata=others))
    assert (code, theirs.reason) == (grpc.StatusCode.NOT_FOUND, Reason.REGION_NOT_FOUND)
    _, nobodys = await refusal_of(world.stub.ModelInfer(shared_request(8, region="q"), metadata=others))
    assert theirs.message.replace("'r'", "'q'") == nobodys.message
    assert not (await status(world, metadata=others)).regions
    assert (await refusal_of(status(world, "r", metadata=others)))[0] is grpc.StatusCode.NOT_FOUND
    await world.stub.CudaSharedMemoryUnregister(oip.CudaSharedMemoryUnregisterRequest(name="r"), metadata=others)
    assert list((await status(world, metadata=mine)).regions) == ["r"]
    # Nor may they register what the first one has, and they learn nothing by trying.
    _, taken = await refusal_of(world.stub.CudaSharedMemoryRegister(register(), metadata=others))
    gpu.refuses = invalid("handle", "is of no memory that can be opened here")
    _, absent = await refusal_of(world.stub.CudaSharedMemoryRegister(register(handle=b"n" * 64), metadata=others))
    assert (taken.reason, taken.field, taken.message) == (absent.reason, absent.field, absent.message)


async def test_a_caller_cannot_name_a_region_by_the_id_that_executors_know(start: Start) -> None:
    gpu = executor()
    world = await connected(await start(gpu))
    await world.stub.CudaSharedMemoryRegister(register())
    (number,) = gpu.regions
    code, _ = await refusal_of(world.stub.ModelInfer(shared_request(8, region=number)))
    assert code is grpc.StatusCode.NOT_FOUND
    assert not gpu.infers


@pytest.mark.parametrize(("byte_size", "offset"), [(SIZE + 1, 0), (8, SIZE - 7), (8, (1 << 63) - 8)])
async def test_what_lies_outside_a_region_is_refused_at_the_frontend(start: Start, byte_size: int, offset: int) -> None:
    gpu = executor()
    world = await connected(await start(gpu))
    await world.stub.CudaSharedMemoryRegister(register())
    for request in (shared_request(byte_size, offset=offset), shared_request(byte_size, into=offset)):
        code, refusal = await refusal_of(world.stub.ModelInfer(request))
        assert (code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.FIELD_INVALID)
        assert "reach beyond the 4096 bytes" in refusal.message
    assert not gpu.infers


@given(size=st.integers(1, 1 << 62), offset=st.integers(0, 1 << 64), length=st.integers(1, 1 << 64))
def test_a_part_passes_if_and_only_if_it_lies_within_its_region(size: int, offset: int, length: int) -> None:
    region = DeviceRegion("r", HANDLE, 0, size)
    part = Part("inputs[0]", "r", length, offset)
    if offset + length <= size:
        check_part(part, region)
    else:
        with pytest.raises(Refusal, match="reach beyond"):
            check_part(part, region)


async def test_status_tells_a_tenant_its_own_regions_until_they_are_unregistered(start: Start) -> None:
    gpu = executor()
    world = await connected(await start(gpu))
    for name in ("a", "b", "c"):
        await world.stub.CudaSharedMemoryRegister(register(name, device=1, size=64))
    told = (await status(world)).regions
    assert sorted(told) == ["a", "b", "c"]
    assert (told["a"].device_id, told["a"].byte_size) == (1, 64)
    await world.stub.CudaSharedMemoryUnregister(oip.CudaSharedMemoryUnregisterRequest(name="a"))
    assert sorted((await status(world)).regions) == ["b", "c"]
    assert len(gpu.regions) == 2
    await world.stub.CudaSharedMemoryUnregister(oip.CudaSharedMemoryUnregisterRequest())
    assert not (await status(world)).regions
    assert not gpu.regions
    code, refusal = await refusal_of(world.stub.ModelInfer(shared_request(8)))
    assert (code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, Reason.REGION_NOT_FOUND)


async def test_a_name_stands_for_one_region_whichever_memory_it_is_of(start: Start, system_memory: Path) -> None:
    gpu = executor()
    world = await connected(await start(gpu))
    system = oip.SystemSharedMemoryRegisterRequest(name="s", key=system_memory.name, byte_size=64)
    await world.stub.SystemSharedMemoryRegister(system)
    await world.stub.CudaSharedMemoryRegister(register())
    system.name = "r"
    for call in (
        world.stub.CudaSharedMemoryRegister(register("s")),
        world.stub.CudaSharedMemoryRegister(register(size=64)),
        world.stub.SystemSharedMemoryRegister(system),
    ):
        code, refusal = await refusal_of(call)
        assert (code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, Reason.REGION_EXISTS)
    await world.stub.CudaSharedMemoryRegister(register())
    assert len(gpu.regions) == 1, "the same again takes the place of what was there"
    request = shared_request(8, region="s", into=0)
    at(request.outputs[0].parameters, "r", 8)
    await world.stub.ModelInfer(request)
    forwarded = oip.ModelInferRequest.FromString(gpu.infers[-1].payload)
    assert list(forwarded.raw_input_contents) == [b"s" * 8]
    assert not forwarded.inputs[0].parameters
    assert forwarded.outputs[0].parameters


@pytest.fixture
def system_memory() -> Any:
    path = Path(f"/dev/shm/test_{os.urandom(8).hex()}")
    path.write_bytes(b"s" * 64)
    yield path
    path.unlink()


async def test_a_tenant_may_have_so_many_regions_of_so_many_bytes(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.frontend.device_regions.MOST_REGIONS", MOST_REGIONS)
    gpu = executor()
    world = await connected(await start(gpu, cuda_shared_memory_bytes=MOST_REGIONS * 8 + 100))
    code, refusal = await refusal_of(world.stub.CudaSharedMemoryRegister(register(size=MOST_REGIONS * 8 + 101)))
    assert (code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.QUOTA_EXCEEDED)
    for number in range(MOST_REGIONS):
        await world.stub.CudaSharedMemoryRegister(register(str(number), size=8))
    await world.stub.CudaSharedMemoryRegister(register("7", size=8))
    _, refusal = await refusal_of(world.stub.CudaSharedMemoryRegister(register("more", size=1)))
    assert f"{MOST_REGIONS} regions" in refusal.message
    assert len(gpu.regions) == MOST_REGIONS


async def test_regions_go_with_the_connection_that_registered_them(start: Start) -> None:
    gpu = executor()
    world = await connected(await start(gpu))
    options = [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(world.address, options=options) as channel:
        stub: Any = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        await stub.CudaSharedMemoryRegister(register())
        # Another connection of the tenant may use it.
        await world.stub.ModelInfer(shared_request(8))
    await world.until(lambda: not gpu.regions)
    assert not (await status(world)).regions


async def test_regions_go_with_their_tenant(start: Start) -> None:
    gpu = await executor().start()
    world = await connected(await start(gpu, routes=[route("m", [gpu.address])], tenants=[tenant("acme", "one")]))
    await world.stub.CudaSharedMemoryRegister(register(), metadata=(("authorization", "Bearer one"),))
    world.mesh.tell_tenants([])
    await world.until(lambda: not gpu.regions)
    assert not world.frontend.device_regions.any()


async def test_a_region_is_opened_again_at_an_executor_that_has_come_back(start: Start) -> None:
    gpu = await executor().start()
    world = await connected(await start(gpu, routes=[route("m", [gpu.address])]))
    await world.stub.CudaSharedMemoryRegister(register())
    (number,) = gpu.regions
    await gpu.stop()
    again = executor()
    again.refuses = Refusal(Reason.WORKER_LOST, "no worker runs on the device now")
    await again.start(gpu.address)
    try:
        await world.until(lambda: again.opened > 0, timeout_s=15)
        again.refuses = None
        await world.until(lambda: number in again.regions, timeout_s=15)
        assert again.regions[number].session != gpu.regions[number].session
        await world.stub.ModelInfer(shared_request(8))
        assert len(again.infers) == 1
    finally:
        await again.stop()


async def test_frontends_of_one_folder_know_each_others_regions(start: Start, tmp_path: Path) -> None:
    gpu = await executor().start()
    folder = tmp_path / "regions"
    first, second = [
        await connected(await start(gpu, routes=[route("m", [gpu.address])], shared_memory_folder=folder))
        for _ in range(2)
    ]
    await first.stub.CudaSharedMemoryRegister(register())
    await second.stub.ModelInfer(shared_request(8))
    assert list((await status(second)).regions) == ["r"]
    await second.stub.CudaSharedMemoryUnregister(oip.CudaSharedMemoryUnregisterRequest())
    assert not gpu.regions
    for world in (first, second):
        code, _ = await refusal_of(world.stub.ModelInfer(shared_request(8)))
        assert code is grpc.StatusCode.NOT_FOUND


async def test_an_executor_that_is_slow_to_open_holds_up_no_other_tenant(start: Start) -> None:
    gpu = await executor().start()
    routes = [route("m", [gpu.address], tenant=name) for name in ("acme", "other")]
    world = await connected(await start(gpu, routes=routes, tenants=[tenant("acme", "one"), tenant("other", "two")]))
    mine, others = ((("authorization", f"Bearer {key}"),) for key in ("one", "two"))
    gpu.slow_for = "acme"
    waits = asyncio.ensure_future(world.stub.CudaSharedMemoryRegister(register(), metadata=mine))
    await world.until(lambda: gpu.opened == 1)
    await world.stub.CudaSharedMemoryRegister(register(handle=b"o" * 64), metadata=others)
    assert not waits.done()
    gpu.let_open.set()
    await waits
    assert {each.tenant for each in gpu.regions.values()} == {"acme", "other"}


async def test_shared_memory_of_either_kind_can_be_switched_off(start: Start) -> None:
    gpu = executor()
    world = await connected(await start(gpu, shared_memory=False))
    code, refusal = await refusal_of(world.stub.CudaSharedMemoryRegister(register()))
    assert (code, refusal.reason) == (grpc.StatusCode.UNIMPLEMENTED, Reason.UNSUPPORTED)
    assert "cuda_shared_memory" not in (await world.stub.ServerMetadata(oip.ServerMetadataRequest())).extensions
    assert not gpu.opened


async def test_a_lost_executor_is_told_as_it_is_and_the_request_is_not_tried_where_the_region_is_not(
    start: Start,
) -> None:
    async def lost(*_: Any) -> Refusal:
        return Refusal(Reason.WORKER_LOST, "gone")

    plain, gpu = await FakeExecutor(stored, executor_id="plain").start(), await executor(lost).start()
    world = await connected(await start(plain, gpu, routes=[route("m", [plain.address, gpu.address])]))
    await world.stub.CudaSharedMemoryRegister(register())
    code, refusal = await refusal_of(world.stub.ModelInfer(shared_request(8)))
    assert (code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.WORKER_LOST)
    assert not plain.infers
    assert isinstance(gpu.infers[0], executor_pb2.Infer)
