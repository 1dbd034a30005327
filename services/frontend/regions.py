"""Regions of system shared memory: registered by callers on this machine, each bound to its tenant and its connection.

Nothing is mapped: bytes are read from the memory's file and written to it, so that a caller who shrinks his memory meanwhile
gets a refusal, where a mapping would end this process. That is one copy each way, in place of the two that gRPC makes.

Where several frontends serve one port, a folder that all of them know holds a small file for each region, and each use looks
whether that file is still the one it knows; without a folder, regions are this process' own.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from services.common.errors import Reason, Refusal, invalid
from services.frontend.core.regions import Part, Region, check_extent, check_name, check_part, file_name, unknown
from services.frontend.peers import Endpoint, endpoint

ROOT = Path("/dev/shm")
MOST_REGIONS = 256
"""Regions that one tenant may have at a time: each holds a file open."""


class Record(msgspec.Struct, frozen=True):
    """A region, whose it is, and over which connection it was registered. keeper: the process that watches it."""

    tenant: str
    region: Region
    peer: str
    keeper: int


class Memory:
    """Shared memory that is open for as long as anybody holds this; a thread may read or write while others let go of it."""

    __slots__ = ("_file", "key")

    def __init__(self, file: int, key: str) -> None:
        self._file, self.key = file, key

    def __del__(self) -> None:
        os.close(self._file)

    def status(self) -> os.stat_result:
        """What the file is now."""
        return os.fstat(self._file)

    def read(self, part: Part, at: int) -> bytes:
        """The bytes of a tensor's part, which begins `at` this byte. Raises Refusal."""
        content = os.pread(self._file, part.byte_size, at)
        if len(content) != part.byte_size:
            raise invalid(part.field, f"the memory {self.key!r} has become too short for its region")
        return content

    def write(self, part: Part, at: int, content: bytes) -> None:
        """Writes an output to its part. Raises Refusal where it does not fit."""
        if len(content) > part.byte_size:
            raise invalid(
                part.field,
                f"the output has {len(content)} bytes, more than the {part.byte_size} that were given for it",
                output_bytes=len(content),
            )
        if self.status().st_size < at + len(content):
            raise invalid(part.field, f"the memory {self.key!r} has become too short for its region")
        os.pwrite(self._file, content, at)


class _Held(NamedTuple):
    """A region whose memory this process has open. stamp: of the file that tells of it; None: there is none."""

    record: Record
    memory: Memory
    stamp: tuple[int, int] | None


class Regions:
    """Every tenant's regions.

    folder: shared by the frontends of this machine; None: this is the only one. root: where keys are looked for.
    """

    def __init__(self, folder: Path | None = None, root: Path = ROOT) -> None:
        self._folder, self._root = folder, root
        self._held: dict[tuple[str, str], _Held] = {}
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def register(self, tenant: str, region: Region, peer: str, users: Mapping[Endpoint, int]) -> None:
        """Takes a region in. The same one again is looked at anew, since its key may stand for other memory by now.

        peer: the caller as gRPC names it. users: of every connection from this machine.
        Raises Refusal: FIELD_INVALID, REGION_EXISTS where the name is another region's, UNSUPPORTED where the caller is not on
        this machine, QUOTA_EXCEEDED.
        """
        check_name(region.name)
        mine = {each.name: each for each in self.regions(tenant)}
        if mine.get(region.name, region) != region:
            raise Refusal(
                Reason.REGION_EXISTS,
                f"name: region {region.name!r} is registered already, as other memory; unregister it first",
                field="name",
            )
        if len(mine) >= MOST_REGIONS and region.name not in mine:
            raise Refusal(
                Reason.QUOTA_EXCEEDED, f"a tenant may have {MOST_REGIONS} regions", facts={"limit": MOST_REGIONS}
            )
        memory = self._opened(tenant, region, local_user(peer, users))
        record = Record(tenant, region, peer, os.getpid())
        self._held[tenant, region.name] = _Held(record, memory, self._written(record))

    def regions(self, tenant: str, name: str = "") -> list[Region]:
        """The tenant's regions by name, or the one of that name. Raises Refusal (REGION_NOT_FOUND)."""
        if name:
            return [self._got(tenant, name, "name").record.region]
        found = {record.region.name: record.region for record in self._records() if record.tenant == tenant}
        return [found[each] for each in sorted(found)]

    def unregister(self, tenant: str, name: str = "") -> None:
        """Lets go of the tenant's region of that name, or of all; what is not there is gone already."""
        for each in [name] if name else [region.name for region in self.regions(tenant)]:
            if self._folder is not None:
                self._path(tenant, each).unlink(missing_ok=True)
            self._held.pop((tenant, each), None)

    def keep_tenants(self, tenants: set[str]) -> None:
        """Lets go of the regions of tenants that are gone."""
        for tenant in {record.tenant for record in self._records()} - tenants:
            self.unregister(tenant)

    def any(self) -> bool:
        """Whether anything is registered."""
        return next(self._records(), None) is not None

    def sweep(self, users: Mapping[Endpoint, int]) -> None:
        """Lets go of regions whose connection has ended, or whose frontend has; told every second or so."""
        for record in list(self._records()):
            own = record.keeper == os.getpid()
            gone = endpoint(record.peer) not in users if own else not runs(record.keeper)
            if gone:
                self.unregister(record.tenant, record.region.name)
        for tenant, name in list(self._held):
            with suppress(Refusal):
                self._found(tenant, name)

    def find(self, tenant: str, part: Part) -> tuple[Memory, int]:
        """The memory of a tensor's part, and where the part begins in it. Raises Refusal."""
        held = self._got(tenant, part.region, part.field)
        region = held.record.region
        check_part(part, region)
        return held.memory, region.offset + part.offset

    def close(self) -> None:
        """Lets go of everything that was registered here."""
        for tenant, name in list(self._held):
            if self._folder is not None and self._held[tenant, name].record.keeper == os.getpid():
                self._path(tenant, name).unlink(missing_ok=True)
        self._held.clear()

    def _opened(self, tenant: str, region: Region, user: int | None) -> Memory:
        """The memory. user: who must own it; None: that was looked at. Raises Refusal."""
        name = file_name(region.key)
        absent = invalid("key", f"there is no shared memory {region.key!r} of yours on this machine")
        if user is not None and any(r.tenant != tenant and file_name(r.region.key) == name for r in self._records()):
            raise absent
        try:
            file = os.open(self._root / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            raise absent from None
        memory = Memory(file, region.key)
        status = memory.status()
        # This process may read more than its callers may: they get at their own memory only.
        if not stat.S_ISREG(status.st_mode) or user not in (None, 0, status.st_uid):
            raise absent
        check_extent(region, status.st_size)
        return memory

    def _got(self, tenant: str, name: str, field: str) -> _Held:
        held = self._found(tenant, name)
        if held is None:
            raise unknown(name, field)
        return held

    def _found(self, tenant: str, name: str) -> _Held | None:
        held = self._held.get((tenant, name))
        if self._folder is None:
            return held
        path = self._path(tenant, name)
        stamp = _stamp(path)
        if held is not None and held.stamp == stamp:
            return held
        self._held.pop((tenant, name), None)
        record = _read(path) if stamp is not None else None
        if record is None:
            return None
        held = self._held[tenant, name] = _Held(record, self._opened(tenant, record.region, None), stamp)
        return held

    def _records(self) -> Iterator[Record]:
        if self._folder is None:
            yield from [held.record for held in self._held.values()]
            return
        for path in self._folder.glob("*.region"):
            record = _read(path)
            if record is not None:
                yield record

    def _written(self, record: Record) -> tuple[int, int] | None:
        if self._folder is None:
            return None
        path = self._path(record.tenant, record.region.name)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(msgspec.json.encode(record))
        partial.replace(path)
        return _stamp(path)

    def _path(self, tenant: str, name: str) -> Path:
        assert self._folder is not None
        # No tenant's name holds this character, so that no two pairs are spelt alike.
        spelt = hashlib.sha256(f"{tenant}\0{name}".encode()).hexdigest()
        return self._folder / f"{spelt[:40]}.region"


def local_user(peer: str, users: Mapping[Endpoint, int]) -> int:
    """The user whose process is at the other end of the connection. Raises Refusal where it is not on this machine."""
    caller = endpoint(peer)
    user = users.get(caller) if caller is not None else None
    if user is None:
        raise Refusal(
            Reason.UNSUPPORTED,
            "shared memory: the caller is not on this machine, or in a network of its own; send tensors in the request",
        )
    return user


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _read(path: Path) -> Record | None:
    with suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=Record)
    return None


def runs(process: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
