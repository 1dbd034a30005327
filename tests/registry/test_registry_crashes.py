"""A registry killed in the middle of a push: nothing half-done is ever seen, and the push can be repeated."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from registry_world import Process, World, digest_of, key, parts

from services._proto.apportion.v1 import registry_pb2 as pb
from services.common.channel import connect
from services.registry.settings import RegistrySettings

KILLS = 20
DATA = random.Random(0).randbytes(6 << 20)


async def push(world: World, data: bytes, step: asyncio.Queue[int] | None = None) -> pb.CreateVersionResponse:
    """One push; tells how far it is: the messages sent, then 1000 once the artefact is stored."""

    async def messages():
        for number, message in enumerate(parts(data, part=1 << 18)):
            yield message
            if step is not None:
                step.put_nowait(number)

    await world.call.UploadArtefact(messages())
    if step is not None:
        step.put_nowait(1000)
    return await world.version(data=data, version=1)


async def kill_during(process: Process, world: World, data: bytes, chance: random.Random) -> bool:
    """Kills the registry at a random point of a push; whether the push had been answered before."""
    step: asyncio.Queue[int] = asyncio.Queue()
    pushing = asyncio.create_task(push(world, data, step))
    # Two in five after the upload, when the commits happen.
    point = chance.choice([*range(0, 24, 2), *[1000] * 8])
    while not pushing.done() and await step.get() < point:
        pass
    await asyncio.sleep(chance.uniform(0.0, 0.03))
    answered = pushing.done()
    process.kill()
    with suppress(grpc.aio.AioRpcError):
        await pushing
    return answered


def check_store(data: Path) -> None:
    """What is visible is whole, and the database is sound."""
    for path in (data / "artefacts" / "sha256").rglob("*"):
        if path.is_file():
            assert digest_of(path.read_bytes()) == f"sha256:{path.name}"
    connection = sqlite3.connect(data / "registry.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    (revision,) = connection.execute("SELECT revision FROM revisions").fetchone()
    held = [row[0] for row in connection.execute("SELECT revision FROM changes ORDER BY revision")]
    assert held == list(range(1, revision + 1))
    connection.close()


async def check_models(world: World, data: bytes, answered: bool) -> None:
    """A version that is seen can be downloaded whole; one whose push was answered is seen."""
    models = (await world.snapshot()).models
    if answered:
        assert ("acme", "m") in models
    for model in models.values():
        assert [version.digest for version in model.versions] == [digest_of(data)]
        assert await world.download(data) == data


@pytest.mark.slow
async def test_a_push_killed_at_20_random_points_leaves_nothing_partial_and_can_be_repeated(tmp_path: Path) -> None:
    chance, settings, outcomes = random.Random(20), RegistrySettings(data=tmp_path), []
    process = Process(tmp_path)
    async with connect(await process.address()) as channel:
        await World(channel, settings).tenant()
        data = DATA
        for number in range(KILLS):
            data = DATA + bytes([number])
            async with connect(await process.address()) as before:
                answered = await kill_during(process, World(before, settings), data, chance)
            check_store(tmp_path)
            process = Process(tmp_path)
            async with connect(await process.address()) as after:
                world = World(after, settings)
                await check_models(world, data, answered)
                again = await push(world, data)
                outcomes.append((answered, again.existed))
                assert again.version == 1
                assert await world.download(data) == data
                await world.call.DeleteModel(pb.DeleteModelRequest(key=key()))
    process.kill()
    # The points were spread: some pushes were cut short, some had been committed.
    assert (False, False) in outcomes
    assert any(existed for _, existed in outcomes)
    # What the kills left behind is invisible, and goes at a start an hour later.
    assert len(list((tmp_path / "artefacts" / "incoming").iterdir())) <= KILLS
