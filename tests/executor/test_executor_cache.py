"""The artefact cache: what is in it is what its name says, and it stays within its size."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from services.executor.cache import ArtefactCache, FetchFailed, format_of

DATA = b"artefact" * 1000


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def gives(data: bytes, asked: list[int] | None = None) -> Callable[[], AsyncIterator[bytes]]:
    async def download() -> AsyncIterator[bytes]:
        if asked is not None:
            asked.append(1)
        for at in range(0, len(data), 1000):
            yield data[at : at + 1000]

    return download


@pytest.fixture
def cache(tmp_path: Path) -> ArtefactCache:
    made = ArtefactCache(tmp_path / "cache", 20_000)
    made.open()
    return made


async def test_an_artefact_is_downloaded_once(cache: ArtefactCache) -> None:
    asked: list[int] = []
    paths = await asyncio.gather(*(cache.fetch(n, digest(DATA), len(DATA), gives(DATA, asked)) for n in range(4)))
    assert len(asked) == 1
    assert {path.read_bytes() for path in paths} == {DATA}


async def test_what_does_not_hash_to_its_digest_is_never_there(cache: ArtefactCache, tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match="sha256 is"):
        await cache.fetch(1, digest(b"other"), len(DATA), gives(DATA))
    with pytest.raises(FetchFailed, match=f"sent {len(DATA)} bytes of {len(DATA) + 1}"):
        await cache.fetch(1, digest(DATA), len(DATA) + 1, gives(DATA))
    with pytest.raises(FetchFailed, match="more than the 10 bytes"):
        await cache.fetch(1, digest(DATA), 10, gives(DATA))
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("name", ["sha256:../../etc/passwd", "md5:0", "", "sha256:" + "A" * 64])
async def test_a_digest_that_is_none_never_becomes_a_path(cache: ArtefactCache, name: str) -> None:
    with pytest.raises(FetchFailed, match="64 hexadecimal digits"):
        await cache.fetch(1, name, 1, gives(b"x"))


async def test_a_file_that_was_damaged_is_fetched_again(cache: ArtefactCache) -> None:
    path = await cache.fetch(1, digest(DATA), len(DATA), gives(DATA))
    path.write_bytes(b"x" + DATA[1:])
    await cache.fetch(2, digest(DATA), len(DATA), gives(DATA))
    assert path.read_bytes() == DATA


async def test_what_nobody_uses_goes_first_and_what_is_in_use_stays(cache: ArtefactCache) -> None:
    paths = []
    for n in range(3):
        data = bytes([n]) * 8000
        paths.append(await cache.fetch(n, digest(data), len(data), gives(data)))
        os.utime(paths[-1], (n, n))
    cache.let_go(0)
    cache.let_go(1)
    data = b"z" * 8000
    await cache.fetch(9, digest(data), len(data), gives(data))
    assert [path.exists() for path in paths] == [False, True, True]


async def test_a_full_disk_is_named(cache: ArtefactCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FetchFailed, match=r"disk of the artefact cache .* is full; 8000 bytes are needed"):
        await cache.fetch(1, digest(DATA), len(DATA), gives(DATA))


def test_leftovers_of_an_earlier_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / "abc.1-0.partial").write_bytes(b"x")
    ArtefactCache(tmp_path, 0).open()
    assert os.listdir(tmp_path) == []


def test_a_zip_is_taken_for_torch_export_and_anything_else_for_onnx(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"PK\x03\x04rest")
    (tmp_path / "b").write_bytes(b"\x08\x08")
    assert (format_of(tmp_path / "a"), format_of(tmp_path / "b")) == ("torch_export", "onnx")
