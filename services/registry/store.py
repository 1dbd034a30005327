"""The catalogue's transactions: each commit changes one tenant or one model, and gets the next revision."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.access.callers import CALLED, calling
from services.common.errors import Reason, Refusal
from services.registry import rows
from services.registry.core.records import Change, Model, Tenant
from services.registry.database import Database
from services.registry.head import Head
from services.registry.tables import audit, changes, revisions
from services.registry.wire import model_message, tenant_message

Result = TypeVar("Result")
# Commits read at once by a watcher that is behind: bounds its memory, whatever it has missed.
MOST_CHANGES = 32
# How long transactions in flight may take when the registry stops.
CLOSE_S = 5.0
# How long a change of keys waits until the registry itself goes by it.
FOLLOWED_S = 1.0


@dataclass(frozen=True, slots=True)
class Told:
    """A change as watchers are told of it. body: the serialised tenant or model; None: it was removed."""

    revision: int
    tenant: str
    name: str | None
    body: bytes | None


def now_us() -> int:
    """Microseconds since 1970 UTC."""
    return time.time_ns() // 1000


class Store:
    """The catalogue in its database.

    history: how many revisions are held for watchers.
    clock_us: what stamps things made.
    """

    def __init__(self, database: Database, *, history: int, clock_us: Callable[[], int] = now_us) -> None:
        self.database, self.head, self.clock_us = database, Head(), clock_us
        self._history = history
        # One writer a process: the others would only wait inside the database, each holding a connection.
        self._writer = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()
        self._ready = False
        self.followed: Head | None = None
        """How far the registry's own knowledge of keys has got; None: it has none."""

    async def prepare(self) -> None:
        """Brings the schema up to date. Until this has succeeded, everything else is refused with NOT_SERVING."""
        await self.finish(self.database.prepare())
        self._ready = True
        self.head.advance(await self.revision())

    async def revision(self) -> int:
        """The last committed revision."""
        return await self.read(self.revision_in)

    async def revision_in(self, connection: AsyncConnection) -> int:
        """The revision of the state that a transaction sees."""
        return (await _counter(connection))[0]

    async def read(self, operation: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        """Runs `operation` on one state of the catalogue. Like `write`, it is not cut short: see `finish`."""
        self._check_ready()
        return await self.finish(self._read(operation))

    async def _read(self, operation: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        async with self.database.read() as connection:
            return await operation(connection)

    async def write(self, operation: Callable[[Writing], Awaitable[Result]]) -> Result:
        """Runs `operation` in a writing transaction and commits what it saved, even if the caller is cancelled."""
        self._check_ready()
        return await self.finish(self._write(operation))

    async def finish(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Awaits `work`, which goes on if the caller is cancelled; `close` waits for it.

        A database connection whose task is cancelled halfway is lost, and with SQLite its thread may never end: a client
        that hangs up must not be able to do that.
        """
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            # Somebody has seen it or has gone; either way it is not "never retrieved".
            task.exception()

    async def _write(self, operation: Callable[[Writing], Awaitable[Result]]) -> Result:
        async with self._writer:
            async with self.database.write() as connection:
                # The lock on this row orders commits by revision across processes.
                revision, compacted = await _counter(connection, lock=not self.database.is_sqlite)
                writing = Writing(connection, revision + 1, self.clock_us())
                result = await operation(writing)
                if writing.told is not None:
                    await connection.execute(insert(audit).values(audited(writing.told, writing)))
                if writing.saved:
                    await self._count(connection, writing.revision, compacted)
            if writing.saved:
                self.head.advance(writing.revision)
        if writing.saved and writing.of_tenants and self.followed is not None:
            # So that who made a key can use it here, and who revoked one knows that it is not.
            await self.followed.wait_past(writing.revision - 1, FOLLOWED_S)
        return result

    async def _count(self, connection: AsyncConnection, revision: int, compacted: int) -> None:
        """Moves the counter on, and drops history by the tenth rather than at each commit."""
        if revision - compacted > self._history + self._history // 10:
            compacted = revision - self._history
            await connection.execute(delete(changes).where(changes.c.revision <= compacted))
        await connection.execute(update(revisions).values(revision=revision, compacted=compacted))

    async def changes_after(self, after: int) -> list[Told]:
        """The next changes after a revision, in order, at most MOST_CHANGES; none: there are no later ones.

        Raises REVISION_COMPACTED where changes after it are no longer held, or it has never been.
        """

        async def operation(connection: AsyncConnection) -> tuple[int, list[Told]]:
            revision, compacted = await _counter(connection)
            if not compacted <= after <= revision:
                raise Refusal(
                    Reason.REVISION_COMPACTED,
                    f"after_revision: {after} is not within {compacted} to {revision}; take a new snapshot",
                    field="after_revision",
                    facts={"compacted_revision": compacted, "revision": revision},
                )
            later = select(changes).where(changes.c.revision > after).order_by(changes.c.revision)
            held = (await connection.execute(later.limit(MOST_CHANGES))).all()
            return revision, [
                Told(row.revision, row.tenant, row.name, None if row.tombstone else bytes(row.body)) for row in held
            ]

        revision, told = await self.read(operation)
        self.head.advance(revision)
        return told

    async def close(self) -> None:
        """Lets transactions finish, unless the database hangs, then ends all connections."""
        self.head.close()
        if self._running:
            await asyncio.wait(self._running, timeout=CLOSE_S)
        await self.database.close()

    def _check_ready(self) -> None:
        if not self._ready:
            raise Refusal(Reason.NOT_SERVING, "the registry is still reaching its database", retry_after_s=1.0)


class Writing:
    """A writing transaction: reads see what is committed, and nobody else commits meanwhile."""

    def __init__(self, connection: AsyncConnection, revision: int, now_us: int) -> None:
        self.connection, self.revision, self.now_us = connection, revision, now_us
        self.saved = self.of_tenants = False
        self.told: tuple[str, str] | None = None
        """What has been changed, for the audit log: (tenant, object); None: nothing."""

    def tell(self, tenant: str, what: str = "") -> None:
        """Says what has been changed where the catalogue alone does not: a key's id, an artefact's digest, a version."""
        self.told = (tenant, what)

    async def tenant(self, name: str, field: str = "tenant") -> Tenant:
        """The tenant; TENANT_NOT_FOUND."""
        return found(await rows.tenant(self.connection, name), name, field)

    async def save_tenant(self, before: Tenant | None, after: Tenant) -> Tenant:
        """Writes a tenant; returns it with its revision. Nothing happens where nothing differs."""
        if before == after:
            return after
        after = replace(after, revision=self.revision)
        await rows.save_tenant(self.connection, before, after)
        await self._log(Change(after.name, None, after))
        return after

    async def save_model(self, before: Model | None, after: Model) -> Model:
        """Writes a model; returns it with its revision. Nothing happens where nothing differs."""
        if before == after:
            return after
        after = replace(after, revision=self.revision)
        await rows.save_model(self.connection, before, after)
        await self._log(Change(after.tenant, after.name, after))
        return after

    async def remove_tenant(self, name: str) -> None:
        """Removes a tenant."""
        await rows.remove_tenant(self.connection, name)
        await self._log(Change(name, None, None))

    async def remove_model(self, tenant: str, name: str) -> None:
        """Removes a model."""
        await rows.remove_model(self.connection, tenant, name)
        await self._log(Change(tenant, name, None))

    async def _log(self, change: Change) -> None:
        if self.saved:
            raise RuntimeError(f"revision {self.revision} has its change already")
        self.saved, self.of_tenants = True, change.name is None
        self.told = self.told or (change.tenant, change.name or "")
        row = {
            "revision": self.revision,
            "tenant": change.tenant,
            "name": change.name,
            "tombstone": change.after is None,
            "body": None if change.after is None else zlib.compress(body(change.after)),
        }
        await self.connection.execute(insert(changes).values(row))


def audited(told: tuple[str, str], writing: Writing) -> dict[str, object]:
    """The row of the audit log: who, what, when."""
    caller = calling()
    return {
        "at_us": writing.now_us,
        "actor": str(caller),
        "actor_tenant": caller.tenant,
        "action": CALLED.get().rpartition("/")[2],
        "tenant": told[0],
        "object": told[1],
        "revision": writing.revision if writing.saved else 0,
    }


def body(record: Tenant | Model) -> bytes:
    """The message by which watchers learn of a record, serialised."""
    if isinstance(record, Tenant):
        return tenant_message(record, hashes=True).SerializeToString()
    return model_message(record).SerializeToString()


def found(record: Tenant | None, name: str, field: str = "tenant") -> Tenant:
    """The tenant that was looked up; TENANT_NOT_FOUND where there is none."""
    if record is None:
        raise Refusal(Reason.TENANT_NOT_FOUND, f"{field}: there is no tenant {name!r}", field=field)
    return record


async def _counter(connection: AsyncConnection, *, lock: bool = False) -> tuple[int, int]:
    query = select(revisions.c.revision, revisions.c.compacted)
    row = (await connection.execute(query.with_for_update() if lock else query)).one()
    return row.revision, row.compacted
