"""A registry and an executor that speak the contracts, for tests of the scheduler's service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from services._proto.apportion.v1 import common_pb2, registry_pb2, registry_pb2_grpc
from services._proto.apportion.v1 import scheduler_pb2 as pb
from services._proto.apportion.v1.scheduler_pb2_grpc import SchedulerServiceStub
from services.scheduler import serve as serving
from services.scheduler.settings import SchedulerSettings

Starts = Callable[..., Awaitable[SchedulerServiceStub]]
KIND = "cpu:test"
SIGNATURE = common_pb2.Signature(
    inputs=[common_pb2.TensorSpec(name="x", datatype="FP32", shape=[common_pb2.Dimension(size=4)])], max_batch_size=8
)
PROFILE = common_pb2.Profile(
    digest="sha256:1", device_kind=KIND, weight_bytes=50, points=[common_pb2.ProfilePoint(rows=1, activation_bytes=7)]
)


def key(name: str) -> common_pb2.ModelKey:
    """ "tenant/name"."""
    tenant, _, model = name.partition("/")
    return common_pb2.ModelKey(tenant=tenant, name=model)


def tenant(name: str, reserve: int) -> registry_pb2.Tenant:
    """A tenant of the registry."""
    return registry_pb2.Tenant(name=name, reservation=common_pb2.Share(millidevices=reserve), weight=2)


def model(name: str, *numbers: int, objective_us: int = 20_000) -> registry_pb2.Model:
    """A model of the registry."""
    versions = [
        registry_pb2.ModelVersion(
            version=number,
            digest=f"sha256:{number}",
            size_bytes=100,
            config=registry_pb2.VersionConfig(max_batch_size=8),
            inspection=registry_pb2.INSPECTION_PENDING,
        )
        for number in numbers or (1,)
    ]
    slo = common_pb2.Slo(objective_us=objective_us)
    traffic_class = common_pb2.TRAFFIC_CLASS_INTERACTIVE
    return registry_pb2.Model(key=key(name), slo=slo, traffic_class=traffic_class, versions=versions)


class FakeRegistry(registry_pb2_grpc.RegistryServiceServicer):
    """Tells what it is given, and remembers inspections. fails: how many calls of RecordInspection fail first."""

    def __init__(self) -> None:
        self.tenants: list[registry_pb2.Tenant] = []
        self.models: list[registry_pb2.Model] = []
        self.watchers: list[asyncio.Queue[registry_pb2.WatchCatalogueResponse]] = []
        self.inspections: list[registry_pb2.RecordInspectionRequest] = []
        self.recorded = asyncio.Event()
        self.fails = 0
        self.used: list[registry_pb2.UsageBook] = []
        self.refuses: set[str] = set()
        self.revision = 1

    async def WatchCatalogue(
        self, request: registry_pb2.WatchCatalogueRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[registry_pb2.WatchCatalogueResponse]:
        """A snapshot in two parts, then changes."""
        first = registry_pb2.CatalogueSnapshot(tenants=self.tenants, first_part=True)
        last = registry_pb2.CatalogueSnapshot(models=self.models, last_part=True)
        queue: asyncio.Queue[registry_pb2.WatchCatalogueResponse] = asyncio.Queue()
        self.watchers.append(queue)
        yield registry_pb2.WatchCatalogueResponse(revision=self.revision, snapshot=first)
        yield registry_pb2.WatchCatalogueResponse(revision=self.revision, snapshot=last)
        while True:
            yield await queue.get()

    async def RecordInspection(
        self, request: registry_pb2.RecordInspectionRequest, context: grpc.aio.ServicerContext
    ) -> registry_pb2.RecordInspectionResponse:
        """Remembers, once it has failed often enough."""
        if self.fails:
            self.fails -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "later")
        self.inspections.append(request)
        self.recorded.set()
        return registry_pb2.RecordInspectionResponse()

    async def RecordUsage(
        self, request: registry_pb2.RecordUsageRequest, context: grpc.aio.ServicerContext
    ) -> registry_pb2.RecordUsageResponse:
        """Remembers, once it has failed often enough; refuses what is of certain tenants."""
        if self.fails:
            self.fails -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "later")
        if any(book.tenant in self.refuses for book in request.books):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "never")
        self.used += request.books
        return registry_pb2.RecordUsageResponse()

    def change(self, **changes: Any) -> None:
        """Tells every watcher of one commit."""
        self.revision += 1
        told = registry_pb2.CatalogueChanges(**changes)
        for queue in self.watchers:
            queue.put_nowait(registry_pb2.WatchCatalogueResponse(revision=self.revision, changes=told))


class FakeExecutor:
    """One executor's end of an Attach stream. Commands are read one by one, and reported on as the test says."""

    def __init__(self, name: str = "cpu-0", incarnation: str = "one") -> None:
        self.name, self.incarnation = name, incarnation
        self.replicas: dict[int, pb.ReplicaReport] = {}
        self.call: Any = None

    def report(self) -> pb.ExecutorReport:
        """Everything it holds."""
        return pb.ExecutorReport(replicas=self.replicas.values())

    def hello(self) -> pb.ExecutorHello:
        """Its first words."""
        device = pb.DeviceInfo(
            backend=pb.BACKEND_CPU,
            device_kind=KIND,
            compute_units=2,
            memory_bytes=10_000,
            lanes=[pb.LaneInfo(lane=0, worker=0, compute_units=2)],
            backend_reason="no GPU was found",
        )
        return pb.ExecutorHello(
            executor_id=self.name,
            incarnation=self.incarnation,
            address="127.0.0.1:8110",
            device=device,
            report=self.report(),
        )

    async def attach(self, stub: SchedulerServiceStub) -> pb.AttachWelcome:
        """Opens a stream; the scheduler's welcome."""
        self.call = stub.Attach()
        await self.call.write(pb.AttachRequest(hello=self.hello()))
        return (await self.next()).welcome

    async def next(self) -> pb.AttachResponse:
        """The next word of the scheduler."""
        response = await asyncio.wait_for(self.call.read(), 10)
        assert response is not grpc.aio.EOF
        return response

    async def tell(self) -> None:
        """Reports."""
        await self.call.write(pb.AttachRequest(report=self.report()))

    async def load(self) -> pb.LoadReplica:
        """Waits for a Load, and holds what it names as LOADING."""
        response = await self.next()
        load = response.load
        assert response.WhichOneof("event") == "load", response
        self.replicas[load.replica_id] = pb.ReplicaReport(
            replica_id=load.replica_id,
            key=load.key,
            version=load.version,
            digest=load.digest,
            lane=load.lane,
            state=pb.REPLICA_STATE_LOADING,
            bandwidth=load.bandwidth,
        )
        return load

    async def become_ready(self, replica_id: int) -> None:
        """Reports a replica READY, with what was found."""
        replica = self.replicas[replica_id]
        replica.state = pb.REPLICA_STATE_READY
        replica.signature.CopyFrom(SIGNATURE)
        replica.profile.CopyFrom(PROFILE)
        replica.memory_bytes = 57
        await self.tell()

    async def serve_next(self) -> pb.LoadReplica:
        """Loads what comes next until it serves."""
        load = await self.load()
        await self.become_ready(load.replica_id)
        return load


@asynccontextmanager
async def registry_server(registry: FakeRegistry, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Serves a registry."""
    server = grpc.aio.server()
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(registry, server)
    port = server.add_insecure_port(address)
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@asynccontextmanager
async def scheduler(folder: Path, registry: str, **settings: Any) -> AsyncIterator[SchedulerServiceStub]:
    """Runs a whole scheduler; a stub of it. `listen` may name a port."""
    ready, stop = folder / "ready.json", asyncio.Event()
    ready.unlink(missing_ok=True)
    given = {"listen": "127.0.0.1:0", "settle_s": 0.0, "tick_s": 0.02, "bookmark_s": 0.2, "drain_s": 0.5} | settings
    task = asyncio.create_task(
        serving.serve(SchedulerSettings(registry=registry, ready_file=str(ready), **given), stop)
    )
    while not ready.exists():
        assert not task.done(), task.result()
        await asyncio.sleep(0.01)
    async with grpc.aio.insecure_channel(json.loads(ready.read_text())["listen"]) as channel:
        yield SchedulerServiceStub(channel)
    stop.set()
    await task
