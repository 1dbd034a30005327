"""What any client of the Open Inference Protocol sees."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from frontend_fakes import FakeExecutor, infer_request, route, tenant
from frontend_world import Start
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services._proto.apportion.v1 import common_pb2, executor_pb2, registry_pb2, scheduler_pb2
from services._proto.inference import grpc_service_pb2 as oip
from services._proto.inference import model_config_pb2
from services.common.errors import Reason, Refusal
from services.common.process import StartupError
from services.common.status import from_rpc_error
from services.frontend.accounting import Accounts
from services.frontend.servicer import INSTEAD, SERVICE
from services.frontend.settings import FrontendSettings


async def refused(call: Any) -> tuple[grpc.StatusCode, Refusal, dict[str, Any]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    refusal = from_rpc_error(caught.value)
    assert refusal is not None
    return caught.value.code(), refusal, dict(caught.value.trailing_metadata())


async def test_errors_carry_their_reason_their_field_and_the_trace_id(start: Start) -> None:
    world = await start(FakeExecutor())
    code, refusal, trailing = await refused(world.stub.ModelInfer(infer_request("nobody")))
    assert (code, refusal.reason, refusal.field) == (grpc.StatusCode.NOT_FOUND, Reason.MODEL_NOT_FOUND, "model_name")
    assert len(trailing["apportion-trace-id"]) == 32
    request = infer_request("m")
    request.model_version = "7"
    code, refusal, _ = await refused(world.stub.ModelInfer(request))
    assert (code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, Reason.VERSION_NOT_FOUND)


async def test_bytes_that_are_no_request_are_refused_and_never_an_internal_error(start: Start) -> None:
    world = await start(FakeExecutor())
    call = world.channel.unary_unary(f"/{SERVICE}/ModelInfer")
    for data in (b"\x0a\xff", b"\x00" * 10, b"\xff" * 40):
        code, refusal, _ = await refused(call(data))
        assert (code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.FIELD_INVALID)


async def test_an_executors_error_reaches_the_client_with_its_details(start: Start) -> None:
    async def overloaded(executor: FakeExecutor, infer: executor_pb2.Infer, payload: bytes) -> Refusal:
        return Refusal(Reason.OVERLOADED, "queue full", facts={"waiting": 9}, retry_after_s=0.5)

    world = await start(FakeExecutor(overloaded))
    code, refusal, _ = await refused(world.stub.ModelInfer(infer_request("m")))
    assert (code, refusal.facts["waiting"], refusal.retry_after_s) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "9", 0.5)


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (scheduler_pb2.VERSION_STATE_LOADING, grpc.StatusCode.UNAVAILABLE),
        (scheduler_pb2.VERSION_STATE_REFUSED, grpc.StatusCode.FAILED_PRECONDITION),
        (scheduler_pb2.VERSION_STATE_UNPLACED, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_a_model_that_does_not_serve_says_why(start: Start, state: int, code: grpc.StatusCode) -> None:
    world = await start(routes=[route("m", [], state=state, message="because of that")])
    got, refusal, _ = await refused(world.stub.ModelInfer(infer_request("m")))
    assert got is code
    assert "because of that" in refusal.message


async def test_keys_choose_the_tenant_and_an_unknown_one_is_told(start: Start) -> None:
    executor = await FakeExecutor().start()
    routes = [route("m", [executor.address], tenant="acme")]
    world = await start(executor, routes=routes, tenants=[tenant("acme", "secret")])
    for metadata in ((("authorization", "Bearer secret"),), (("apportion-key", "secret"),)):
        assert (await world.stub.ModelInfer(infer_request("m", b"a"), metadata=metadata)).raw_output_contents[0] == b"a"
    code, refusal, _ = await refused(
        world.stub.ModelInfer(infer_request("m"), metadata=(("authorization", "Bearer no"),))
    )
    assert (code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, Reason.KEY_UNKNOWN)
    code, refusal, _ = await refused(world.stub.ModelInfer(infer_request("m")))
    assert (code, refusal.facts["tenant"]) == (grpc.StatusCode.NOT_FOUND, "default")


async def test_without_anonymous_callers_a_key_is_needed(start: Start) -> None:
    world = await start(FakeExecutor(), anonymous="off")
    code, refusal, _ = await refused(world.stub.ModelInfer(infer_request("m")))
    assert (code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, Reason.KEY_MISSING)
    code, refusal, _ = await refused(world.stub.ModelMetadata(oip.ModelMetadataRequest(name="m")))
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert (await world.stub.ServerLive(oip.ServerLiveRequest())).live


def test_anonymous_callers_beyond_loopback_are_refused_at_the_start() -> None:
    assert not FrontendSettings(listen="0.0.0.0:8001").lets_in_anonymous
    assert FrontendSettings().lets_in_anonymous
    with pytest.raises(StartupError, match="without credentials"):
        _ = FrontendSettings(listen="0.0.0.0:8001", anonymous="on").lets_in_anonymous


async def test_health_and_readiness_follow_what_is_known(start: Start) -> None:
    world = await start(FakeExecutor(), routes=[])
    health = health_pb2_grpc.HealthStub(world.channel)
    for service in ("", SERVICE):
        response = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert response.status == health_pb2.HealthCheckResponse.SERVING
    assert (await world.stub.ServerReady(oip.ServerReadyRequest())).ready
    ready = lambda: world.stub.ModelReady(oip.ModelReadyRequest(name="m"))
    assert not (await ready()).ready
    world.mesh.change_routes([route("m", [world.executors[0].address])])
    await world.until(lambda: bool(world.frontend.table.addresses()))
    assert (await ready()).ready
    world.mesh.change_routes(removed=[common_pb2.ModelKey(tenant="default", name="m")], revision=3)
    await world.until(lambda: not world.frontend.table.addresses())
    assert not (await ready()).ready


async def test_metadata_and_configuration_describe_the_tensors_as_triton_would(start: Start) -> None:
    version = registry_pb2.ModelVersion(
        version=1, config=registry_pb2.VersionConfig(format=registry_pb2.ARTEFACT_FORMAT_ONNX)
    )
    told = registry_pb2.Model(key=common_pb2.ModelKey(tenant="default", name="m"), versions=[version])
    world = await start(FakeExecutor(), models=[told])
    server = await world.stub.ServerMetadata(oip.ServerMetadataRequest())
    assert server.name == "apportion"
    assert {"statistics", "system_shared_memory", "classification"} <= set(server.extensions)
    assert "sequence" not in server.extensions
    metadata = await world.stub.ModelMetadata(oip.ModelMetadataRequest(name="m"))
    assert (metadata.platform, list(metadata.versions)) == ("onnxruntime_onnx", ["1"])
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("x", "FP32", [-1, 16])]
    config = (await world.stub.ModelConfig(oip.ModelConfigRequest(name="m", version="1"))).config
    assert (config.backend, config.max_batch_size, list(config.input[0].dims)) == ("onnxruntime", 8, [16])
    assert config.output[0].data_type == model_config_pb2.TYPE_FP32
    assert config.HasField("dynamic_batching")


@pytest.mark.parametrize("method", sorted(INSTEAD))
async def test_methods_that_are_not_served_say_what_to_use_instead(start: Start, method: str) -> None:
    world = await start()
    code, refusal, _ = await refused(getattr(world.stub, method)(getattr(oip, f"{method}Request")()))
    assert (code, refusal.reason) == (grpc.StatusCode.UNIMPLEMENTED, Reason.UNSUPPORTED)
    assert INSTEAD[method] in refusal.message


async def test_a_message_beyond_the_limit_is_refused_with_both_numbers(start: Start) -> None:
    world = await start(FakeExecutor(), max_message_bytes=1 << 20)
    request = infer_request("m", bytes(1 << 20))
    code, refusal, _ = await refused(world.stub.ModelInfer(request))
    assert (code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.MESSAGE_TOO_LARGE)
    assert refusal.facts == {"size_bytes": str(request.ByteSize()), "limit_bytes": str(1 << 20)}
    assert str(1 << 20) in refusal.message
    # Far beyond it gRPC answers before the message is read.
    with pytest.raises(grpc.aio.AioRpcError, match="larger than max") as caught:
        await world.stub.ModelInfer(infer_request("m", bytes(3 << 20)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_answer_beyond_the_limit_is_refused_and_its_credit_returned(start: Start) -> None:
    async def much(executor: FakeExecutor, infer: executor_pb2.Infer, payload: bytes) -> bytes:
        return bytes(2 << 20)

    executor = FakeExecutor(much)
    world = await start(executor, max_message_bytes=1 << 20)
    for _ in range(2):
        code, refusal, _ = await refused(world.stub.ModelInfer(infer_request("m")))
        assert (code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.MESSAGE_TOO_LARGE)
        assert refusal.message.startswith(f"the answer has {2 << 20} bytes")
    await world.until(lambda: executor.credits_returned == 4 << 20)


async def test_names_that_callers_make_up_are_no_labels(start: Start) -> None:
    world = await start(FakeExecutor())
    for name in ("made", "up"):
        await refused(world.stub.ModelInfer(infer_request(name)))
    accounts: Accounts = world.frontend.accounts
    assert {key for key in accounts._counts if key[1] in ("made", "up")} == set()


async def test_a_compacted_watch_takes_a_new_snapshot(start: Start) -> None:
    world = await start(FakeExecutor())
    world.mesh.compacted = True
    snapshot = scheduler_pb2.RouteSnapshot(routes=[route("n", [world.executors[0].address])], first_part=True)
    world.mesh.routes.put_nowait(scheduler_pb2.WatchRoutesResponse(epoch=2, revision=1, snapshot=snapshot))
    await asyncio.sleep(0.05)
    assert [r.model for r in world.frontend.table.models("default")] == ["m"]
    last = scheduler_pb2.RouteSnapshot(last_part=True)
    world.mesh.routes.put_nowait(scheduler_pb2.WatchRoutesResponse(epoch=2, revision=1, snapshot=last))
    await world.until(lambda: [r.model for r in world.frontend.table.models("default")] == ["n"])


async def test_tritonclient_gets_its_answers_in_every_style(start: Start) -> None:
    world = await start(FakeExecutor())
    script = Path(__file__).with_name("triton_caller.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), world.address, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert output.decode().split() == ["ready", "sync", "async", "aio", "large", "error", "sequence"]
