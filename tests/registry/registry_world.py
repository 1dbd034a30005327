"""A registry to talk to: in this process for most tests, in one of its own for those that kill it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from services._proto.apportion.v1 import common_pb2, registry_pb2, registry_pb2_grpc
from services.common.channel import connect
from services.common.errors import Reason
from services.common.status import from_rpc_error
from services.registry.serve import serve
from services.registry.settings import RegistrySettings

ROOT = Path(__file__).resolve().parents[2]


class World:
    """A client of one registry, with words for what tests often do."""

    def __init__(self, channel: grpc.aio.Channel, settings: RegistrySettings) -> None:
        self.call: Any = registry_pb2_grpc.RegistryServiceStub(channel)
        self.settings = settings

    async def tenant(self, name: str = "acme") -> registry_pb2.CreateTenantResponse:
        share = common_pb2.Share(millidevices=250)
        return await self.call.CreateTenant(registry_pb2.CreateTenantRequest(name=name, reservation=share, weight=2))

    async def upload(
        self,
        data: bytes,
        tenant: str = "acme",
        *,
        digest: str | None = None,
        size: int | None = None,
        part: int = 65536,
    ) -> registry_pb2.UploadArtefactResponse:
        return await self.call.UploadArtefact(parts(data, tenant, digest=digest, size=size, part=part))

    async def push(
        self, name: str = "m", data: bytes = b"weights", tenant: str = "acme", **fields: Any
    ) -> registry_pb2.CreateVersionResponse:
        await self.upload(data, tenant)
        return await self.version(name, data, tenant, **fields)

    async def version(
        self, name: str = "m", data: bytes = b"weights", tenant: str = "acme", **fields: Any
    ) -> registry_pb2.CreateVersionResponse:
        key = common_pb2.ModelKey(tenant=tenant, name=name)
        return await self.call.CreateVersion(
            registry_pb2.CreateVersionRequest(key=key, digest=digest_of(data), **fields)
        )

    async def download(self, data: bytes, tenant: str = "acme") -> bytes:
        request = registry_pb2.DownloadArtefactRequest(tenant=tenant, digest=digest_of(data))
        return b"".join([message.data async for message in self.call.DownloadArtefact(request)])

    def watch(self, after: int = 0) -> Any:
        return self.call.WatchCatalogue(registry_pb2.WatchCatalogueRequest(after_revision=after))

    async def snapshot(self) -> Catalogue:
        catalogue, stream = Catalogue(), self.watch()
        async for message in stream:
            catalogue.apply(message)
            if catalogue.whole:
                stream.cancel()
                return catalogue
        raise AssertionError("the stream ended inside its snapshot")


class Catalogue:
    """What a watcher holds: it fails where a message breaks the contract."""

    def __init__(self) -> None:
        self.tenants: dict[str, registry_pb2.Tenant] = {}
        self.models: dict[tuple[str, str], registry_pb2.Model] = {}
        self.revision = 0
        self.whole = False
        self.seen: list[int] = []

    def apply(self, message: registry_pb2.WatchCatalogueResponse) -> None:
        kind = message.WhichOneof("event")
        if kind == "snapshot":
            self._snapshot(message)
        elif kind == "changes":
            assert message.revision == self.revision + 1, "revisions are told one by one"
            self.seen.append(message.revision)
            self._changes(message)
        else:
            assert kind == "bookmark"
            assert message.revision == self.revision, "a bookmark tells what has been told"
        self.revision = message.revision

    def _snapshot(self, message: registry_pb2.WatchCatalogueResponse) -> None:
        part = message.snapshot
        if part.first_part:
            self.tenants, self.models, self.whole = {}, {}, False
        self.tenants |= {tenant.name: tenant for tenant in part.tenants}
        self.models |= {(model.key.tenant, model.key.name): model for model in part.models}
        assert all(item.revision <= message.revision for item in (*part.tenants, *part.models))
        self.whole = part.last_part

    def _changes(self, message: registry_pb2.WatchCatalogueResponse) -> None:
        changes = message.changes
        assert all(item.revision == message.revision for item in (*changes.tenants, *changes.models))
        self.tenants |= {tenant.name: tenant for tenant in changes.tenants}
        self.models |= {(model.key.tenant, model.key.name): model for model in changes.models}
        for name in changes.removed_tenants:
            del self.tenants[name]
        for key in changes.removed_models:
            del self.models[key.tenant, key.name]

    def same_as(self, other: Catalogue) -> bool:
        return (self.tenants, self.models, self.revision) == (other.tenants, other.models, other.revision)


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def key(name: str = "m", tenant: str = "acme") -> common_pb2.ModelKey:
    return common_pb2.ModelKey(tenant=tenant, name=name)


def parts(
    data: bytes, tenant: str = "acme", *, digest: str | None = None, size: int | None = None, part: int = 65536
) -> Iterator[registry_pb2.UploadArtefactRequest]:
    """The messages of an upload."""
    header = registry_pb2.ArtefactHeader(
        tenant=tenant, digest=digest or digest_of(data), size_bytes=len(data) if size is None else size
    )
    yield registry_pb2.UploadArtefactRequest(header=header)
    for start in range(0, len(data), part):
        yield registry_pb2.UploadArtefactRequest(data=data[start : start + part])


async def slowly(messages: Sequence[Any], pause_s: float = 0.0) -> AsyncIterator[Any]:
    """Messages one at a time, the loop's other work between them."""
    for message in messages:
        yield message
        await asyncio.sleep(pause_s)


async def refusal(call: Any, reason: Reason, code: grpc.StatusCode) -> Any:
    """Awaits a call that has to fail so; returns the refusal."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    found = from_rpc_error(caught.value)
    assert found is not None, caught.value
    assert (found.reason, caught.value.code()) == (reason, code), found.message
    return found


async def upload_refused(world: World, messages: Sequence[Any], reason: Reason, code: grpc.StatusCode) -> Any:
    """An upload that has to fail so; returns the refusal.

    grpc.aio calls it INTERNAL where a message was on its way out when the status came in: such an upload is tried again.
    """
    for _ in range(10):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.call.UploadArtefact(iter(messages))
        if "execute_batch" not in (caught.value.debug_error_string() or ""):
            break
    found = from_rpc_error(caught.value)
    assert found is not None, caught.value
    assert (found.reason, caught.value.code()) == (reason, code), found.message
    return found


@asynccontextmanager
async def served(settings: RegistrySettings) -> AsyncIterator[World]:
    """A registry in this process."""
    stop = asyncio.Event()
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        settings = settings.model_copy(update={"listen": "127.0.0.1:0", "ready_file": str(ready), "drain_s": 1.0})
        running = asyncio.create_task(serve(settings, stop))
        while not ready.exists() and not running.done():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        if running.done():
            await running
        channel = connect(json.loads(ready.read_text())["listen"])
        try:
            yield World(channel, settings)
        finally:
            stop.set()
            await running
            await channel.close()


class Process:
    """A registry in a process of its own."""

    def __init__(self, data: Path, **environment: str) -> None:
        self.ready = data / f"ready.{time.monotonic_ns()}"
        self._log = (data / "log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.registry"],
            cwd=ROOT,
            stderr=self._log,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("APPORTION_")},
                "APPORTION_DATA": str(data),
                "APPORTION_REGISTRY_LISTEN": "127.0.0.1:0",
                "APPORTION_READY_FILE": str(self.ready),
                **environment,
            },
        )

    async def address(self) -> str:
        while not self.ready.exists():
            assert self.process.poll() is None, "the registry ended before it was ready"
            await asyncio.sleep(0.01)
        return json.loads(self.ready.read_text())["listen"]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()

    def stop(self) -> int:
        self.process.terminate()
        status = self.process.wait(timeout=20)
        self._log.close()
        return status
