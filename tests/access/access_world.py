"""Every service of the mesh on real ports, and a caller in every role, for tests of who may do what."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from services._proto.apportion.v1 import common_pb2, registry_pb2, registry_pb2_grpc
from services.common.channel import NOTHING, Credentials, connect
from services.common.errors import Refusal
from services.common.settings import ServiceSettings
from services.common.status import from_rpc_error
from services.executor.serve import serve as serve_executor
from services.executor.settings import ExecutorSettings
from services.frontend.serve import serve as serve_frontend
from services.frontend.settings import FrontendSettings
from services.registry.serve import serve as serve_registry
from services.registry.settings import RegistrySettings
from services.scheduler.serve import serve as serve_scheduler
from services.scheduler.settings import SchedulerSettings
from services.tracestore.serve import serve as serve_tracestore
from services.tracestore.settings import TraceStoreSettings

TOKEN = "the-mesh-token"
ANY = "127.0.0.1:0"
ASKED = {
    "frontend": "/inference.GRPCInferenceService/ModelReady",
    "scheduler": "/apportion.v1.SchedulerService/GetObjective",
    "query": "/jaeger.api_v3.QueryService/GetServices",
}
"""Methods that any tenant may call, by service."""
Metadata = tuple[tuple[str, str], ...]


def bearing(text: str) -> Metadata:
    """What a call with this credential carries."""
    return (("authorization", f"Bearer {text}"),)


@dataclass
class Mesh:
    """Services that run in this process. addresses: by name, `collector` and `query` for the trace store's two.

    keys: by "TENANT" (an administrator's) and "TENANT/user" (one that may not change anything).
    """

    addresses: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)

    def stub(self, service: str, kind: Any) -> Any:
        """A stub whose calls carry nothing but what they are given."""
        return kind(self.channels[service])

    async def tenant(self, name: str) -> None:
        """Makes a tenant, an administrator's key, and one of a lesser role."""
        registry = self.stub("registry", registry_pb2_grpc.RegistryServiceStub)
        made = await registry.CreateTenant(registry_pb2.CreateTenantRequest(name=name), metadata=bearing(TOKEN))
        self.keys[name] = made.api_key
        asked = registry_pb2.CreateApiKeyRequest(tenant=name, role=registry_pb2.KEY_ROLE_TENANT)
        self.keys[f"{name}/user"] = (await registry.CreateApiKey(asked, metadata=bearing(made.api_key))).api_key

    async def known(self, tenant: str) -> None:
        """Waits until every service that takes tenants' keys knows this one's."""
        for service, method in ASKED.items():
            async with asyncio.timeout(10):
                while service in self.channels:
                    call = self.channels[service].unary_unary(method)
                    try:
                        await call(b"", metadata=bearing(self.keys[tenant]))
                    except grpc.aio.AioRpcError as error:
                        if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE):
                            await asyncio.sleep(0.02)
                            continue
                    break

    async def model(self, tenant: str, name: str, data: bytes = b"weights") -> None:
        """Makes a model of something that no worker ever loads."""
        import hashlib

        registry = self.stub("registry", registry_pb2_grpc.RegistryServiceStub)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        header = registry_pb2.ArtefactHeader(tenant=tenant, digest=digest, size_bytes=len(data))
        parts = [registry_pb2.UploadArtefactRequest(header=header), registry_pb2.UploadArtefactRequest(data=data)]
        await registry.UploadArtefact(iter(parts), metadata=bearing(self.keys[tenant]))
        key = common_pb2.ModelKey(tenant=tenant, name=name)
        request = registry_pb2.CreateVersionRequest(key=key, digest=digest)
        await registry.CreateVersion(request, metadata=bearing(self.keys[tenant]))


@asynccontextmanager
async def running(
    folder: Path,
    only: Iterable[str] = ("tracestore", "scheduler", "executor", "frontend"),
    each: Mapping[str, Mapping[str, Any]] | None = None,
    credentials: Credentials = NOTHING,
    **more: Any,
) -> AsyncIterator[Mesh]:
    """The registry and the services named, all with a mesh token; more: settings of all of them; each: of one.

    credentials: what the channels show.
    """
    mesh, only = Mesh(), set(only)
    common = {"mesh_token": TOKEN, "drain_s": 0.2, "reflection": True, **more}
    async with AsyncExitStack() as stack:

        async def start(name: str, serve: Any, settings: type[ServiceSettings], **own: Any) -> dict[str, str]:
            ready, stop = folder / f"{name}.ready", asyncio.Event()
            made = settings(**{"listen": ANY, "ready_file": str(ready), **common, **own, **(each or {}).get(name, {})})
            running = asyncio.create_task(serve(made, stop))

            async def end() -> None:
                stop.set()
                await asyncio.gather(running, return_exceptions=True)

            stack.push_async_callback(end)
            async with asyncio.timeout(30):
                while not ready.exists():
                    if running.done():
                        await running
                    await asyncio.sleep(0.01)
            found: dict[str, str] = json.loads(ready.read_text())
            mesh.addresses[name] = found["listen"]
            return found

        await start("registry", serve_registry, RegistrySettings, data=folder / "data")
        where = {"registry": mesh.addresses["registry"]}
        if "tracestore" in only:
            found = await start(
                "collector", serve_tracestore, TraceStoreSettings, data=folder / "data", query_listen=ANY, **where
            )
            mesh.addresses["query"] = found["query_listen"]
        if "scheduler" in only:
            await start("scheduler", serve_scheduler, SchedulerSettings, settle_s=0.2, **where)
            where["scheduler"] = mesh.addresses["scheduler"]
        if "executor" in only:
            own = {"cache": folder / "cache", "cores": "0", "metrics_listen": None}
            await start("executor", serve_executor, ExecutorSettings, **where, **own)
        if "frontend" in only:
            await start("frontend", serve_frontend, FrontendSettings, anonymous="off", metrics_listen=None, **where)
        for name, address in mesh.addresses.items():
            to = "tracestore" if name in ("collector", "query") else name
            mesh.channels[name] = connect(address, to=to, credentials=credentials)
            stack.push_async_callback(mesh.channels[name].close, None)
        yield mesh


async def outcome(call: Any) -> tuple[str, Any]:
    """("OK", the answer) of a call of any kind, or (its status, the refusal, where it had one, else its text)."""
    try:
        if hasattr(call, "__aiter__") and not hasattr(call, "__await__"):
            return "OK", [each async for each in call]
        return "OK", await call
    except grpc.aio.AioRpcError as error:
        refusal: Refusal | None = from_rpc_error(error)
        return error.code().name, refusal or error.details()
