"""What watchers are sent: the state at one revision in parts, then each commit once, in order.

A watcher holds nothing but its revision: it reads what comes next from the table, so a slow one costs no memory, and a
commit of another process reaches it like one of this process.
"""

from __future__ import annotations

import asyncio
import weakref
import zlib
from collections.abc import AsyncIterator

from sqlalchemy.ext.asyncio import AsyncConnection

from services._proto.apportion.v1 import common_pb2, registry_pb2
from services.common.errors import invalid
from services.registry import rows
from services.registry.store import Store, Told
from services.registry.wire import model_message, tenant_message

PART_BYTES = 1 << 20


class Snapshot:
    """The whole state at one revision, as the messages that tell it."""

    def __init__(self, revision: int) -> None:
        self.revision = revision
        self.parts = [self._part()]
        self._bytes = 0

    def add(self, item: registry_pb2.Tenant | registry_pb2.Model) -> None:
        """Adds an object; begins a new part where this one would outgrow PART_BYTES."""
        size = item.ByteSize()
        if self._bytes and self._bytes + size > PART_BYTES:
            self.parts.append(self._part())
            self._bytes = 0
        self._bytes += size
        part = self.parts[-1].snapshot
        (part.tenants if isinstance(item, registry_pb2.Tenant) else part.models).append(item)  # type: ignore[arg-type]

    def close(self) -> None:
        """Marks the first part and the last."""
        self.parts[0].snapshot.first_part = True
        self.parts[-1].snapshot.last_part = True

    def _part(self) -> registry_pb2.WatchCatalogueResponse:
        return registry_pb2.WatchCatalogueResponse(revision=self.revision, snapshot=registry_pb2.CatalogueSnapshot())


class Watches:
    """Serves watchers of one store. bookmark_s: the longest silence."""

    def __init__(self, store: Store, *, bookmark_s: float) -> None:
        self._store, self._bookmark_s = store, bookmark_s
        self._taking = asyncio.Lock()
        # Watchers that come together share a snapshot; nobody keeps it once it is sent.
        self._latest: weakref.ref[Snapshot] | None = None

    async def follow(self, after: int) -> AsyncIterator[registry_pb2.WatchCatalogueResponse]:
        """Everything after a revision, or from a snapshot where it is 0; ends when the registry stops."""
        if after < 0:
            raise invalid("after_revision", f"{after} must be 0 or more")
        greeted = after == 0
        if after == 0:
            snapshot = await self._snapshot()
            for part in snapshot.parts:
                yield part
            after = snapshot.revision
            del snapshot, part
        while not self._store.head.closed:
            told = await self._store.changes_after(after)
            for change in told:
                yield change_message(change)
                after = change.revision
            # A watcher that comes back learns at once that it is up to date.
            if not told and not greeted:
                yield bookmark(after)
            greeted = True
            while not await self._store.head.wait_past(after, self._bookmark_s) and not self._store.head.closed:
                yield bookmark(after)

    async def _snapshot(self) -> Snapshot:
        async with self._taking:
            latest = self._latest() if self._latest else None
            if latest is None or latest.revision != await self._store.revision():
                latest = await self._take()
                self._latest = weakref.ref(latest)
            return latest

    async def _take(self) -> Snapshot:
        async def operation(connection: AsyncConnection) -> Snapshot:
            snapshot = Snapshot(await self._store.revision_in(connection))
            async for tenant in rows.tenants_after(connection, None):
                snapshot.add(tenant_message(tenant, hashes=True))
            async for model in rows.models_after(connection, None):
                snapshot.add(model_message(model))
            snapshot.close()
            return snapshot

        return await self._store.read(operation)


def change_message(told: Told) -> registry_pb2.WatchCatalogueResponse:
    """One commit."""
    changes = registry_pb2.CatalogueChanges()
    if told.name is None and told.body is None:
        changes.removed_tenants.append(told.tenant)
    elif told.name is None:
        changes.tenants.append(registry_pb2.Tenant.FromString(zlib.decompress(told.body or b"")))
    elif told.body is None:
        changes.removed_models.append(common_pb2.ModelKey(tenant=told.tenant, name=told.name))
    else:
        changes.models.append(registry_pb2.Model.FromString(zlib.decompress(told.body)))
    return registry_pb2.WatchCatalogueResponse(revision=told.revision, changes=changes)


def bookmark(revision: int) -> registry_pb2.WatchCatalogueResponse:
    """Nothing has changed."""
    return registry_pb2.WatchCatalogueResponse(revision=revision, bookmark=registry_pb2.Bookmark())
