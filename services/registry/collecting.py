"""Garbage collection: artefacts that no version refers to, files that nobody claims, audit lines that are old enough.

An artefact is live while any tenant's version refers to it, and for a while after anybody has uploaded it, since a push is an
upload first and a version second. What is removed is looked at again inside a writing transaction, which keeps all other
writers away, and its file goes in the same transaction: whoever makes a version of it comes before and keeps it, or after and
is told to upload it again. A registry that dies in between leaves a row without a file, which an upload mends; never a version
without one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog
from sqlalchemy import ColumnElement, and_, delete, exists, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.access.callers import CALLED, CALLING, Role, caller_of
from services.common.errors import Refusal
from services.registry import auditing
from services.registry.artefacts import Artefacts
from services.registry.store import Store, Writing
from services.registry.tables import artefact_owners, artefacts, versions

log = structlog.get_logger()

SECOND_US = 1_000_000
AT_ONCE = 100
"""Artefacts looked up at once."""


class Collector:
    """Collects what one store holds. grace_s: how long an upload may wait for its version; busy: digests on their way in."""

    def __init__(
        self,
        store: Store,
        files: Artefacts,
        *,
        grace_s: float,
        audit_s: float,
        busy: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._store, self._files, self._busy = store, files, busy
        self._grace_s, self._audit_s = grace_s, audit_s

    async def run(self, every_s: float) -> None:
        """Collects every so often, until cancelled."""
        CALLING.set(caller_of(Role.SERVICE, name="registry"))
        CALLED.set("/CollectArtefact")
        while True:
            await asyncio.sleep(every_s)
            try:
                removed = await self.collect()
                if removed:
                    log.info("artefacts collected", artefacts=removed)
            except (Refusal, OSError) as error:
                log.warning("nothing collected", error=str(error))

    async def collect(self) -> int:
        """Removes what is not live; how many artefacts. Raises Refusal, OSError."""
        removed = 0
        while True:
            found = await self._store.read(self._unreferenced)
            gone = [digest for digest in found if await self._remove(digest)]
            removed += len(gone)
            if len(found) < AT_ONCE or not gone:
                break
        for digest in await asyncio.to_thread(self._files.stored, time.time() - self._grace_s):
            removed += await self._remove_file(digest)
        await self._store.write(self._forget_audit)
        return removed

    def _before_us(self) -> int:
        return self._store.clock_us() - int(self._grace_s * SECOND_US)

    async def _unreferenced(self, connection: AsyncConnection) -> list[str]:
        query = select(artefacts.c.digest).where(self._is_garbage()).order_by(artefacts.c.digest).limit(AT_ONCE)
        return list((await connection.execute(query)).scalars())

    def _is_garbage(self) -> ColumnElement[bool]:
        """No version refers to it, and nobody has uploaded it lately."""
        before_us = self._before_us()
        referred = exists().where(versions.c.digest == artefacts.c.digest)
        lately = exists().where(
            and_(artefact_owners.c.digest == artefacts.c.digest, artefact_owners.c.uploaded_at_us > before_us)
        )
        return and_(~referred, ~lately, artefacts.c.created_at_us <= before_us)

    async def _remove(self, digest: str) -> bool:
        async def operation(writing: Writing) -> bool:
            connection = writing.connection
            still = select(artefacts.c.digest).where(and_(artefacts.c.digest == digest, self._is_garbage()))
            if self._busy(digest) or (await connection.execute(still)).first() is None:
                return False
            await connection.execute(delete(artefact_owners).where(artefact_owners.c.digest == digest))
            await connection.execute(delete(artefacts).where(artefacts.c.digest == digest))
            await asyncio.to_thread(self._files.remove, digest)
            writing.tell("", digest)
            return True

        return await self._store.write(operation)

    async def _remove_file(self, digest: str) -> bool:
        """Removes a file that is old and that no row tells of."""

        async def operation(writing: Writing) -> bool:
            known = select(artefacts.c.digest).where(artefacts.c.digest == digest)
            if self._busy(digest) or (await writing.connection.execute(known)).first() is not None:
                return False
            await asyncio.to_thread(self._files.remove, digest)
            return True

        return await self._store.write(operation)

    async def _forget_audit(self, writing: Writing) -> None:
        before_us = self._store.clock_us() - int(self._audit_s * SECOND_US)
        await auditing.forget(writing.connection, before_us)
