"""The audit log, read: who changed what, and when. It is written with each change, in its transaction (see store.py)."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services._proto.apportion.v1 import registry_pb2
from services.registry.tables import audit
from services.registry.wire import timestamp


async def entries(
    connection: AsyncConnection, tenant: str | None, before: int | None, most: int
) -> list[tuple[int, registry_pb2.AuditEntry]]:
    """(number, entry), the latest first. tenant: whose; None: everybody's. before: only those with a lower number."""
    query = select(audit).order_by(audit.c.id.desc()).limit(most)
    if tenant is not None:
        query = query.where(audit.c.tenant == tenant)
    if before is not None:
        query = query.where(audit.c.id < before)
    return [
        (
            row.id,
            registry_pb2.AuditEntry(
                at=timestamp(row.at_us),
                actor=row.actor,
                actor_tenant=row.actor_tenant,
                action=row.action,
                tenant=row.tenant,
                object=row.object,
                revision=row.revision,
            ),
        )
        for row in await connection.execute(query)
    ]


async def forget(connection: AsyncConnection, before_us: int) -> int:
    """Removes entries from before a time; how many."""
    return int((await connection.execute(delete(audit).where(audit.c.at_us < before_us))).rowcount)
