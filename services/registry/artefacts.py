"""Artefacts as files named by their sha256: whole or not there, on a local folder or on any fsspec storage.

Everything here blocks; callers run it in threads. An artefact that no version refers to is collected: see collecting.py.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import fsspec

from services.common.errors import Reason, Refusal

# Uploads that were left behind by a process that died are removed once nothing has written to them for this long.
STALE_S = 3600.0
DIGITS = re.compile(r"[0-9a-f]{64}")
# What a local disk says when there is no room: the device, the quota, the largest file it takes.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What fsspec raises for a storage that keeps no times of writing, as its base class does.
KEEPS_NO_TIMES = NotImplementedError


class Artefacts(Protocol):
    """A content-addressed store. Digests are "sha256:" and 64 hexadecimal digits."""

    def prepare(self, now_s: float) -> int:
        """Makes what the store needs and removes stale uploads; how many. Raises OSError."""

    def begin(self) -> Incoming:
        """Begins an upload that nobody sees until it is committed."""

    def size(self, digest: str) -> int | None:
        """Bytes of a stored artefact; None: it is not here."""

    def open(self, digest: str) -> BinaryIO:
        """A stored artefact for reading. Raises FileNotFoundError."""

    def remove(self, digest: str) -> None:
        """Removes an artefact; nothing happens where it is not here. Who reads it reads on. Raises OSError."""

    def stored(self, before_s: float) -> list[str]:
        """Digests of all that is stored and was written before this time (Unix). Raises OSError."""

    def free_bytes(self) -> int | None:
        """What can still be stored; None: not known."""


class Sink(Protocol):
    """Where the bytes of one upload go."""

    def write(self, data: memoryview) -> None:
        """Takes all of `data`."""

    def keep(self, digest: str) -> None:
        """Makes what was written durable and visible under its digest, in one step."""

    def drop(self) -> None:
        """Removes what was written."""


class Incoming:
    """An upload: counted and hashed as it comes. Its methods may be called from different threads, one after another.

    A caller that is cancelled while a thread still writes may `discard` at once: the lock makes it wait for the thread.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink, self._hash, self._lock = sink, hashlib.sha256(), threading.Lock()
        self._over = False

    def feed(self, data: bytes) -> None:
        """Takes the next bytes. Raises OSError where they cannot be stored."""
        with self._lock:
            if not self._over:
                self._hash.update(data)
                self._sink.write(memoryview(data))

    def digest(self) -> str:
        """Of all that came so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def commit(self) -> None:
        """Stores it under its digest. Raises OSError where that fails; then nothing is visible."""
        with self._lock:
            if not self._over:
                self._sink.keep(self.digest())
                self._over = True

    def discard(self) -> None:
        """Forgets it, unless it is committed."""
        with self._lock:
            if not self._over:
                self._over = True
                self._sink.drop()


def name_of(digest: str) -> str:
    """A digest as a path: folders of one level keep listings short."""
    digits = digest.removeprefix("sha256:")
    return f"sha256/{digits[:2]}/{digits}"


def open_store(url: str) -> Artefacts:
    """The store at a folder or an fsspec URL. Raises ValueError or ImportError for a protocol that is not installed."""
    filesystem, root = fsspec.core.url_to_fs(url)
    protocols = (filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol
    return LocalArtefacts(Path(root)) if "file" in protocols else RemoteArtefacts(filesystem, root)


class LocalArtefacts:
    """A folder: uploads are written beside, synced, then renamed, so that a crash at any point shows whole files only."""

    def __init__(self, root: Path) -> None:
        self._root, self._incoming = root, root / "incoming"

    def prepare(self, now_s: float) -> int:
        """See Artefacts."""
        self._incoming.mkdir(parents=True, exist_ok=True)
        stale = [path for path in self._incoming.iterdir() if _idle_s(path, now_s) > STALE_S]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)

    def begin(self) -> Incoming:
        """See Artefacts."""
        return Incoming(_LocalSink(self._root, self._incoming / f"{secrets.token_hex(16)}.part"))

    def size(self, digest: str) -> int | None:
        """See Artefacts."""
        try:
            return (self._root / name_of(digest)).stat().st_size
        except FileNotFoundError:
            return None

    def open(self, digest: str) -> BinaryIO:
        """See Artefacts."""
        return (self._root / name_of(digest)).open("rb")

    def remove(self, digest: str) -> None:
        """See Artefacts."""
        (self._root / name_of(digest)).unlink(missing_ok=True)

    def stored(self, before_s: float) -> list[str]:
        """See Artefacts."""
        found = []
        for path in (self._root / "sha256").glob("*/*"):
            try:
                if DIGITS.fullmatch(path.name) and path.stat().st_mtime < before_s:
                    found.append(f"sha256:{path.name}")
            except FileNotFoundError:
                continue
        return found

    def free_bytes(self) -> int | None:
        """See Artefacts."""
        return shutil.disk_usage(self._root).free


class _LocalSink:
    def __init__(self, root: Path, path: Path) -> None:
        self._root, self._path = root, path
        # Unbuffered: what could not be written must not be tried again when the file is closed.
        self._file = path.open("xb", buffering=0)

    def write(self, data: memoryview) -> None:
        while data:
            data = data[self._file.write(data) :]

    def keep(self, digest: str) -> None:
        target = self._root / name_of(digest)
        os.fsync(self._file.fileno())
        self._file.close()
        target.parent.mkdir(parents=True, exist_ok=True)
        # Over what may be there: equal names are equal bytes.
        self._path.replace(target)
        for folder in (target.parent, target.parent.parent, self._root):
            _sync_folder(folder)

    def drop(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


class RemoteArtefacts:
    """Any fsspec storage: uploads go to a name of their own and are moved, which object stores do by copying whole."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self._filesystem, self._root = filesystem, root.rstrip("/")

    def prepare(self, now_s: float) -> int:
        """See Artefacts."""
        folder = f"{self._root}/incoming"
        self._filesystem.makedirs(folder, exist_ok=True)
        self._filesystem.makedirs(f"{self._root}/sha256", exist_ok=True)
        stale = [path for path in self._files(folder) if now_s - self._written_s(path, now_s) > STALE_S]
        for path in stale:
            self._filesystem.rm_file(path)
        return len(stale)

    def begin(self) -> Incoming:
        """See Artefacts."""
        path = f"{self._root}/incoming/{secrets.token_hex(16)}.part"
        return Incoming(_RemoteSink(self._filesystem, self._root, path))

    def size(self, digest: str) -> int | None:
        """See Artefacts."""
        try:
            self._filesystem.invalidate_cache()
            return int(self._filesystem.size(f"{self._root}/{name_of(digest)}"))
        except FileNotFoundError:
            return None

    def open(self, digest: str) -> BinaryIO:
        """See Artefacts."""
        return self._filesystem.open(f"{self._root}/{name_of(digest)}", "rb")

    def remove(self, digest: str) -> None:
        """See Artefacts."""
        with suppress(FileNotFoundError):
            self._filesystem.rm_file(f"{self._root}/{name_of(digest)}")

    def stored(self, before_s: float) -> list[str]:
        """See Artefacts. Where the storage does not say when something was written, nothing is old enough."""
        self._filesystem.invalidate_cache()
        names = [str(name) for name in self._filesystem.find(f"{self._root}/sha256")]
        now_s = time.time()
        return [
            f"sha256:{digits}"
            for name in names
            if DIGITS.fullmatch(digits := name.rpartition("/")[2]) and self._written_s(name, now_s) < before_s
        ]

    def free_bytes(self) -> int | None:
        """See Artefacts."""
        return None

    def _files(self, folder: str) -> list[str]:
        return [entry["name"] for entry in self._filesystem.ls(folder, detail=True) if entry["type"] == "file"]

    def _written_s(self, path: str, now_s: float) -> float:
        """When it was written; now, where the storage keeps no times or the file has just gone: nothing is old enough then."""
        try:
            return float(self._filesystem.modified(path).timestamp())
        except (KEEPS_NO_TIMES, FileNotFoundError):
            return now_s


class _RemoteSink:
    def __init__(self, filesystem: Any, root: str, path: str) -> None:
        self._filesystem, self._root, self._path = filesystem, root, path
        self._file = filesystem.open(path, "wb")

    def write(self, data: memoryview) -> None:
        self._file.write(data)

    def keep(self, digest: str) -> None:
        target = f"{self._root}/{name_of(digest)}"
        self._file.close()
        self._filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._filesystem.mv(self._path, target)

    def drop(self) -> None:
        try:
            self._file.close()
        finally:
            if self._filesystem.exists(self._path):
                self._filesystem.rm_file(self._path)


def storage_full(store: Artefacts, needed_bytes: int) -> Refusal:
    """STORAGE_FULL, with what is free."""
    free = store.free_bytes()
    left = "" if free is None else f"; {free} bytes are free"
    return Refusal(
        Reason.STORAGE_FULL,
        f"header.size_bytes: {needed_bytes} bytes do not fit into the artefact store{left}",
        field="header.size_bytes",
        facts={"needed_bytes": needed_bytes, **({} if free is None else {"free_bytes": free})},
    )


def refused(store: Artefacts, error: OSError, needed_bytes: int) -> Refusal:
    """What a storage error means to the caller: STORAGE_FULL, or NOT_SERVING for all others."""
    if error.errno in FULL:
        return storage_full(store, needed_bytes)
    return Refusal(Reason.NOT_SERVING, f"the artefact store fails: {error.strerror or type(error).__name__}")


def _idle_s(path: Path, now_s: float) -> float:
    try:
        return now_s - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
