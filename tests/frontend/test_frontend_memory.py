"""System shared memory: whose it is, where it is, how long it stays, and that nothing outside it is ever touched."""
# ruff: noqa: ASYNC240 - these files are memory: nothing blocks

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from frontend_fakes import FakeExecutor, at, infer_request, route, shared_request, tenant
from frontend_world import OPTIONS, Start

from services._proto.inference import grpc_service_pb2 as oip
from services._proto.inference import grpc_service_pb2_grpc
from services.common.errors import Reason, Refusal
from services.common.status import from_rpc_error
from services.frontend.core.regions import Region, file_name
from services.frontend.core.wire import Limits, scan
from services.frontend.peers import Endpoint, endpoint, local_users
from services.frontend.regions import MOST_REGIONS, Regions

ROOT = Path("/dev/shm")
pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason="there is no /dev/shm here")
SIZE = 4096


@pytest.fixture
def memory() -> Iterator[Path]:
    """Shared memory of this process, as `shm_open` makes it."""
    path = ROOT / f"test_{uuid.uuid4().hex}"
    path.write_bytes(bytes(SIZE))
    yield path
    path.unlink(missing_ok=True)


async def refusal_of(call: Any) -> tuple[grpc.StatusCode, Refusal]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    refusal = from_rpc_error(caught.value)
    assert refusal is not None
    return caught.value.code(), refusal


def register(path: Path, name: str = "r", *, offset: int = 0, byte_size: int = SIZE) -> Any:
    return oip.SystemSharedMemoryRegisterRequest(name=name, key=f"/{path.name}", offset=offset, byte_size=byte_size)


async def test_tensors_come_out_of_a_region_and_go_back_into_it(start: Start, memory: Path) -> None:
    executor = FakeExecutor()
    world = await start(executor)
    await world.stub.SystemSharedMemoryRegister(register(memory, offset=1024, byte_size=2048))
    content = os.urandom(64)
    with memory.open("r+b") as file:
        file.seek(1024 + 16)
        file.write(content)
    answer = await world.stub.ModelInfer(shared_request(64, into=512, offset=16))
    assert list(answer.raw_output_contents) == [b""]
    told = answer.outputs[0].parameters
    assert told["shared_memory_region"].string_param == "r"
    assert (told["shared_memory_byte_size"].int64_param, told["shared_memory_offset"].int64_param) == (64, 512)
    assert memory.read_bytes()[1024 + 512 : 1024 + 576] == content
    forwarded = oip.ModelInferRequest.FromString(executor.infers[0].payload)
    assert list(forwarded.raw_input_contents) == [content]
    assert not forwarded.inputs[0].parameters
    assert not forwarded.outputs[0].parameters


async def test_an_input_in_the_request_may_stand_beside_one_in_a_region_also_on_a_stream(
    start: Start, memory: Path
) -> None:
    executor = FakeExecutor()
    world = await start(executor)
    await world.stub.SystemSharedMemoryRegister(register(memory))
    memory.write_bytes(b"s" * SIZE)
    request = shared_request(8)
    request.inputs.add(name="w", datatype="UINT8", shape=[3])
    request.raw_input_contents.append(b"raw")
    answers = [a async for a in world.stub.ModelStreamInfer(iter([request]))]
    assert list(answers[0].infer_response.raw_output_contents) == [b"s" * 8, b"raw"]


async def test_large_tensors_go_through_shared_memory_too(start: Start, memory: Path) -> None:
    world = await start(FakeExecutor())
    size = 3 << 20
    content = np.random.default_rng(1).bytes(size)
    memory.write_bytes(content + bytes(size))
    await world.stub.SystemSharedMemoryRegister(register(memory, byte_size=2 * size))
    await world.stub.ModelInfer(shared_request(size, into=size))
    assert memory.read_bytes()[size:] == content
    await world.until(lambda: world.executors[0].credits_returned > 0)


async def test_status_tells_a_tenant_its_own_regions_until_they_are_unregistered(start: Start, memory: Path) -> None:
    world = await start(FakeExecutor())
    for name in ("a", "b", "c"):
        await world.stub.SystemSharedMemoryRegister(register(memory, name, offset=8, byte_size=64))
    status = lambda name="": world.stub.SystemSharedMemoryStatus(oip.SystemSharedMemoryStatusRequest(name=name))
    unregister = lambda name="": world.stub.SystemSharedMemoryUnregister(
        oip.SystemSharedMemoryUnregisterRequest(name=name)
    )
    told = (await status()).regions
    assert sorted(told) == ["a", "b", "c"]
    assert (told["a"].key, told["a"].offset, told["a"].byte_size) == (f"/{memory.name}", 8, 64)
    await unregister("a")
    assert sorted((await status()).regions) == ["b", "c"]
    code, refusal = await refusal_of(status("a"))
    assert (code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, Reason.REGION_NOT_FOUND)
    await unregister()
    assert not (await status()).regions


async def test_another_tenants_region_is_as_one_that_is_not_there(start: Start, memory: Path) -> None:
    executor = await FakeExecutor().start()
    routes = [route("m", [executor.address], tenant=name) for name in ("acme", "other")]
    world = await start(executor, routes=routes, tenants=[tenant("acme", "one"), tenant("other", "two")])
    mine, others = ((("authorization", f"Bearer {key}"),) for key in ("one", "two"))
    await world.stub.SystemSharedMemoryRegister(register(memory), metadata=mine)
    await world.stub.ModelInfer(shared_request(8), metadata=mine)
    code, theirs = await refusal_of(world.stub.ModelInfer(shared_request(8), metadata=others))
    assert (code, theirs.reason) == (grpc.StatusCode.NOT_FOUND, Reason.REGION_NOT_FOUND)
    _, nobodys = await refusal_of(world.stub.ModelInfer(shared_request(8, region="q"), metadata=others))
    assert theirs.message.replace("'r'", "'q'") == nobodys.message
    # Nor may they register what the first one has.
    _, refusal = await refusal_of(world.stub.SystemSharedMemoryRegister(register(memory), metadata=others))
    assert (refusal.reason, refusal.field) == (Reason.FIELD_INVALID, "key")


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        (lambda r: at(r.inputs[0].parameters, "r", 64, SIZE - 63), "inputs[0] 'x'", "reach beyond the 4096 bytes"),
        (lambda r: at(r.inputs[0].parameters, "r", SIZE + 1), "inputs[0] 'x'", "reach beyond the 4096 bytes"),
        (
            lambda r: r.inputs[0].parameters["shared_memory_byte_size"].__setattr__("int64_param", -1),
            "inputs[0] 'x'.parameters[\"shared_memory_byte_size\"]",
            "0 or more",
        ),
        (
            lambda r: r.inputs[0].parameters["shared_memory_offset"].__setattr__("uint64_param", (1 << 64) - 8),
            "inputs[0] 'x'",
            "reach beyond",
        ),
        (
            lambda r: r.inputs[0].parameters["shared_memory_region"].__setattr__("int64_param", 1),
            "inputs[0] 'x'.parameters[\"shared_memory_region\"]",
            "as text",
        ),
        (lambda r: r.raw_input_contents.append(b"x"), "raw_input_contents", "more are given"),
        (
            lambda r: r.inputs[0].contents.int_contents.append(1),
            "inputs[0] 'x'.contents",
            "one way only",
        ),
        (
            lambda r: (r.outputs.add(name="X"), at(r.outputs[0].parameters, "r", 63)),
            "outputs[0] 'X'",
            "more than the 63",
        ),
        (
            lambda r: (r.outputs.add(name="X"), at(r.outputs[0].parameters, "r", 64, SIZE - 8)),
            "outputs[0] 'X'",
            "reach beyond",
        ),
    ],
)
async def test_what_lies_outside_a_region_is_refused_with_both_numbers(
    start: Start, memory: Path, change: Any, field: str, problem: str
) -> None:
    world = await start(FakeExecutor())
    await world.stub.SystemSharedMemoryRegister(register(memory))
    request = shared_request(64)
    change(request)
    code, refusal = await refusal_of(world.stub.ModelInfer(request))
    assert (code, refusal.reason, refusal.field) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.FIELD_INVALID, field)
    assert problem in refusal.message


async def test_memory_that_shrinks_under_its_region_is_a_refusal_and_nobody_falls(start: Start, memory: Path) -> None:
    world = await start(FakeExecutor())
    await world.stub.SystemSharedMemoryRegister(register(memory))
    os.truncate(memory, 10)
    for request in (shared_request(64), shared_request(8, into=SIZE - 8)):
        code, refusal = await refusal_of(world.stub.ModelInfer(request))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "too short" in refusal.message
    assert memory.stat().st_size == 10
    assert (await world.stub.ModelInfer(infer_request("m", b"x"))).raw_output_contents[0] == b"x"


@pytest.mark.parametrize("key", ["../etc/passwd", "/../x", "a/b", "..", ".", "", "/", "a\0b", "x" * 300, "/dev/shm/x"])
def test_a_key_that_could_name_anything_else_is_refused(key: str) -> None:
    with pytest.raises(Refusal, match="is no name of shared memory"):
        file_name(key)


@pytest.mark.parametrize(
    ("offset", "byte_size", "problem"),
    [(0, 0, "1 or more"), (0, SIZE + 1, "reach beyond"), (SIZE, 1, "reach beyond"), (1 << 63, 1 << 63, "reach beyond")],
)
async def test_a_region_larger_than_its_memory_is_refused(
    start: Start, memory: Path, offset: int, byte_size: int, problem: str
) -> None:
    world = await start(FakeExecutor())
    _, refusal = await refusal_of(
        world.stub.SystemSharedMemoryRegister(register(memory, offset=offset, byte_size=byte_size))
    )
    assert problem in refusal.message


async def test_links_and_what_is_no_memory_are_refused_as_if_they_were_not_there(
    start: Start, memory: Path, tmp_path: Path
) -> None:
    world = await start(FakeExecutor())
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(SIZE))
    link, folder = ROOT / f"{memory.name}_link", ROOT / f"{memory.name}_folder"
    link.symlink_to(secret)
    folder.mkdir()
    try:
        told = [
            (await refusal_of(world.stub.SystemSharedMemoryRegister(register(path))))[1].message.replace(path.name, "k")
            for path in (link, folder, ROOT / "test_of_nothing")
        ]
    finally:
        link.unlink()
        folder.rmdir()
    assert len(set(told)) == 1
    assert "no shared memory '/k' of yours" in told[0]


async def test_the_same_name_again_is_looked_at_anew_and_other_memory_is_refused(start: Start, memory: Path) -> None:
    world = await start(FakeExecutor())
    await world.stub.SystemSharedMemoryRegister(register(memory))
    memory.unlink()
    memory.write_bytes(b"n" * SIZE)
    await world.stub.SystemSharedMemoryRegister(register(memory))
    assert (await world.stub.ModelInfer(shared_request(4))).raw_output_contents[0] == b"nnnn"
    code, refusal = await refusal_of(world.stub.SystemSharedMemoryRegister(register(memory, byte_size=8)))
    assert (code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, Reason.REGION_EXISTS)


async def test_regions_go_with_the_connection_that_registered_them(start: Start, memory: Path) -> None:
    world = await start(FakeExecutor())
    options = [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(world.address, options=options) as channel:
        stub: Any = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        await stub.SystemSharedMemoryRegister(register(memory))
        # Another connection of the tenant may use it.
        await world.stub.ModelInfer(shared_request(8))
    await world.until(lambda: not world.frontend.regions.any())
    code, _ = await refusal_of(world.stub.ModelInfer(shared_request(8)))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_regions_go_with_their_tenant(start: Start, memory: Path) -> None:
    executor = await FakeExecutor().start()
    world = await start(executor, routes=[], tenants=[tenant("acme", "one")])
    await world.stub.SystemSharedMemoryRegister(register(memory), metadata=(("authorization", "Bearer one"),))
    assert world.frontend.regions.any()
    world.mesh.tell_tenants([])
    await world.until(lambda: not world.frontend.regions.any())


async def test_shared_memory_can_be_switched_off(start: Start, memory: Path) -> None:
    world = await start(FakeExecutor(), shared_memory=False)
    code, refusal = await refusal_of(world.stub.SystemSharedMemoryRegister(register(memory)))
    assert (code, refusal.reason) == (grpc.StatusCode.UNIMPLEMENTED, Reason.UNSUPPORTED)


async def test_of_device_memory_there_are_no_regions_to_tell_or_to_let_go_of(start: Start) -> None:
    world = await start()
    assert not (await world.stub.CudaSharedMemoryStatus(oip.CudaSharedMemoryStatusRequest())).regions
    await world.stub.CudaSharedMemoryUnregister(oip.CudaSharedMemoryUnregisterRequest(name="r"))
    code, _ = await refusal_of(world.stub.CudaSharedMemoryStatus(oip.CudaSharedMemoryStatusRequest(name="r")))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_frontends_of_one_folder_know_each_others_regions(start: Start, memory: Path, tmp_path: Path) -> None:
    executor = await FakeExecutor().start()
    folder = tmp_path / "regions"
    first = await start(executor, routes=[route("m", [executor.address])], shared_memory_folder=folder)
    second = await start(executor, routes=[route("m", [executor.address])], shared_memory_folder=folder)
    memory.write_bytes(b"s" * SIZE)
    await first.stub.SystemSharedMemoryRegister(register(memory))
    assert (await second.stub.ModelInfer(shared_request(4))).raw_output_contents[0] == b"ssss"
    assert list((await second.stub.SystemSharedMemoryStatus(oip.SystemSharedMemoryStatusRequest())).regions) == ["r"]
    await second.stub.SystemSharedMemoryUnregister(oip.SystemSharedMemoryUnregisterRequest())
    for world in (first, second):
        code, _ = await refusal_of(world.stub.ModelInfer(shared_request(4)))
        assert code is grpc.StatusCode.NOT_FOUND


HERE = Endpoint("127.0.0.1", 4711)
PEER = "ipv4:127.0.0.1:4711"


def test_a_frontend_that_has_died_leaves_no_regions_behind(memory: Path, tmp_path: Path) -> None:
    regions = Regions(tmp_path / "regions")
    regions.register("acme", Region("r", memory.name, 0, 8), PEER, {HERE: os.getuid()})
    (told,) = (tmp_path / "regions").glob("*.region")
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    told.write_text(told.read_text().replace(f'"keeper":{os.getpid()}', f'"keeper":{int(dead.stdout)}'))
    regions.sweep({})
    assert not regions.any()


def test_a_caller_who_is_not_on_this_machine_or_does_not_own_the_memory_is_refused(memory: Path) -> None:
    regions = Regions()
    region = Region("r", memory.name, 0, 8)
    with pytest.raises(Refusal, match="not on this machine") as caught:
        regions.register("acme", region, "ipv4:10.1.2.3:99", {HERE: os.getuid()})
    assert caught.value.reason is Reason.UNSUPPORTED
    with pytest.raises(Refusal, match="of yours"):
        regions.register("acme", region, PEER, {HERE: os.getuid() + 1})
    regions.register("acme", region, PEER, {HERE: os.getuid()})


def test_a_tenant_may_have_so_many_regions(memory: Path) -> None:
    regions = Regions()
    for number in range(MOST_REGIONS):
        regions.register("acme", Region(str(number), memory.name, 0, 8), PEER, {HERE: 0})
    with pytest.raises(Refusal, match=f"{MOST_REGIONS} regions"):
        regions.register("acme", Region("more", memory.name, 0, 8), PEER, {HERE: 0})
    before = len(os.listdir("/proc/self/fd"))
    regions.unregister("acme")
    assert len(os.listdir("/proc/self/fd")) == before - MOST_REGIONS


@pytest.mark.parametrize(
    ("peer", "found"),
    [
        ("ipv4:127.0.0.1:4711", HERE),
        ("ipv6:%5B::1%5D:9", Endpoint("::1", 9)),
        ("ipv6:%5B::ffff:127.0.0.1%5D:4711", HERE),
        ("unix:", None),
        ("", None),
    ],
)
def test_callers_are_known_by_their_end_of_the_connection(peer: str, found: Endpoint | None) -> None:
    assert endpoint(peer) == found


async def test_the_kernel_knows_whose_a_connection_is(start: Start) -> None:
    world = await start(FakeExecutor())
    await world.stub.ServerLive(oip.ServerLiveRequest())
    users = local_users(int(world.address.rpartition(":")[2]))
    assert set(users.values()) == {os.getuid()}


def test_only_requests_that_may_name_a_region_are_looked_at() -> None:
    plain = infer_request("m", b"shared_memory_region" * 3)
    assert not scan(plain.SerializeToString(), Limits()).shared
    assert scan(shared_request(8).SerializeToString(), Limits()).shared
