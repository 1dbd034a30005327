"""Garbage collection: what nobody refers to goes, what is live never does, whatever happens at the same time."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from registry_world import digest_of
from sqlalchemy import select

from services._proto.apportion.v1 import common_pb2
from services._proto.apportion.v1 import registry_pb2 as pb
from services.common.errors import Reason, Refusal
from services.registry.artefacts import LocalArtefacts, name_of
from services.registry.collecting import Collector
from services.registry.database import Database
from services.registry.servicer import RegistryServicer
from services.registry.settings import RegistrySettings
from services.registry.store import Store
from services.registry.tables import artefacts
from services.registry.uploads import Uploads
from services.registry.watch import Watches

GRACE_S = 100.0


class World:
    """A registry without a server, whose clock is set by hand."""

    def __init__(self, settings: RegistrySettings) -> None:
        self.now_us = time.time_ns() // 1000
        self.root = Path(settings.artefacts)
        self.store = Store(Database(settings.database), history=100, clock_us=lambda: self.now_us)
        self.files = LocalArtefacts(self.root)
        self.uploads = Uploads(self.store, self.files, most_bytes=1 << 20, idle_s=5)
        self.call = RegistryServicer(self.store, self.uploads, Watches(self.store, bookmark_s=5))
        self.collector = Collector(self.store, self.files, grace_s=GRACE_S, audit_s=1e9, busy=self.uploads.busy)

    def pass_s(self, seconds: float) -> None:
        """Time goes by, for the database and for files."""
        self.now_us += int(seconds * 1e6)
        for path in self.root.glob("sha256/*/*"):
            then = path.stat().st_mtime - seconds
            os.utime(path, (then, then))

    async def upload(self, data: bytes, tenant: str = "acme") -> bool:
        async def parts() -> AsyncIterator[bytes]:
            yield data

        return await self.uploads.receive(tenant, digest_of(data), len(data), parts())

    async def version(self, data: bytes, name: str = "m", tenant: str = "acme") -> None:
        key = common_pb2.ModelKey(tenant=tenant, name=name)
        await self.call.CreateVersion(pb.CreateVersionRequest(key=key, digest=digest_of(data)), None)

    def has(self, data: bytes) -> bool:
        return (self.root / name_of(digest_of(data))).exists()

    async def rows(self) -> set[str]:
        async def operation(connection):  # type: ignore[no-untyped-def]
            return set((await connection.execute(select(artefacts.c.digest))).scalars())

        return await self.store.read(operation)


@pytest.fixture
async def world(settings: RegistrySettings) -> AsyncIterator[World]:
    made = World(settings)
    await asyncio.to_thread(made.files.prepare, time.time())
    await made.store.prepare()
    for tenant in ("acme", "other"):
        await made.call.CreateTenant(pb.CreateTenantRequest(name=tenant), None)
    yield made
    await made.store.close()


async def test_what_no_version_refers_to_goes_after_its_time_and_what_one_refers_to_stays(world: World) -> None:
    for data in (b"used", b"left"):
        await world.upload(data)
    await world.version(b"used")
    world.pass_s(GRACE_S - 1)
    assert await world.collector.collect() == 0
    world.pass_s(2)
    assert await world.collector.collect() == 1
    assert (world.has(b"used"), world.has(b"left")) == (True, False)
    assert await world.rows() == {digest_of(b"used")}
    world.pass_s(10 * GRACE_S)
    assert await world.collector.collect() == 0
    assert world.has(b"used")


async def test_what_anybody_refers_to_is_live_for_all(world: World) -> None:
    await world.upload(b"shared")
    await world.upload(b"shared", "other")
    await world.version(b"shared", tenant="other")
    world.pass_s(2 * GRACE_S)
    assert await world.collector.collect() == 0
    await world.version(b"shared")


async def test_the_last_version_that_goes_takes_its_artefact_with_it(world: World) -> None:
    await world.upload(b"x")
    await world.version(b"x")
    await world.version(b"x", name="n")
    world.pass_s(2 * GRACE_S)
    for name, gone in (("m", 0), ("n", 1)):
        key = common_pb2.ModelKey(tenant="acme", name=name)
        await world.call.DeleteModel(pb.DeleteModelRequest(key=key), None)
        assert await world.collector.collect() == gone
    assert not world.has(b"x")
    assert not await world.upload(b"x"), "it has to be sent again"
    await world.version(b"x")
    assert world.has(b"x")


async def test_uploading_again_what_is_there_keeps_it_for_the_version_that_follows(world: World) -> None:
    await world.upload(b"x")
    world.pass_s(GRACE_S + 1)
    assert await world.upload(b"x"), "it was there"
    assert await world.collector.collect() == 0
    await world.version(b"x")


async def test_a_version_of_what_was_collected_is_refused_with_what_to_do(world: World) -> None:
    await world.upload(b"x")
    world.pass_s(GRACE_S + 1)
    await world.collector.collect()
    with pytest.raises(Refusal, match="upload it first") as caught:
        await world.version(b"x")
    assert caught.value.reason is Reason.ARTEFACT_NOT_FOUND


async def test_a_file_that_no_row_tells_of_goes_once_it_is_old(world: World) -> None:
    path = world.root / name_of(digest_of(b"stray"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"stray")
    assert await world.collector.collect() == 0
    world.pass_s(GRACE_S + 1)
    assert await world.collector.collect() == 1
    assert not path.exists()


async def test_pushes_and_collections_at_once_never_lose_a_live_artefact(world: World) -> None:
    """Every artefact is old enough to go at any moment; whoever got a version has its bytes at the end, and afterwards."""
    done: dict[str, bytes] = {}
    reasons: set[Reason] = set()
    over = asyncio.Event()

    async def collect() -> None:
        while not over.is_set():
            await world.collector.collect()
            await asyncio.sleep(0)

    async def push(number: int) -> None:
        data = f"artefact {number % 4}".encode()
        for _ in range(20):
            try:
                await world.upload(data)
                world.now_us += int(2 * GRACE_S * 1e6)
                await world.version(data, name=f"m{number}")
            except Refusal as refusal:
                reasons.add(refusal.reason)
                continue
            done[f"m{number}"] = data
            return

    collecting = asyncio.create_task(collect())
    for wave in range(4):
        await asyncio.gather(*(push(4 * wave + each) for each in range(4)))
        for name in list(done)[::2]:
            key = common_pb2.ModelKey(tenant="acme", name=name)
            await world.call.DeleteModel(pb.DeleteModelRequest(key=key), None)
            del done[name]
    over.set()
    await collecting
    assert done, "some pushes came through"
    assert reasons <= {Reason.ARTEFACT_NOT_FOUND, Reason.NOT_SERVING}
    assert all(world.has(data) for data in done.values())
    await world.collector.collect()
    assert await world.rows() == {digest_of(data) for data in done.values()}
    assert all(world.has(data) for data in done.values())


async def test_what_the_collector_removes_is_in_the_audit_log(world: World) -> None:
    await world.upload(b"x")
    world.pass_s(GRACE_S + 1)
    running = asyncio.create_task(world.collector.run(0.01))
    newest = lambda: world.call.ListAudit(pb.ListAuditRequest(page_size=1), None)
    async with asyncio.timeout(10):
        # It is told once the file is gone, a moment later.
        while (await newest()).entries[0].action != "CollectArtefact":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    (entry,) = (await newest()).entries
    assert (entry.object, entry.actor, world.has(b"x")) == (digest_of(b"x"), "service registry", False)
