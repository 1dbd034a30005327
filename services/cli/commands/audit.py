"""`apportion audit`: who changed what, and when."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from services._proto.apportion.v1 import registry_pb2
from services.cli import remote, show
from services.cli.options import Data, Json, Mesh, Registry, find_mesh

app = typer.Typer()


@app.command()
def audit(
    tenant: Annotated[str | None, typer.Option(metavar="T", help="Only what is this tenant's.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=1000, help="So many, the latest first.")] = 50,
    as_json: Json = False,
    data: Data = None,
    registry: Registry = None,
) -> None:
    """Show the latest changes to tenants, keys, models and artefacts."""
    entries = asyncio.run(_latest(find_mesh(data, registry=registry), tenant or "", lines))
    if as_json:
        show.print_json(entries)
        return
    rows = [[one.at.ToJsonString()[:19], one.actor, one.action, one.tenant, one.object] for one in entries]
    show.print_table(show.table(None, ["when", "who", "what", "tenant", "on"], rows))


async def _latest(mesh: Mesh, tenant: str, lines: int) -> list[Any]:
    async with remote.registry(mesh) as stub:
        request = registry_pb2.ListAuditRequest(tenant=tenant, page_size=lines)
        return list((await stub.ListAudit(request, timeout=remote.CALL_S)).entries)
