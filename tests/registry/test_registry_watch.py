"""The watch: a snapshot, then every commit once, in order, whoever made it."""

from __future__ import annotations

import asyncio
import random

import grpc
import pytest
from registry_world import Catalogue, World, key, refusal, served
from sqlalchemy import text

from services._proto.apportion.v1 import registry_pb2 as pb
from services.common.errors import Reason, Refusal
from services.registry.catalogue import Tenants
from services.registry.database import Database
from services.registry.settings import RegistrySettings
from services.registry.store import MOST_CHANGES, Store
from services.registry.watch import PART_BYTES, Watches

CODE = grpc.StatusCode


async def test_a_watcher_is_told_the_state_and_then_each_commit(world: World) -> None:
    await world.tenant()
    watcher, stream = Catalogue(), world.watch()
    while not watcher.whole:
        watcher.apply(await stream.read())
    assert list(watcher.tenants) == ["acme"]
    await world.push()
    await world.call.DeleteModel(pb.DeleteModelRequest(key=key()))
    await world.call.DeleteTenant(pb.DeleteTenantRequest(name="acme"))
    told = []
    while len(told) < 3:
        message = await stream.read()
        watcher.apply(message)
        told.append(message)
    assert [list(message.changes.removed_models) for message in told] == [[], [key()], []]
    assert list(told[2].changes.removed_tenants) == ["acme"]
    assert [message.revision for message in told] == [2, 3, 4]
    assert (watcher.tenants, watcher.models) == ({}, {})


async def test_an_empty_registry_has_an_empty_snapshot(world: World) -> None:
    message = await world.watch().read()
    assert message.revision == 0
    assert (message.snapshot.first_part, message.snapshot.last_part) == (True, True)
    assert (len(message.snapshot.tenants), len(message.snapshot.models)) == (0, 0)


async def test_a_silent_catalogue_sends_bookmarks(settings: RegistrySettings) -> None:
    async with served(settings.model_copy(update={"bookmark_s": 0.02})) as world:
        await world.tenant()
        stream = world.watch(after=1)
        told = [await stream.read() for _ in range(3)]
        assert [(message.revision, message.WhichOneof("event")) for message in told] == [(1, "bookmark")] * 3


async def test_a_watcher_that_comes_back_up_to_date_is_told_so_at_once(world: World) -> None:
    await world.tenant()
    message = await asyncio.wait_for(world.watch(after=1).read(), 2.0)
    assert (message.revision, message.WhichOneof("event")) == (1, "bookmark")


async def test_a_watcher_that_is_too_far_behind_is_told_to_take_a_new_snapshot(settings: RegistrySettings) -> None:
    async with served(settings.model_copy(update={"history_revisions": 5})) as world:
        for number in range(12):
            await world.tenant(f"t{number}")
        found = await refusal(world.watch(after=1).read(), Reason.REVISION_COMPACTED, CODE.OUT_OF_RANGE)
        compacted = int(found.facts["compacted_revision"])
        assert 12 - compacted >= 5
        stream = world.watch(after=compacted)
        assert [(await stream.read()).revision for _ in range(12 - compacted)] == list(range(compacted + 1, 13))
        await refusal(world.watch(after=compacted - 1).read(), Reason.REVISION_COMPACTED, CODE.OUT_OF_RANGE)


async def test_a_watcher_from_another_history_is_told_to_take_a_new_snapshot(world: World) -> None:
    await world.tenant()
    await refusal(world.watch(after=2).read(), Reason.REVISION_COMPACTED, CODE.OUT_OF_RANGE)
    await refusal(world.watch(after=-1).read(), Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT)


async def test_a_snapshot_comes_in_parts_of_bounded_size(world: World) -> None:
    await world.tenant()
    await world.upload(b"weights")
    config = pb.VersionConfig(warmup=[pb.WarmupTensor(name="x", shape=[1], data=b"\1" * 400_000)])
    for number in range(6):
        await world.version(f"m{number}", config=config)
    watcher, stream, sizes, flags = Catalogue(), world.watch(), [], []
    while not watcher.whole:
        message = await stream.read()
        sizes.append(message.ByteSize())
        flags.append((message.snapshot.first_part, message.snapshot.last_part))
        watcher.apply(message)
    assert len(sizes) >= 3
    assert max(sizes) < PART_BYTES + 1000
    assert flags == [(True, False), *[(False, False)] * (len(flags) - 2), (False, True)]
    assert len(watcher.models) == 6


async def test_watches_end_when_the_registry_stops(settings: RegistrySettings) -> None:
    async with served(settings.model_copy(update={"drain_s": 60.0})) as world:
        stream = world.watch()
        await stream.read()
        ended = asyncio.create_task(stream.read())
        await asyncio.sleep(0)
    assert await ended is grpc.aio.EOF


class Writer:
    """Random changes by one client; each may be refused, as clients' are."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.world, self.chance = world, chance

    async def step(self) -> None:
        tenant, name = self.chance.choice("abc"), self.chance.choice("mn")
        step = self.chance.choice(
            [self.tenant, self.untenant, self.weight, self.push, self.push, self.remove, self.pass_]
        )
        try:
            await step(tenant, name)
        except grpc.aio.AioRpcError as error:
            if error.code() not in (CODE.NOT_FOUND, CODE.ALREADY_EXISTS, CODE.FAILED_PRECONDITION):
                raise

    async def tenant(self, tenant: str, _: str) -> None:
        await self.world.tenant(tenant)

    async def untenant(self, tenant: str, _: str) -> None:
        await self.world.call.DeleteTenant(pb.DeleteTenantRequest(name=tenant))

    async def weight(self, tenant: str, _: str) -> None:
        weight = self.chance.randint(1, 9)
        await self.world.call.UpdateTenant(pb.UpdateTenantRequest(name=tenant, weight=weight))

    async def push(self, tenant: str, name: str) -> None:
        await self.world.push(name, b"%d" % self.chance.randint(0, 3), tenant)

    async def remove(self, tenant: str, name: str) -> None:
        request = pb.DeleteModelRequest(key=key(name, tenant))
        if self.chance.random() < 0.7:
            request.version = 1
        await self.world.call.DeleteModel(request)

    async def pass_(self, tenant: str, name: str) -> None:
        request = pb.RecordInspectionRequest(key=key(name, tenant), version=1)
        request.refused.message = str(self.chance.random())
        await self.world.call.RecordInspection(request)


async def follow(world: World, chance: random.Random, until: asyncio.Future[int]) -> Catalogue:
    """Watches until a revision is reached, hanging up at random and coming back after what it has seen."""
    watcher = Catalogue()
    while not (until.done() and watcher.revision >= until.result()):
        stream = world.watch(after=watcher.revision if watcher.whole else 0)
        for _ in range(chance.randint(1, 8)):
            watcher.apply(await stream.read())
            if until.done() and watcher.revision >= until.result():
                break
        stream.cancel()
    return watcher


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))])
async def test_watchers_end_with_the_state_of_a_snapshot_whatever_writers_do(
    settings: RegistrySettings, seed: int
) -> None:
    settings = settings.model_copy(update={"bookmark_s": 0.02})
    async with served(settings) as one, served(settings) as two:
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        following = [
            asyncio.create_task(follow(world, random.Random(seed + number), done))
            for number, world in enumerate((one, two, one, two))
        ]

        async def write(world: World, chance: random.Random) -> None:
            writer = Writer(world, chance)
            for _ in range(25):
                await writer.step()

        await asyncio.gather(
            *(write(world, random.Random(10 * seed + number)) for number, world in enumerate((one, one, two, two)))
        )
        truth = await one.snapshot()
        done.set_result(truth.revision)
        # How many of the steps are refused depends on who comes first: enough were not, for the test to mean something.
        assert truth.revision >= 10
        for watcher in await asyncio.gather(*following):
            assert watcher.same_as(truth)
            assert watcher.seen == sorted(set(watcher.seen))
        # From any revision on, every later one is told once.
        after = random.Random(seed).randint(1, truth.revision - 1)
        stream = two.watch(after=after)
        told = [(await stream.read()).revision for _ in range(truth.revision - after)]
        assert told == list(range(after + 1, truth.revision + 1))


@pytest.fixture
async def store(settings: RegistrySettings):
    """A store without a server."""
    settings.data.mkdir(parents=True)
    store = Store(Database(settings.database), history=1000)
    await store.prepare()
    yield store
    await store.close()


async def test_a_watcher_that_does_not_read_holds_at_most_one_batch(store: Store) -> None:
    watches, tenants = Watches(store, bookmark_s=60), Tenants(store)
    stream = watches.follow(0)
    assert (await anext(stream)).snapshot.last_part
    count = 3 * MOST_CHANGES
    for number in range(count):
        await tenants.create(f"t{number}", 0, 1)
    assert len(await store.changes_after(0)) == MOST_CHANGES
    assert [(await anext(stream)).revision for _ in range(count)] == list(range(1, count + 1))
    await stream.aclose()


async def test_watchers_that_come_together_share_one_snapshot(store: Store) -> None:
    await Tenants(store).create("acme", 0, 1)
    watches = Watches(store, bookmark_s=60)
    streams = [watches.follow(0) for _ in range(3)]
    first = await asyncio.gather(*(anext(stream) for stream in streams))
    assert first[0] is first[1] is first[2]
    for stream in streams:
        await stream.aclose()


async def test_a_change_that_fails_takes_no_revision(store: Store) -> None:
    tenants = Tenants(store)
    await tenants.create("acme", 0, 1)
    with pytest.raises(Refusal):
        await tenants.create("acme", 0, 1)
    assert (await tenants.create("eve", 0, 1))[0].revision == 2


async def test_a_commit_goes_through_when_its_caller_hangs_up(store: Store) -> None:
    call = asyncio.create_task(Tenants(store).create("acme", 0, 1))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await Tenants(store).create("eve", 0, 1))[0].revision == 2


async def test_no_reader_ever_sees_a_revision_without_those_before_it(settings: RegistrySettings, store: Store) -> None:
    other = Store(Database(settings.database), history=1000)
    await other.prepare()
    writing = asyncio.gather(
        *(
            Tenants(which).create(f"t{number}-{n}", 0, 1)
            for number in range(15)
            for n, which in enumerate((store, other))
        )
    )
    while not writing.done():
        async with store.database.read() as connection:
            revision = (await connection.execute(text("SELECT revision FROM revisions"))).scalar_one()
            held = (await connection.execute(text("SELECT revision FROM changes ORDER BY revision"))).scalars().all()
        assert list(held) == list(range(1, revision + 1))
    assert sorted(tenant.revision for tenant, _ in await writing) == list(range(1, 31))
    await other.close()
