"""Regions of GPU memory: registered by callers on this machine, opened by the executors that have the device.

This process opens nothing: it gives each region an id that no caller learns, and requests travel with the id in place of the name.
What is registered here is opened again wherever a connection to an executor has been made anew. Where several frontends serve one
port, a folder that all of them know holds a small file for each region; without one, regions are this process' own.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary

import grpc
import msgspec
import structlog

from services._proto.apportion.v1 import executor_pb2 as pb
from services.common.errors import Reason, Refusal, invalid
from services.common.machine import boot_id
from services.common.status import from_rpc_error
from services.frontend.core.regions import DeviceRegion, Part, check_device_region, check_part
from services.frontend.forward import ExecutorLink, Links
from services.frontend.peers import Endpoint, endpoint
from services.frontend.regions import Regions, local_user, runs
from services.frontend.session import Session

log = structlog.get_logger()

MOST_REGIONS = 256
"""Regions of GPU memory that one tenant may have at a time."""
OPEN_S, CLOSE_S = 15.0, 2.0
"""How long an executor may take."""
_TELLING = (
    Reason.FIELD_INVALID,
    Reason.OUT_OF_MEMORY,
    Reason.QUOTA_EXCEEDED,
    Reason.WORKER_LOST,
    Reason.REGION_NOT_FOUND,
    Reason.UNSUPPORTED,
)
"""Where no executor opens a region: whose reason the caller gets, the first of these that was given."""


_PASSING = frozenset({Reason.WORKER_LOST, Reason.EXECUTOR_LOST, Reason.OUT_OF_MEMORY, Reason.QUOTA_EXCEEDED})
"""Why an executor that has come back may not open a region yet: it is asked again."""


class Record(msgspec.Struct, frozen=True):
    """A region, whose it is, and over which connection it was registered. id: what executors know it by. keeper: the process that
    watches it. at: addresses of the executors that have it open."""

    tenant: str
    region: DeviceRegion
    id: str
    peer: str
    keeper: int
    at: tuple[str, ...]


class DeviceRegions:
    """Every tenant's regions of GPU memory. Belongs to one event loop.

    system: regions of system memory, whose names are none of these. most_bytes: of one tenant. folder: see the module.
    """

    def __init__(self, links: Links, system: Regions, most_bytes: int, folder: Path | None = None) -> None:
        self._links, self._system, self._most_bytes, self._folder = links, system, most_bytes, folder
        self._own: dict[tuple[str, str], Record] = {}
        self._sessions: dict[str, dict[str, bytes]] = {}
        """By id and address: over which session each executor has it open."""
        self._busy: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._closing: set[asyncio.Task[None]] = set()
        self._machine = boot_id()

    @property
    def offered(self) -> bool:
        """Whether some executor opens a GPU's memory."""
        return bool(self._openers())

    async def register(self, tenant: str, region: DeviceRegion, peer: str, users: Mapping[Endpoint, int]) -> None:
        """Takes a region in, once an executor has opened it. The same one again is opened anew.

        Raises Refusal: UNSUPPORTED where no executor opens any or the caller is not on this machine, FIELD_INVALID, REGION_EXISTS,
        QUOTA_EXCEEDED, and what executors say.
        """
        if not self.offered:
            raise Refusal(
                Reason.UNSUPPORTED,
                "no executor here opens memory of a CUDA device (APPORTION_EXECUTOR_CUDA_SHARED_MEMORY); send tensors in the "
                "request, or register system shared memory",
            )
        check_device_region(region)
        local_user(peer, users)
        async with self._alone(tenant):
            before = self._checked(tenant, region)
            if before is not None:
                await self._forget(before)
            made = Record(tenant, region, secrets.token_hex(16), peer, os.getpid(), ())
            sessions = await self._opened(made)
            self._sessions[made.id] = sessions
            self._keep(msgspec.structs.replace(made, at=tuple(sorted(sessions))))

    def regions(self, tenant: str, name: str = "") -> list[DeviceRegion]:
        """The tenant's regions by name, or the one of that name; empty where there is none."""
        found = {each.region.name: each.region for each in self._records() if each.tenant == tenant}
        return [found[each] for each in sorted(found) if name in ("", each)]

    def has(self, tenant: str, name: str) -> bool:
        """Whether the tenant has a region of that name."""
        return self._record(tenant, name) is not None

    async def unregister(self, tenant: str, name: str = "") -> None:
        """Lets go of the tenant's region of that name, or of all; what is not there is gone already."""
        async with self._alone(tenant):
            for record in [each for each in self._records() if each.tenant == tenant]:
                if name in ("", record.region.name):
                    await self._forget(record)

    def find(self, tenant: str, part: Part) -> Record | None:
        """The region of a tensor's part; None: the tenant has none of that name. Raises Refusal where the part is not within."""
        record = self._record(tenant, part.region)
        if record is not None:
            check_part(part, record.region)
        return record

    def keep_tenants(self, tenants: set[str]) -> None:
        """Lets go of the regions of tenants that are gone."""
        for tenant in {record.tenant for record in self._records()} - tenants:
            task = asyncio.ensure_future(self.unregister(tenant))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def any(self) -> bool:
        """Whether anything is registered."""
        return next(self._records(), None) is not None

    async def sweep(self, users: Mapping[Endpoint, int]) -> None:
        """Lets go of regions whose connection has ended, or whose frontend has; opens the others where they are open no more."""
        for seen in list(self._records()):
            async with self._alone(seen.tenant):
                record = self._record(seen.tenant, seen.region.name)
                if record is None or record.id != seen.id:
                    continue
                own = record.keeper == os.getpid()
                if (endpoint(record.peer) not in users) if own else not runs(record.keeper):
                    await self._forget(record)
                elif own:
                    await self._mend(record)

    async def close(self) -> None:
        """Lets go of everything that was registered here; executors do with the connections."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        for record in list(self._own.values()):
            if self._folder is not None:
                self._path(record.tenant, record.region.name).unlink(missing_ok=True)
        self._own.clear()

    def _alone(self, tenant: str) -> asyncio.Lock:
        """One change of a tenant's regions at a time; a slow executor holds up nobody else's."""
        lock = self._busy.get(tenant)
        if lock is None:
            lock = self._busy[tenant] = asyncio.Lock()
        return lock

    def _openers(self) -> list[tuple[ExecutorLink, Session]]:
        found = ((link, link.session) for link in self._links.up())
        return [(link, session) for link, session in found if session is not None and session.welcome.opens_regions]

    def _checked(self, tenant: str, region: DeviceRegion) -> Record | None:
        """The record that this one takes the place of. Raises Refusal."""
        mine = {each.region.name: each for each in self._records() if each.tenant == tenant}
        before = mine.pop(region.name, None)
        taken = any(each.name == region.name for each in self._system.regions(tenant))
        if taken or (before is not None and before.region != region):
            raise Refusal(
                Reason.REGION_EXISTS,
                f"name: region {region.name!r} is registered already, as other memory; unregister it first",
                field="name",
            )
        if any(each.tenant != tenant and each.region.handle == region.handle for each in self._records()):
            raise _absent()
        held_bytes = sum(each.region.byte_size for each in mine.values())
        if len(mine) >= MOST_REGIONS or held_bytes + region.byte_size > self._most_bytes:
            raise Refusal(
                Reason.QUOTA_EXCEEDED,
                f"a tenant may have {MOST_REGIONS} regions of GPU memory of {self._most_bytes} bytes in all "
                f"(APPORTION_FRONTEND_CUDA_SHARED_MEMORY_BYTES); {len(mine)} of {held_bytes} bytes are registered",
                facts={"limit": MOST_REGIONS, "limit_bytes": self._most_bytes, "held_bytes": held_bytes},
            )
        return before

    async def _opened(self, record: Record) -> dict[str, bytes]:
        """The session of each executor that has opened it, by address. Raises the most telling Refusal where none has."""
        openers = self._openers()
        answers = await asyncio.gather(*(self._open_at(session, record) for _, session in openers))
        refusals: list[Refusal] = []
        opened = {}
        for (link, session), refusal in zip(openers, answers, strict=True):
            if refusal is None:
                opened[link.address] = session.id
            else:
                refusals.append(refusal)
        if not opened:
            raise min(refusals, key=_rank, default=Refusal(Reason.EXECUTOR_LOST, "no executor can be reached"))
        return opened

    async def _open_at(self, session: Session, record: Record) -> Refusal | None:
        region = record.region
        asked = pb.OpenRegionRequest(
            region=record.id,
            tenant=record.tenant,
            handle=region.handle,
            byte_size=region.byte_size,
            machine=self._machine,
        )
        try:
            await session.open_region(asked, OPEN_S)
        except grpc.RpcError as error:
            refusal = from_rpc_error(error)
            if refusal is None:
                return Refusal(Reason.EXECUTOR_LOST, f"the executor at {session.address} cannot be reached")
            # What an executor calls a handle is what the caller calls a raw handle.
            return _renamed(refusal)
        return None

    async def _mend(self, record: Record) -> None:
        """Opens a region where a connection has been made since."""
        known = self._sessions.setdefault(record.id, {})
        missing = [(link, session) for link, session in self._openers() if known.get(link.address) != session.id]
        for link, session in missing:
            refusal = await self._open_at(session, record)
            if refusal is not None and refusal.reason in _PASSING:
                continue
            # Not asked again over this connection.
            known[link.address] = session.id
            at = {*record.at, link.address} if refusal is None else {*record.at} - {link.address}
            if at != {*record.at}:
                record = msgspec.structs.replace(record, at=tuple(sorted(at)))
                self._keep(record)
            log.info("region opened again", address=link.address, refused=refusal is not None and refusal.reason)

    async def _forget(self, record: Record) -> None:
        self._own.pop((record.tenant, record.region.name), None)
        self._sessions.pop(record.id, None)
        if self._folder is not None:
            self._path(record.tenant, record.region.name).unlink(missing_ok=True)
        asked = pb.CloseRegionRequest(region=record.id)
        sessions = [session for link, session in self._openers() if link.address in record.at]
        # Where one cannot be told, the region goes with the connection.
        await asyncio.gather(*(each.close_region(asked, CLOSE_S) for each in sessions), return_exceptions=True)

    def _keep(self, record: Record) -> None:
        self._own[record.tenant, record.region.name] = record
        if self._folder is not None:
            path = self._path(record.tenant, record.region.name)
            partial = path.with_suffix(f".{os.getpid()}")
            partial.write_bytes(msgspec.json.encode(record))
            partial.replace(path)

    def _record(self, tenant: str, name: str) -> Record | None:
        if self._folder is None:
            return self._own.get((tenant, name))
        return _read(self._path(tenant, name))

    def _records(self) -> Iterator[Record]:
        if self._folder is None:
            yield from list(self._own.values())
            return
        for path in self._folder.glob("*.device"):
            record = _read(path)
            if record is not None:
                yield record

    def _path(self, tenant: str, name: str) -> Path:
        assert self._folder is not None
        # No tenant's name holds this character, so that no two pairs are spelt alike.
        spelt = hashlib.sha256(f"{tenant}\0{name}".encode()).hexdigest()
        return self._folder / f"{spelt[:40]}.device"


def _read(path: Path) -> Record | None:
    with suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=Record)
    return None


def _absent() -> Refusal:
    """As an executor says it of a handle that nothing can be opened by: nobody can tell which."""
    return invalid("raw_handle", "is of no memory that can be opened here")


def _renamed(refusal: Refusal) -> Refusal:
    if refusal.field != "handle":
        return refusal
    problem = refusal.message.removeprefix("handle: ")
    return Refusal(Reason.FIELD_INVALID, f"raw_handle: {problem}", field="raw_handle", facts=refusal.facts)


def _rank(refusal: Refusal) -> int:
    order: Sequence[Reason] = _TELLING
    return order.index(refusal.reason) if refusal.reason in order else len(order)
