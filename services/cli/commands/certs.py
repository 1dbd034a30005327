"""`apportion certs`: an authority for development, and certificates for services, tenants and operators."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli import show
from services.cli.certs import issuing
from services.cli.errors import usage
from services.common.access.callers import Role

app = typer.Typer(no_args_is_help=True)
ROLES = {role.value: role for role in (Role.SERVICE, Role.TENANT, Role.TENANT_ADMIN, Role.OPERATOR)}
Folder = Annotated[Path, typer.Argument(metavar="DIR", show_default=False)]
Hosts = Annotated[
    list[str] | None, typer.Option("--host", metavar="NAME", help="A name or address that services are reached by.")
]
Days = Annotated[int, typer.Option("--days", min=1, max=3650, help="How long certificates are good.")]


@app.command()
def init(folder: Folder, host: Hosts = None, days: Days = 365) -> None:
    """Make an authority and a certificate for each service, and one for an operator."""
    authority = issuing.begin(folder, days=days)
    hosts = (*issuing.LOCAL, *(host or ()))
    for service in issuing.SERVICES:
        authority.issue(Role.SERVICE, service, hosts=hosts, days=days)
    authority.issue(Role.OPERATOR, "admin", days=days)
    show.out.print(f"authority and certificates in {folder}; keep ca.key where no service runs")
    show.out.print("each service: APPORTION_TLS_CERTIFICATE, APPORTION_TLS_KEY, APPORTION_TLS_CA (ca.pem)")


@app.command()
def issue(
    folder: Folder,
    role: Annotated[str, typer.Argument(metavar="service|tenant|tenant-admin|operator", show_default=False)],
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    host: Hosts = None,
    days: Days = 365,
) -> None:
    """Sign one more certificate: of a service (frontend, registry …), of a tenant, or of an operator."""
    if role not in ROLES:
        raise usage(f"{role!r} is none of {', '.join(ROLES)}")
    if "/" in name or not name:
        raise usage(f"{name!r} is no name")
    path = issuing.opened(folder).issue(ROLES[role], name, hosts=(*issuing.LOCAL, *(host or ())), days=days)
    show.out.print(f"{path} and its key, for {days} days")


@app.command()
def revoke(
    folder: Folder,
    certificate: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, show_default=False)],
) -> None:
    """Take a certificate back before it ends: puts it on the authority's list, which services read again by themselves."""
    path = issuing.opened(folder).revoke(certificate)
    show.out.print(f"{certificate} is on {path}; each service: APPORTION_TLS_CRL")
