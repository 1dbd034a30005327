"""Artefacts on local disk, by digest: fetched from the registry, verified, kept while there is room. One executor a folder."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class FetchFailed(Exception):
    """The artefact cannot be had. The message says why, with the numbers."""


class _Turns:
    """Fetches of one artefact. wanted: those that have their turn or wait for it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.wanted = 0


class ArtefactCache:
    """A folder of verified artefacts. keep_bytes: what those that nobody has pinned may take together."""

    def __init__(self, folder: Path, keep_bytes: int) -> None:
        self._folder, self._keep_bytes = folder.expanduser(), keep_bytes
        self._pins: dict[str, set[int]] = {}
        self._locks: dict[str, _Turns] = {}
        self._numbers = count()

    def open(self) -> None:
        """Makes the folder and removes what an earlier run left unfinished. OSError where it cannot be written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for partial in self._folder.glob("*.partial"):
            partial.unlink(missing_ok=True)

    async def fetch(
        self, replica: int, digest: str, size_bytes: int, download: Callable[[], AsyncIterator[bytes]]
    ) -> Path:
        """The artefact's path, pinned for this replica: from the folder where it is there, else downloaded.

        What is there is verified again. Raises FetchFailed; whatever `download` raises passes through.
        """
        match = _DIGEST.fullmatch(digest)
        if match is None:
            raise FetchFailed(f"digest: {digest!r} is not sha256: and 64 hexadecimal digits")
        target = self._folder / match[1]
        async with self._turn(digest):
            try:
                if not await asyncio.to_thread(_verified, target, size_bytes, match[1]):
                    await asyncio.to_thread(self._evict, size_bytes)
                    await self._download(target, size_bytes, match[1], download)
            except OSError as error:
                raise FetchFailed(_told(error, self._folder, size_bytes)) from error
            self._pins.setdefault(target.name, set()).add(replica)
        return target

    @asynccontextmanager
    async def _turn(self, digest: str) -> AsyncIterator[None]:
        """One fetch of an artefact at a time."""
        turns = self._locks.setdefault(digest, _Turns())
        turns.wanted += 1
        try:
            async with turns.lock:
                yield
        finally:
            turns.wanted -= 1
            if not turns.wanted:
                del self._locks[digest]

    def let_go(self, replica: int) -> None:
        """The replica needs its artefact no more; it stays while there is room."""
        for name, pins in list(self._pins.items()):
            pins.discard(replica)
            if not pins:
                del self._pins[name]

    async def _download(
        self, target: Path, size_bytes: int, expected: str, download: Callable[[], AsyncIterator[bytes]]
    ) -> None:
        partial = target.with_suffix(f".{os.getpid()}-{next(self._numbers)}.partial")
        digest, got_bytes = hashlib.sha256(), 0
        try:
            with await asyncio.to_thread(partial.open, "wb") as file:
                async for data in download():
                    got_bytes += len(data)
                    if got_bytes > size_bytes:
                        raise FetchFailed(f"the registry sent more than the {size_bytes} bytes it has of this artefact")
                    await asyncio.to_thread(_take, file.write, digest.update, data)
                await asyncio.to_thread(os.fsync, file.fileno())
            if got_bytes != size_bytes:
                raise FetchFailed(f"the registry sent {got_bytes} bytes of {size_bytes}")
            if digest.hexdigest() != expected:
                raise FetchFailed(f"the artefact's sha256 is {digest.hexdigest()}, not {expected}")
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def _evict(self, coming_bytes: int) -> None:
        """Removes what was used least lately and is pinned by nobody, until what comes fits."""
        unused: list[tuple[float, int, Path]] = []
        for path in self._folder.iterdir():
            if path.name not in self._pins and not path.name.endswith(".partial"):
                with suppress(FileNotFoundError):
                    status = path.stat()
                    unused.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in unused) + coming_bytes
        for _, size, path in sorted(unused):
            if total <= self._keep_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


def format_of(path: Path) -> str:
    """What an artefact is by its first bytes: torch.export archives are ZIP files, anything else is taken for ONNX."""
    with path.open("rb") as file:
        return "torch_export" if file.read(4) == b"PK\x03\x04" else "onnx"


def _verified(path: Path, size_bytes: int, expected: str) -> bool:
    """Whether the file is what its name says; touches it, so that it counts as used. A broken one is removed."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == size_bytes:
                digest = hashlib.file_digest(file, "sha256")
                if digest.hexdigest() == expected:
                    os.utime(path)
                    return True
    except FileNotFoundError:
        return False
    path.unlink(missing_ok=True)
    return False


def _take(write: Callable[[bytes], int], update: Callable[[bytes], None], data: bytes) -> None:
    write(data)
    update(data)


def _told(error: OSError, folder: Path, size_bytes: int) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of the artefact cache {folder} is full; {size_bytes} bytes are needed"
    return f"the artefact cache {folder} cannot be used: {error.strerror or error}"
