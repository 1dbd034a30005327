"""Artefacts: whole or not at all, and no tenant learns of another's."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from registry_world import World, digest_of, parts, refusal, served, slowly, upload_refused

from services._proto.apportion.v1 import registry_pb2 as pb
from services.common.errors import Reason, Refusal
from services.registry import artefacts
from services.registry.artefacts import Artefacts, LocalArtefacts, open_store
from services.registry.settings import RegistrySettings

CODE = grpc.StatusCode
DATA = os.urandom(3_000_000)


@pytest.fixture
async def world(world: World) -> World:
    """The registry, with a tenant in it."""
    await world.tenant()
    return world


def files(world: World, folder: str) -> list[Path]:
    return [path for path in (world.settings.data / "artefacts" / folder).rglob("*") if path.is_file()]


async def emptied(world: World) -> None:
    """Returns once no upload is left behind."""
    while files(world, "incoming"):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_what_was_uploaded_comes_back_byte_for_byte(world: World) -> None:
    answer = await world.upload(DATA)
    assert (answer.digest, answer.existed) == (digest_of(DATA), False)
    await world.version(data=DATA)
    assert await world.download(DATA) == DATA
    assert [path.name for path in files(world, "sha256")] == [digest_of(DATA)[7:]]
    await emptied(world)


async def test_what_its_tenant_has_stored_is_not_sent_again(world: World) -> None:
    await world.upload(DATA)
    again = await world.call.UploadArtefact(iter(list(parts(DATA))[:1]))
    assert again.existed
    wrong = world.call.UploadArtefact(iter(list(parts(DATA, size=5))[:1]))
    await refusal(wrong, Reason.SIZE_MISMATCH, CODE.DATA_LOSS)


async def test_another_tenant_cannot_tell_whether_an_artefact_is_here(world: World) -> None:
    await world.upload(DATA)
    await world.version(data=DATA)
    await world.tenant("eve")

    async def told_eve(data: bytes) -> list[tuple[str, str]]:
        header = world.call.UploadArtefact(iter(list(parts(data, "eve", digest=digest_of(data), size=9))[:1]))
        calls = (header, world.upload(b"x" * 9, "eve", digest=digest_of(data)), world.download(data, "eve"))
        told = []
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            told.append((caught.value.code().name, caught.value.details().replace(digest_of(data), "DIGEST")))
        return told

    assert await told_eve(DATA) == await told_eve(b"never seen")
    assert not (await world.upload(DATA, "eve")).existed
    assert (await world.upload(DATA, "eve")).existed


async def test_only_what_a_version_refers_to_can_be_downloaded(world: World) -> None:
    await world.upload(DATA)
    await refusal(world.download(DATA), Reason.ARTEFACT_NOT_FOUND, CODE.NOT_FOUND)
    await world.version(data=DATA)
    assert len(await world.download(DATA)) == len(DATA)


async def test_bytes_that_are_not_what_was_announced_leave_nothing(world: World) -> None:
    cases = [
        (parts(DATA, digest=digest_of(b"other")), Reason.DIGEST_MISMATCH, CODE.DATA_LOSS),
        (parts(DATA, size=len(DATA) + 1), Reason.SIZE_MISMATCH, CODE.DATA_LOSS),
        (parts(DATA, size=len(DATA) - 1), Reason.SIZE_MISMATCH, CODE.DATA_LOSS),
        (parts(DATA, size=0), Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT),
        (parts(DATA, digest="sha256:x"), Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT),
        (parts(DATA, size=1 << 60), Reason.ARTEFACT_TOO_LARGE, CODE.RESOURCE_EXHAUSTED),
        (parts(DATA, part=(1 << 20) + 1), Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT),
        (iter([]), Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT),
        (iter([pb.UploadArtefactRequest(data=b"x")]), Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT),
        (iter([*list(parts(DATA))[:2], next(parts(DATA))]), Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT),
    ]
    for messages, reason, code in cases:
        await upload_refused(world, list(messages), reason, code)
    await emptied(world)
    assert files(world, "sha256") == []
    assert not (await world.upload(DATA)).existed


async def test_more_than_was_announced_is_refused_at_once(world: World) -> None:
    endless = asyncio.Event()

    async def messages():
        for message in list(parts(DATA, size=70_000))[:3]:
            yield message
        await endless.wait()

    await refusal(world.call.UploadArtefact(messages()), Reason.SIZE_MISMATCH, CODE.DATA_LOSS)


async def test_a_broken_upload_leaves_nothing_and_can_be_repeated(world: World) -> None:
    call = world.call.UploadArtefact(slowly(list(parts(DATA)), 0.005))
    while not files(world, "incoming"):  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    call.cancel()
    await emptied(world)
    assert files(world, "sha256") == []
    assert not (await world.upload(DATA)).existed
    assert (await world.version(data=DATA)).version == 1


async def test_an_upload_that_falls_silent_is_given_up(settings: RegistrySettings) -> None:
    async with served(settings.model_copy(update={"upload_idle_s": 0.05})) as world:
        await world.tenant()
        call = world.call.UploadArtefact(slowly(list(parts(DATA))[:3], 30))
        await refusal(call, Reason.DEADLINE_EXCEEDED, CODE.DEADLINE_EXCEEDED)
        await emptied(world)


async def test_bytes_that_rot_in_the_store_are_told_and_healed_by_pushing_again(world: World) -> None:
    await world.upload(DATA)
    await world.version(data=DATA)
    (path,) = files(world, "sha256")
    path.write_bytes(b"\0" + DATA[1:])
    await refusal(world.download(DATA), Reason.DIGEST_MISMATCH, CODE.DATA_LOSS)
    path.write_bytes(DATA[:-1])
    assert not (await world.upload(DATA)).existed
    assert await world.download(DATA) == DATA


async def test_many_upload_the_same_bytes_at_once(world: World) -> None:
    await world.tenant("eve")
    await asyncio.gather(*(world.upload(DATA, tenant) for tenant in ("acme", "eve") for _ in range(3)))
    await emptied(world)
    for tenant in ("acme", "eve"):
        await world.version(data=DATA, tenant=tenant)
        assert await world.download(DATA, tenant) == DATA


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, where this machine lets us mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


async def test_what_does_not_fit_on_the_disk_is_refused_before_it_is_sent(small_disk: Path, tmp_path: Path) -> None:
    async with served(RegistrySettings(data=tmp_path / "data", artefacts_url=str(small_disk))) as world:
        await world.tenant()
        call = world.call.UploadArtefact(iter(list(parts(DATA))[:1]))
        found = await refusal(call, Reason.STORAGE_FULL, CODE.RESOURCE_EXHAUSTED)
        assert 0 < int(found.facts["free_bytes"]) <= 2 << 20


async def test_a_disk_that_fills_up_meanwhile_leaves_nothing_and_the_push_can_be_repeated(
    small_disk: Path, tmp_path: Path
) -> None:
    data, filler = DATA[:1_500_000], small_disk / "filler"
    async with served(RegistrySettings(data=tmp_path / "data", artefacts_url=str(small_disk))) as world:
        await world.tenant()

        async def messages():
            for number, message in enumerate(parts(data)):
                if number == 5:
                    filler.write_bytes(b"\0" * 1_000_000)
                yield message

        found = await refusal(world.call.UploadArtefact(messages()), Reason.STORAGE_FULL, CODE.RESOURCE_EXHAUSTED)
        assert int(found.facts["free_bytes"]) < len(data)
        while list((small_disk / "incoming").iterdir()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert not list(small_disk.glob("sha256/*/*"))  # noqa: ASYNC240
        filler.unlink()
        assert not (await world.upload(data)).existed
        await world.version(data=data)
        assert await world.download(data) == data


async def test_a_full_disk_below_the_database_is_told_and_passes(small_disk: Path) -> None:
    async with served(RegistrySettings(data=small_disk)) as world:
        await world.tenant()
        (small_disk / "filler").write_bytes(b"\0" * (os.statvfs(small_disk).f_bavail * 4096))
        for number in range(200):
            try:
                await world.tenant(f"t{number}")
            except grpc.aio.AioRpcError as error:
                code = error.code()
                break
        else:
            pytest.fail("the database grew on a full disk")
        assert code is CODE.RESOURCE_EXHAUSTED
        (small_disk / "filler").unlink()
        await world.tenant(f"t{number}")
        assert len((await world.snapshot()).tenants) == number + 2


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Artefacts:
    """The same conformance for every kind of storage."""
    url = f"memory://{tmp_path.name}" if request.param == "memory" else str(tmp_path)
    store = open_store(url)
    store.prepare(time.time())
    return store


def test_a_store_shows_an_artefact_once_it_is_committed_and_not_before(store: Artefacts) -> None:
    incoming = store.begin()
    incoming.feed(DATA[:1000])
    incoming.feed(DATA[1000:])
    assert incoming.digest() == digest_of(DATA)
    assert store.size(digest_of(DATA)) is None
    incoming.commit()
    incoming.discard()
    assert store.size(digest_of(DATA)) == len(DATA)
    with store.open(digest_of(DATA)) as file:
        assert file.read() == DATA


def test_a_store_forgets_what_is_discarded(store: Artefacts) -> None:
    incoming = store.begin()
    incoming.feed(DATA)
    incoming.discard()
    incoming.feed(b"late")
    incoming.commit()
    assert store.size(digest_of(DATA)) is None
    with pytest.raises(FileNotFoundError):
        store.open(digest_of(DATA))
    assert store.prepare(time.time() + 1e6) == 0


def test_a_store_removes_uploads_that_were_left_behind_and_no_others(store: Artefacts) -> None:
    left, kept = store.begin(), store.begin()
    left.feed(b"x")
    kept.feed(b"y")
    assert store.prepare(time.time() + artefacts.STALE_S - 60) == 0
    kept.commit()
    store.prepare(time.time() + artefacts.STALE_S + 60)
    assert store.size(digest_of(b"y")) == 1


def test_stale_uploads_go_by_when_they_were_last_written_to(tmp_path: Path) -> None:
    store = LocalArtefacts(tmp_path)
    store.prepare(0.0)
    old, new = tmp_path / "incoming" / "old.part", tmp_path / "incoming" / "new.part"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (1, time.time() - 2 * artefacts.STALE_S))
    assert store.prepare(time.time()) == 1
    assert [path.name for path in (tmp_path / "incoming").iterdir()] == ["new.part"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_way_of_being_full_is_storage_full(tmp_path: Path, number: int) -> None:
    found = artefacts.refused(LocalArtefacts(tmp_path), OSError(number, "full"), 10)
    assert found.reason is Reason.STORAGE_FULL
    assert int(found.facts["free_bytes"]) > 0


def test_a_store_that_fails_otherwise_is_not_serving(tmp_path: Path) -> None:
    found: Refusal = artefacts.refused(LocalArtefacts(tmp_path), OSError(errno.EIO, "broken"), 10)
    assert found.reason is Reason.NOT_SERVING


def test_a_write_that_the_system_cuts_short_is_storage_full_and_leaves_nothing(tmp_path: Path) -> None:
    store = LocalArtefacts(tmp_path)
    store.prepare(time.time())
    incoming = store.begin()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError) as caught:  # noqa: PT011
            incoming.feed(DATA)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    incoming.discard()
    assert artefacts.refused(store, caught.value, len(DATA)).reason is Reason.STORAGE_FULL
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
