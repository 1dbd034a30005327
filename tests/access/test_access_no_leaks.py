"""Every call about something that is another tenant's, in every role: answered as one about what is not there at all."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from access_world import TOKEN, Mesh, bearing, outcome, running
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services._proto.apportion.v1 import common_pb2, scheduler_pb2, scheduler_pb2_grpc
from services._proto.apportion.v1 import registry_pb2 as pb
from services._proto.apportion.v1.registry_pb2_grpc import RegistryServiceStub
from services._proto.inference import grpc_service_pb2 as oip
from services._proto.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from services._proto.jaeger.api_v3 import query_service_pb2 as jaeger
from services._proto.jaeger.api_v3.query_service_pb2_grpc import QueryServiceStub
from services.common.channel import Credentials
from services.common.errors import Refusal
from services.common.telemetry import SpanRecord, Tracer

ONE_LOOP = pytest.mark.asyncio(loop_scope="module")
WEIGHTS = b"bob's weights"
DIGEST = f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"
REGION = f"access-{os.getpid()}"


@dataclass(frozen=True)
class Thing:
    """Something that a call can be about, there or not, by all names that it has. Names of both are equally long."""

    tenant: str
    model: str
    digest: str
    key: str
    trace: str
    region: str

    def named(self) -> tuple[str, ...]:
        return (self.digest, self.key, self.trace, self.region, self.model, self.tenant)


@dataclass
class World:
    mesh: Mesh
    foreign: Thing
    absent: Thing
    shared: Path = field(default_factory=lambda: Path("/dev/shm") / REGION)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """alice asks; bob has a model, a key, an artefact, a trace and a region of shared memory; zed is nobody."""
    async with running(tmp_path_factory.mktemp("mesh")) as mesh:
        for tenant in ("alice", "bob"):
            await mesh.tenant(tenant)
        await mesh.model("bob", "secret", WEIGHTS)
        await mesh.model("alice", "own")
        for tenant in ("alice", "bob"):
            await mesh.known(tenant)
        registry = mesh.stub("registry", RegistryServiceStub)
        for tenant, model in (("alice", "own"), ("bob", "secret")):
            await registry.RecordUsage(used(tenant, model), metadata=bearing(TOKEN))
        limited = pb.UpdateTenantRequest(name="bob", quota=pb.Quota(concurrent_requests=7))
        await registry.UpdateTenant(limited, metadata=bearing(TOKEN))
        bob = (await registry.GetTenant(pb.GetTenantRequest(name="bob"), metadata=bearing(TOKEN))).tenant
        trace = await traced(mesh, "bob")
        foreign = Thing("bob", "secret", DIGEST, bob.keys[0].id, trace, "region-b")
        absent = Thing("zed", "nowhat", "sha256:" + "e" * 64, "k_" + "Z" * 12, "f" * 32, "region-z")
        made = World(mesh, foreign, absent)
        made.shared.write_bytes(bytes(4096))
        frontend = mesh.stub("frontend", GRPCInferenceServiceStub)
        request = oip.SystemSharedMemoryRegisterRequest(name="region-b", key=f"/{REGION}", offset=0, byte_size=4096)
        await frontend.SystemSharedMemoryRegister(request, metadata=bearing(mesh.keys["bob"]))
        try:
            await until_routed(mesh)
            await until_limited(mesh)
            yield made
        finally:
            made.shared.unlink()


async def traced(mesh: Mesh, tenant: str) -> str:
    """Stores a trace of a tenant's; its id."""
    tracer = Tracer("apportion-frontend", mesh.addresses["collector"], credentials=Credentials(TOKEN))
    now = time.monotonic_ns()
    attributes = {"tenant.name": tenant, "model.name": "secret"}
    tracer.emit(SpanRecord("request", b"\x0b" * 16, b"\x01" * 8, None, now, now + 1, attributes=attributes))
    assert await asyncio.to_thread(tracer.flush)
    await asyncio.to_thread(tracer.shutdown)
    return (b"\x0b" * 16).hex()


async def until_routed(mesh: Mesh) -> None:
    """Waits until the frontend has heard of bob's model."""
    frontend = mesh.stub("frontend", GRPCInferenceServiceStub)
    ask, metadata = oip.RepositoryIndexRequest(), bearing(mesh.keys["bob"])
    async with asyncio.timeout(20):
        while not (await frontend.RepositoryIndex(ask, metadata=metadata)).models:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def until_limited(mesh: Mesh) -> None:
    """Waits until the scheduler has heard of bob's quota."""
    while not await quotas(mesh, "bob"):  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def quotas(mesh: Mesh, caller: str | None) -> set[str]:
    """The tenants of whose quotas a caller hears that names none. caller: None, an operator."""
    stub = mesh.stub("scheduler", scheduler_pb2_grpc.SchedulerServiceStub)
    metadata = bearing(TOKEN if caller is None else mesh.keys[caller])
    return {each.tenant for each in (await stub.GetQuotas(scheduler_pb2.GetQuotasRequest(), metadata=metadata)).quotas}


Ask = Callable[[Mesh, Thing, Any], Awaitable[Any] | AsyncIterator[Any]]


def asked(service: str, stub: Any, method: str, request: Callable[[Thing], Any]) -> Ask:
    def ask(mesh: Mesh, thing: Thing, metadata: Any) -> Any:
        return getattr(mesh.stub(service, stub), method)(request(thing), metadata=metadata, timeout=10)

    return ask


def registry(method: str, request: Callable[[Thing], Any]) -> Ask:
    return asked("registry", RegistryServiceStub, method, request)


def frontend(method: str, request: Callable[[Thing], Any]) -> Ask:
    return asked("frontend", GRPCInferenceServiceStub, method, request)


def key(thing: Thing) -> common_pb2.ModelKey:
    return common_pb2.ModelKey(tenant=thing.tenant, name=thing.model)


def upload(thing: Thing) -> Any:
    data = b"something"
    header = pb.ArtefactHeader(tenant=thing.tenant, digest=f"sha256:{hashlib.sha256(data).hexdigest()}", size_bytes=9)
    return iter([pb.UploadArtefactRequest(header=header), pb.UploadArtefactRequest(data=data)])


def used(tenant: str, model: str) -> pb.RecordUsageRequest:
    """A second on some device."""
    counts = pb.UsageCounts(device_ns=10**9, compute_unit_ns=10**9, requests=1, batches=1)
    models = [pb.ModelUsage(name=model, life=1, counts=counts)]
    return pb.RecordUsageRequest(
        books=[pb.UsageBook(tenant=tenant, executor_id="e", book="b", device_kind="cpu", total=counts, models=models)]
    )


def find(thing: Thing) -> jaeger.FindTracesRequest:
    query = jaeger.TraceQueryParameters(attributes={"tenant.name": thing.tenant}, start_time_min=Timestamp(seconds=1))
    query.start_time_max.GetCurrentTime()
    query.start_time_max.seconds += 60
    return jaeger.FindTracesRequest(query=query)


OWN = common_pb2.ModelKey(tenant="alice", name="own")
path = lambda thing: f"{thing.tenant}/{thing.model}"
ASKS: dict[str, Ask] = {
    "GetTenant": registry("GetTenant", lambda t: pb.GetTenantRequest(name=t.tenant)),
    "CreateApiKey": registry("CreateApiKey", lambda t: pb.CreateApiKeyRequest(tenant=t.tenant)),
    "RotateApiKey": registry("RotateApiKey", lambda t: pb.RotateApiKeyRequest(tenant=t.tenant, key_id=t.key)),
    "RotateApiKey, their key as mine": registry(
        "RotateApiKey", lambda t: pb.RotateApiKeyRequest(tenant="alice", key_id=t.key)
    ),
    "RevokeApiKey": registry("RevokeApiKey", lambda t: pb.RevokeApiKeyRequest(tenant=t.tenant, key_id=t.key)),
    "RevokeApiKey, their key as mine": registry(
        "RevokeApiKey", lambda t: pb.RevokeApiKeyRequest(tenant="alice", key_id=t.key)
    ),
    "UploadArtefact": registry("UploadArtefact", upload),
    "CreateVersion": registry("CreateVersion", lambda t: pb.CreateVersionRequest(key=key(t), digest=t.digest)),
    "CreateVersion, their artefact": registry(
        "CreateVersion", lambda t: pb.CreateVersionRequest(key=OWN, digest=t.digest)
    ),
    "GetModel": registry("GetModel", lambda t: pb.GetModelRequest(key=key(t))),
    "ListModels": registry("ListModels", lambda t: pb.ListModelsRequest(tenant=t.tenant)),
    "UpdateModel": registry("UpdateModel", lambda t: pb.UpdateModelRequest(key=key(t), unloaded=True)),
    "SetModelSlo": registry("SetModelSlo", lambda t: pb.SetModelSloRequest(key=key(t), slo=pb.ModelSlo(name="fast"))),
    "RemoveModelSlo": registry("RemoveModelSlo", lambda t: pb.RemoveModelSloRequest(key=key(t), name="fast")),
    "GetUsage": registry("GetUsage", lambda t: pb.GetUsageRequest(tenant=t.tenant)),
    "GetUsage, of a model's name": registry("GetUsage", lambda t: pb.GetUsageRequest(model=t.model)),
    "RecordUsage": registry("RecordUsage", lambda t: used(t.tenant, t.model)),
    "DeleteModel": registry("DeleteModel", lambda t: pb.DeleteModelRequest(key=key(t))),
    "DeleteModel, a version": registry("DeleteModel", lambda t: pb.DeleteModelRequest(key=key(t), version=1)),
    "ShareModel": registry("ShareModel", lambda t: pb.ShareModelRequest(key=key(t), with_tenant="alice")),
    "ShareModel, with them": registry("ShareModel", lambda t: pb.ShareModelRequest(key=OWN, with_tenant=t.tenant)),
    "ListAudit": registry("ListAudit", lambda t: pb.ListAuditRequest(tenant=t.tenant)),
    "CreateTenant": registry("CreateTenant", lambda t: pb.CreateTenantRequest(name=t.tenant)),
    "UpdateTenant": registry("UpdateTenant", lambda t: pb.UpdateTenantRequest(name=t.tenant, weight=3)),
    "DeleteTenant": registry("DeleteTenant", lambda t: pb.DeleteTenantRequest(name=t.tenant)),
    "DownloadArtefact": registry(
        "DownloadArtefact", lambda t: pb.DownloadArtefactRequest(tenant=t.tenant, digest=t.digest)
    ),
    "RecordInspection": registry(
        "RecordInspection",
        lambda t: pb.RecordInspectionRequest(key=key(t), version=1, refused=pb.InspectionRefused(message="no")),
    ),
    "GetObjective": asked(
        "scheduler",
        scheduler_pb2_grpc.SchedulerServiceStub,
        "GetObjective",
        lambda t: scheduler_pb2.GetObjectiveRequest(key=key(t)),
    ),
    "GetQuotas": asked(
        "scheduler",
        scheduler_pb2_grpc.SchedulerServiceStub,
        "GetQuotas",
        lambda t: scheduler_pb2.GetQuotasRequest(tenant=t.tenant),
    ),
    "CheckReservation": asked(
        "scheduler",
        scheduler_pb2_grpc.SchedulerServiceStub,
        "CheckReservation",
        lambda t: scheduler_pb2.CheckReservationRequest(tenant=t.tenant),
    ),
    "GetTrace": asked("query", QueryServiceStub, "GetTrace", lambda t: jaeger.GetTraceRequest(trace_id=t.trace)),
    "FindTraces": asked("query", QueryServiceStub, "FindTraces", find),
    "ModelInfer": frontend("ModelInfer", lambda t: oip.ModelInferRequest(model_name=path(t))),
    "ModelInfer, by the name alone": frontend("ModelInfer", lambda t: oip.ModelInferRequest(model_name=t.model)),
    "ModelStreamInfer": frontend("ModelStreamInfer", lambda t: iter([oip.ModelInferRequest(model_name=path(t))])),
    "ModelReady": frontend("ModelReady", lambda t: oip.ModelReadyRequest(name=path(t))),
    "ModelMetadata": frontend("ModelMetadata", lambda t: oip.ModelMetadataRequest(name=path(t))),
    "ModelConfig": frontend("ModelConfig", lambda t: oip.ModelConfigRequest(name=path(t))),
    "ModelStatistics": frontend("ModelStatistics", lambda t: oip.ModelStatisticsRequest(name=path(t))),
    "RepositoryModelLoad": frontend(
        "RepositoryModelLoad", lambda t: oip.RepositoryModelLoadRequest(model_name=path(t))
    ),
    "RepositoryModelLoad, by the name": frontend(
        "RepositoryModelLoad", lambda t: oip.RepositoryModelLoadRequest(model_name=t.model)
    ),
    "RepositoryModelUnload": frontend(
        "RepositoryModelUnload", lambda t: oip.RepositoryModelUnloadRequest(model_name=path(t))
    ),
    "SharedMemoryStatus": frontend(
        "SystemSharedMemoryStatus", lambda t: oip.SystemSharedMemoryStatusRequest(name=t.region)
    ),
    "SharedMemoryUnregister": frontend(
        "SystemSharedMemoryUnregister", lambda t: oip.SystemSharedMemoryUnregisterRequest(name=t.region)
    ),
    "health of a model": asked(
        "frontend", health_pb2_grpc.HealthStub, "Check", lambda t: health_pb2.HealthCheckRequest(service=path(t))
    ),
}
"""Every call that names a tenant, a model, a version, a key, an artefact, a trace or a region."""


def told(result: tuple[str, Any], thing: Thing) -> str:
    """All that a caller can see of an outcome, with the names that it gave itself taken out."""
    status, found = result
    text = (
        repr((found.reason, found.message, found.field, found.facts, found.retry_after_s))
        if isinstance(found, Refusal)
        else str(found)
    )
    for name in thing.named():
        text = text.replace(name, "…")
    return f"{status}: {text}"


@ONE_LOOP
@pytest.mark.parametrize("role", ["alice", "alice/user"])
@pytest.mark.parametrize("what", ASKS)
async def test_what_is_anothers_is_answered_as_what_is_not_there(world: World, what: str, role: str) -> None:
    metadata = bearing(world.mesh.keys[role])
    absent = await outcome(ASKS[what](world.mesh, world.absent, metadata))
    foreign = await outcome(ASKS[what](world.mesh, world.foreign, metadata))
    if "ShareModel, with them" in what and foreign[0] == "OK":
        # A grant is by name: the answer lists the names that the owner has given.
        assert absent[0] == "OK"
        return
    assert told(foreign, world.foreign) == told(absent, world.absent)
    assert DIGEST not in str(foreign[1]).replace(f"{DIGEST}; upload", "")


@ONE_LOOP
async def test_nothing_of_the_others_was_changed_by_all_that_and_the_owner_sees_it_all(world: World) -> None:
    """Runs last: the calls above were about bob's, who still has everything; so the comparison above could have failed."""
    metadata = bearing(world.mesh.keys["bob"])
    seen = {
        what: (await outcome(ASKS[what](world.mesh, world.foreign, metadata)))[0]
        for what in ("GetTenant", "GetModel", "GetTrace", "FindTraces", "SharedMemoryStatus", "ListAudit")
    }
    assert set(seen.values()) == {"OK"}, seen
    model = (await outcome(ASKS["GetModel"](world.mesh, world.foreign, metadata)))[1].model
    assert not model.unloaded
    assert not model.shared_with
    assert [version.digest for version in model.versions] == [DIGEST]
    found = (await outcome(ASKS["FindTraces"](world.mesh, world.foreign, metadata)))[1]
    assert found, "bob finds his own trace"


@ONE_LOOP
async def test_an_index_and_a_listing_without_a_name_tell_of_the_callers_own_alone(world: World) -> None:
    mesh, metadata = world.mesh, bearing(world.mesh.keys["alice"])
    index = await mesh.stub("frontend", GRPCInferenceServiceStub).RepositoryIndex(
        oip.RepositoryIndexRequest(), metadata=metadata
    )
    assert {model.name for model in index.models} == {"own"}
    listed = await mesh.stub("registry", RegistryServiceStub).ListModels(pb.ListModelsRequest(), metadata=metadata)
    assert {model.key.tenant for model in listed.models} == {"alice"}
    audit = await mesh.stub("registry", RegistryServiceStub).ListAudit(pb.ListAuditRequest(), metadata=metadata)
    assert {entry.tenant for entry in audit.entries} == {"alice"}
    everything = await mesh.stub("registry", RegistryServiceStub).ListAudit(
        pb.ListAuditRequest(), metadata=bearing(TOKEN)
    )
    assert {entry.tenant for entry in everything.entries} >= {"alice", "bob"}
    statistics = await mesh.stub("frontend", GRPCInferenceServiceStub).ModelStatistics(
        oip.ModelStatisticsRequest(), metadata=metadata
    )
    assert {each.name for each in statistics.model_stats} <= {"own"}


@ONE_LOOP
async def test_quotas_and_usage_are_ones_own_alone_and_an_operators_all(world: World) -> None:
    mesh = world.mesh
    assert await quotas(mesh, "alice/user") == set()
    assert await quotas(mesh, "bob/user") == await quotas(mesh, None) == {"bob"}
    for caller, seen in (("alice", {"alice"}), ("bob", {"bob"}), (None, {"alice", "bob"})):
        metadata = bearing(TOKEN if caller is None else mesh.keys[caller])
        found = await mesh.stub("registry", RegistryServiceStub).GetUsage(pb.GetUsageRequest(), metadata=metadata)
        assert {row.key.tenant for row in found.rows} == seen


@ONE_LOOP
async def test_who_sets_a_price_is_in_the_operators_audit_log_and_in_no_tenants(world: World) -> None:
    registry = world.mesh.stub("registry", RegistryServiceStub)
    await registry.SetPrice(pb.SetPriceRequest(device_kind="cpu", price_nanos=7), metadata=bearing(TOKEN))
    (latest, *_) = (await registry.ListAudit(pb.ListAuditRequest(), metadata=bearing(TOKEN))).entries
    assert (latest.action, latest.actor, latest.object) == ("SetPrice", "mesh token", "price of cpu: 7")
    own = await registry.ListAudit(pb.ListAuditRequest(), metadata=bearing(world.mesh.keys["bob"]))
    assert "SetPrice" not in {entry.action for entry in own.entries}
