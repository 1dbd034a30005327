"""`apportion tenant`: who may use the mesh, and what each has been promised."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from services._proto.apportion.v1 import common_pb2, registry_pb2, scheduler_pb2
from services.cli import remote, show, signing
from services.cli.errors import CommandError, usage
from services.cli.options import Data, Json, Mesh, Registry, Scheduler, find_mesh

app = typer.Typer(no_args_is_help=True)
key_app = typer.Typer(no_args_is_help=True, help="Make and end API keys.")
app.add_typer(key_app, name="key")
app.command("signers")(signing.signers)

MOST_MILLIDEVICES = 64_000
ROLES = {registry_pb2.KEY_ROLE_TENANT: "tenant", registry_pb2.KEY_ROLE_TENANT_ADMIN: "tenant-admin"}
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]


@app.command()
def create(
    name: Name,
    reserve: Annotated[float, typer.Option(metavar="R", help="Promised, in devices: 0.25 is a quarter of one.")] = 0.0,
    weight: Annotated[int, typer.Option(metavar="W", help="Its part of what is unused, relative to others.")] = 1,
    as_json: Json = False,
    data: Data = None,
    registry: Registry = None,
    scheduler: Scheduler = None,
) -> None:
    """Create a tenant; prints its API key, once."""
    mesh = find_mesh(data, registry=registry, scheduler=scheduler)
    share = millidevices(reserve)
    answer = asyncio.run(_create(mesh, name, share, weight))
    if as_json:
        show.print_json({"tenant": answer.tenant, "api_key": answer.api_key})
        return
    show.out.print(f"tenant [bold]{name}[/] created, {show.share(share)} devices reserved, weight {weight or 1}")
    show.out.print(f"api key {answer.api_key}  [dim](shown once; send it as: authorization: Bearer KEY)[/]")


@app.command("list")
def list_tenants(as_json: Json = False, data: Data = None, registry: Registry = None) -> None:
    """List tenants."""
    tenants = asyncio.run(_all(find_mesh(data, registry=registry)))
    if as_json:
        show.print_json(tenants)
        return
    rows = [
        [one.name, show.share(one.reservation.millidevices), str(one.weight), str(len(one.keys))] for one in tenants
    ]
    show.print_table(show.table(None, ["tenant", ">reserved", ">weight", ">keys"], rows))


@app.command("show")
def show_tenant(name: Name, as_json: Json = False, data: Data = None, registry: Registry = None) -> None:
    """Show one tenant and its keys."""
    tenant = asyncio.run(_get(find_mesh(data, registry=registry), name))
    if as_json:
        show.print_json(tenant)
        return
    show.out.print(
        f"[bold]{tenant.name}[/]  {show.share(tenant.reservation.millidevices)} devices, weight {tenant.weight}"
    )
    for signer in tenant.signers:
        show.out.print(f"artefacts signed by {signer.id}")
    rows = [
        [key.id, ROLES.get(key.role, "tenant-admin"), key.created_at.ToJsonString()[:19], _ends(key)]
        for key in tenant.keys
    ]
    show.print_table(show.table(None, ["key", "role", "created", "ends"], rows))


@app.command()
def remove(name: Name, data: Data = None, registry: Registry = None) -> None:
    """Remove a tenant that has no models."""

    async def call(mesh: Mesh) -> None:
        async with remote.registry(mesh) as stub:
            await stub.DeleteTenant(registry_pb2.DeleteTenantRequest(name=name), timeout=remote.CALL_S)

    asyncio.run(call(find_mesh(data, registry=registry)))
    show.out.print(f"tenant [bold]{name}[/] removed")


@key_app.command("create")
def create_key(
    name: Name,
    admin: Annotated[bool, typer.Option("--admin", help="It may change models and keys, not only run models.")] = False,
    lifetime: Annotated[
        str, typer.Option(metavar="TIME", help="How long it is good: 12h, 30d; 0: until revoked.")
    ] = "0",
    as_json: Json = False,
    data: Data = None,
    registry: Registry = None,
) -> None:
    """Make one more key; prints it, once."""
    role = registry_pb2.KEY_ROLE_TENANT_ADMIN if admin else registry_pb2.KEY_ROLE_TENANT
    request = registry_pb2.CreateApiKeyRequest(tenant=name, role=role, lifetime_s=seconds("--lifetime", lifetime))

    async def call(mesh: Mesh) -> Any:
        async with remote.registry(mesh) as stub:
            return await stub.CreateApiKey(request, timeout=remote.CALL_S)

    _tell_key(name, asyncio.run(call(find_mesh(data, registry=registry))), as_json=as_json)


@key_app.command("rotate")
def rotate_key(
    name: Name,
    key_id: Annotated[str, typer.Argument(metavar="KEY", show_default=False)],
    overlap: Annotated[str, typer.Option(metavar="TIME", help="How long the old one is still good: 30m, 24h.")] = "24h",
    as_json: Json = False,
    data: Data = None,
    registry: Registry = None,
) -> None:
    """Make a key in place of another, which ends a while later; prints the new one, once."""
    request = registry_pb2.RotateApiKeyRequest(tenant=name, key_id=key_id, overlap_s=seconds("--overlap", overlap))

    async def call(mesh: Mesh) -> Any:
        async with remote.registry(mesh) as stub:
            return await stub.RotateApiKey(request, timeout=remote.CALL_S)

    _tell_key(name, asyncio.run(call(find_mesh(data, registry=registry))), as_json=as_json)


def _tell_key(name: str, answer: Any, *, as_json: bool) -> None:
    if as_json:
        show.print_json({"key_id": answer.key.id, "api_key": answer.api_key})
        return
    show.out.print(f"key {answer.key.id} of tenant [bold]{name}[/], {ROLES.get(answer.key.role, 'tenant-admin')}")
    show.out.print(f"api key {answer.api_key}  [dim](shown once)[/]")


def _ends(key: Any) -> str:
    return key.expires_at.ToJsonString()[:19] if key.HasField("expires_at") else "never"


def seconds(flag: str, text: str) -> int:
    """A time written like 90, 30m, 12h or 30d. Raises CommandError."""
    unit = UNITS.get(text[-1:], 0)
    number = text[:-1] if unit else text
    if not number.isdecimal():
        raise usage(f"{flag}: {text!r} is no time; write 90, 30m, 12h or 30d")
    return int(number) * (unit or 1)


@key_app.command("revoke")
def revoke_key(
    name: Name,
    key_id: Annotated[str, typer.Argument(metavar="KEY", show_default=False)],
    data: Data = None,
    registry: Registry = None,
) -> None:
    """End a key."""

    async def call(mesh: Mesh) -> None:
        async with remote.registry(mesh) as stub:
            request = registry_pb2.RevokeApiKeyRequest(tenant=name, key_id=key_id)
            await stub.RevokeApiKey(request, timeout=remote.CALL_S)

    asyncio.run(call(find_mesh(data, registry=registry)))
    show.out.print(f"key {key_id} of tenant [bold]{name}[/] revoked")


def millidevices(devices: float) -> int:
    """Devices as thousandths. Raises CommandError unless it is 0 to 64."""
    if not 0 <= devices * 1000 <= MOST_MILLIDEVICES:
        raise usage(f"--reserve: {devices:g} is not within 0 to {MOST_MILLIDEVICES // 1000} devices")
    return round(devices * 1000)


async def _create(mesh: Mesh, name: str, share: int, weight: int) -> Any:
    reservation = common_pb2.Share(millidevices=share)
    if share:
        await check_reservation(mesh, name, reservation)
    async with remote.registry(mesh) as stub:
        request = registry_pb2.CreateTenantRequest(name=name, reservation=reservation, weight=weight)
        return await stub.CreateTenant(request, timeout=remote.CALL_S)


async def check_reservation(mesh: Mesh, name: str, reservation: common_pb2.Share) -> None:
    """Asks the scheduler whether the promise can be kept; a scheduler that cannot say is a note, not an error."""
    try:
        async with remote.scheduler(mesh) as stub:
            request = scheduler_pb2.CheckReservationRequest(tenant=name, reservation=reservation)
            await stub.CheckReservation(request, timeout=remote.CALL_S)
    except remote.Unreachable:
        show.err.print("[dim]note: the scheduler is down, so nobody checked that the reservation fits[/]")
    except remote.Refused as refused:
        if refused.reason != "OVERSOLD":
            show.err.print(f"[dim]note: the reservation was not checked: {refused.message}[/]")
            return
        raise CommandError(f"--reserve: {refused.message}") from None


async def _all(mesh: Mesh) -> list[Any]:
    found: list[Any] = []
    async with remote.registry(mesh) as stub:
        token = ""
        while True:
            page = await stub.ListTenants(registry_pb2.ListTenantsRequest(page_token=token), timeout=remote.CALL_S)
            found.extend(page.tenants)
            token = page.next_page_token
            if not token:
                return found


async def _get(mesh: Mesh, name: str) -> Any:
    async with remote.registry(mesh) as stub:
        answer = await stub.GetTenant(registry_pb2.GetTenantRequest(name=name), timeout=remote.CALL_S)
        return answer.tenant
