"""`apportion model share|unshare`: who else may read and run a model."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from services._proto.apportion.v1 import common_pb2, registry_pb2
from services.cli import remote, show
from services.cli.options import Data, Mesh, Registry, find_mesh

Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]
Owner = Annotated[str, typer.Option("--tenant", metavar="T", help="Whose model it is.")]
Other = Annotated[str, typer.Option("--with", metavar="T", help="The other tenant.", show_default=False)]


def share(name: Name, other: Other, tenant: Owner = "default", data: Data = None, registry: Registry = None) -> None:
    """Let another tenant read and run a model, as TENANT/NAME, on its owner's share."""
    asyncio.run(_changed(find_mesh(data, registry=registry), tenant, name, other, revoked=False))
    show.out.print(f"{tenant}/{name} is shared with [bold]{other}[/], who calls it {tenant}/{name}")


def unshare(name: Name, other: Other, tenant: Owner = "default", data: Data = None, registry: Registry = None) -> None:
    """Take that back."""
    asyncio.run(_changed(find_mesh(data, registry=registry), tenant, name, other, revoked=True))
    show.out.print(f"{tenant}/{name} is shared with [bold]{other}[/] no more")


async def _changed(mesh: Mesh, tenant: str, name: str, other: str, *, revoked: bool) -> Any:
    key = common_pb2.ModelKey(tenant=tenant, name=name)
    async with remote.registry(mesh) as stub:
        request = registry_pb2.ShareModelRequest(key=key, with_tenant=other, revoked=revoked)
        return await stub.ShareModel(request, timeout=remote.CALL_S)
