"""Storing and reading artefacts for a tenant.

A tenant learns of an artefact only what it has shown to know: whoever has not uploaded the bytes itself has to send them
all, whether they are here or not, and downloads only what one of its versions refers to.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import BinaryIO

from sqlalchemy import and_, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.errors import Reason, Refusal, invalid
from services.registry import rows
from services.registry.artefacts import Artefacts, Incoming, refused, storage_full
from services.registry.core import names, quotas, rules
from services.registry.store import Store, Writing, found
from services.registry.tables import artefact_owners, artefacts, versions

PART_BYTES = 1 << 20


class Uploads:
    """Uploads into and downloads out of one artefact store.

    most_bytes: the largest artefact. idle_s: how long an upload may be silent.
    """

    def __init__(self, store: Store, files: Artefacts, *, most_bytes: int, idle_s: float) -> None:
        self._store, self._files, self._most_bytes, self._idle_s = store, files, most_bytes, idle_s
        self._coming: Counter[str] = Counter()

    async def receive(self, tenant: str, digest: str, size_bytes: int, data: AsyncIterator[bytes]) -> bool:
        """Stores `data` for a tenant; True where the tenant had it, then `data` is left unread.

        Raises TENANT_NOT_FOUND, FIELD_INVALID, ARTEFACT_TOO_LARGE, SIZE_MISMATCH, DIGEST_MISMATCH, STORAGE_FULL,
        QUOTA_EXCEEDED.
        """
        names.name("header.tenant", tenant)
        names.digest("header.digest", digest)
        rules.artefact_size(size_bytes, self._most_bytes)

        async def operation(connection: AsyncConnection) -> int | None:
            owner = found(await rows.tenant(connection, tenant), tenant, "header.tenant")
            owned = await owned_size(connection, tenant, digest)
            if owned is None:
                # Before the bytes come; asked again when they are here, for others may come at the same time.
                quotas.may_store(owner, await rows.stored_bytes(connection, tenant), size_bytes)
            return owned

        owned = await self._store.read(operation)
        if owned is not None and await self.holds(digest, owned):
            _same_size(size_bytes, owned)
            if await self._store.write(lambda writing: _touch(writing, tenant, digest)):
                return True
        self._coming[digest] += 1
        try:
            await self._take(digest, size_bytes, data)
            await self._store.write(lambda writing: self._claimed(writing, tenant, digest, size_bytes))
        except OSError as error:
            raise refused(self._files, error, size_bytes) from error
        finally:
            self._coming[digest] -= 1
            if not self._coming[digest]:
                del self._coming[digest]
        return False

    def busy(self, digest: str) -> bool:
        """Whether an artefact is on its way in, through this process."""
        return digest in self._coming

    async def _claimed(self, writing: Writing, tenant: str, digest: str, size_bytes: int) -> None:
        # Inside the transaction, which keeps every collector away: another registry's may have come before it.
        if not await self.holds(digest, size_bytes):
            raise Refusal(Reason.NOT_SERVING, "the artefact was collected as it came; push it again", retry_after_s=0.1)
        await _claim(writing, tenant, digest, size_bytes)

    async def holds(self, digest: str, size_bytes: int) -> bool:
        """Whether the bytes are here, and whole."""
        try:
            return await asyncio.to_thread(self._files.size, digest) == size_bytes
        except OSError as error:
            raise refused(self._files, error, size_bytes) from error

    async def _take(self, digest: str, size_bytes: int, data: AsyncIterator[bytes]) -> None:
        free = await asyncio.to_thread(self._files.free_bytes)
        if free is not None and free < size_bytes:
            raise storage_full(self._files, size_bytes)
        incoming = await asyncio.to_thread(self._files.begin)
        try:
            await self._feed(incoming, size_bytes, data)
            if incoming.digest() != digest:
                raise Refusal(
                    Reason.DIGEST_MISMATCH,
                    f"header.digest: the bytes hash to {incoming.digest()}, not {digest}",
                    field="header.digest",
                    facts={"announced_digest": digest, "digest": incoming.digest()},
                )
            await asyncio.to_thread(incoming.commit)
        finally:
            # Goes on in its thread where this call is cancelled; does nothing after a commit.
            await self._store.finish(asyncio.to_thread(incoming.discard))

    async def _feed(self, incoming: Incoming, size_bytes: int, data: AsyncIterator[bytes]) -> None:
        received = 0
        while (part := await self._next(data)) is not None:
            if len(part) > PART_BYTES:
                raise invalid("data", f"a message holds at most {PART_BYTES} bytes; got {len(part)}")
            received += len(part)
            if received > size_bytes:
                raise _size_mismatch(f"more than the {size_bytes} bytes announced came", size_bytes, received)
            await asyncio.to_thread(incoming.feed, part)
        if received < size_bytes:
            raise _size_mismatch(f"{received} of the {size_bytes} bytes announced came", size_bytes, received)

    async def _next(self, data: AsyncIterator[bytes]) -> bytes | None:
        try:
            async with asyncio.timeout(self._idle_s):
                return await anext(data, None)
        except TimeoutError:
            message = f"the upload was silent for {self._idle_s:g} s; begin again"
            raise Refusal(Reason.DEADLINE_EXCEEDED, message) from None

    async def send(self, tenant: str, digest: str) -> AsyncIterator[bytes]:
        """An artefact's bytes in parts of 1 MiB.

        Raises ARTEFACT_NOT_FOUND unless a version of the tenant refers to it, DIGEST_MISMATCH at the end where the
        bytes are no longer what was stored.
        """
        names.name("tenant", tenant)
        names.digest("digest", digest)
        if not await self._store.read(lambda connection: _refers(connection, tenant, digest)):
            raise missing(tenant, digest)
        try:
            file = await asyncio.to_thread(self._files.open, digest)
        except FileNotFoundError:
            raise missing(tenant, digest) from None
        except OSError as error:
            raise refused(self._files, error, 0) from error
        try:
            async for part in _parts(file, digest):
                yield part
        finally:
            await self._store.finish(asyncio.to_thread(file.close))


async def _parts(file: BinaryIO, digest: str) -> AsyncIterator[bytes]:
    hashed = hashlib.sha256()
    while part := await asyncio.to_thread(file.read, PART_BYTES):
        await asyncio.to_thread(hashed.update, part)
        yield part
    if f"sha256:{hashed.hexdigest()}" != digest:
        raise Refusal(Reason.DIGEST_MISMATCH, f"digest: the stored bytes are no longer {digest}; push them again")


def missing(tenant: str, digest: str) -> Refusal:
    """ARTEFACT_NOT_FOUND: the same whether it is nowhere or another tenant's."""
    message = f"digest: tenant {tenant!r} has no artefact {digest}; upload it first"
    return Refusal(Reason.ARTEFACT_NOT_FOUND, message, field="digest")


async def owned_size(connection: AsyncConnection, tenant: str, digest: str) -> int | None:
    """Bytes of an artefact that the tenant has uploaded; None: it has not."""
    query = (
        select(artefacts.c.size_bytes)
        .join(artefact_owners, artefact_owners.c.digest == artefacts.c.digest)
        .where(and_(artefact_owners.c.tenant == tenant, artefacts.c.digest == digest))
    )
    return (await connection.execute(query)).scalar_one_or_none()


async def _refers(connection: AsyncConnection, tenant: str, digest: str) -> bool:
    query = select(versions.c.version).where(and_(versions.c.tenant == tenant, versions.c.digest == digest)).limit(1)
    return (await connection.execute(query)).first() is not None


async def _claim(writing: Writing, tenant: str, digest: str, size_bytes: int) -> None:
    """Notes that the tenant has the artefact. Watchers are not told: versions are what they see."""
    owner = await writing.tenant(tenant, "header.tenant")
    connection, now_us = writing.connection, writing.now_us
    known = select(artefacts.c.digest).where(artefacts.c.digest == digest)
    if (await connection.execute(known)).first() is None:
        row = {"digest": digest, "size_bytes": size_bytes, "created_at_us": now_us}
        await connection.execute(insert(artefacts).values(row))
    if await owned_size(connection, tenant, digest) is None:
        quotas.may_store(owner, await rows.stored_bytes(connection, tenant), size_bytes)
        claim = {"tenant": tenant, "digest": digest, "uploaded_at_us": now_us}
        await connection.execute(insert(artefact_owners).values(claim))
        writing.tell(tenant, digest)


async def _touch(writing: Writing, tenant: str, digest: str) -> bool:
    """Notes that the tenant means to use what it has uploaded before; False: it has been collected."""
    place = and_(artefact_owners.c.tenant == tenant, artefact_owners.c.digest == digest)
    touched = update(artefact_owners).where(place).values(uploaded_at_us=writing.now_us)
    return bool((await writing.connection.execute(touched)).rowcount)


def _same_size(announced: int, size_bytes: int) -> None:
    if announced != size_bytes:
        raise _size_mismatch(f"the artefact has {size_bytes} bytes, not {announced}", announced, size_bytes)


def _size_mismatch(problem: str, announced: int, received: int) -> Refusal:
    return Refusal(
        Reason.SIZE_MISMATCH,
        f"header.size_bytes: {problem}",
        field="header.size_bytes",
        facts={"announced_bytes": announced, "bytes": received},
    )
