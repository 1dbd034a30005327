"""Options that several commands share, and where the mesh is to be found."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.errors import usage
from services.common.access.certificates import Tls
from services.common.channel import Credentials

DEFAULTS: dict[str, str] = {
    "registry": "127.0.0.1:8101",
    "scheduler": "127.0.0.1:8102",
    "query": "127.0.0.1:16685",
    "frontend": "127.0.0.1:8001",
}
"""Where each service listens unless told otherwise."""

OPERATOR = "operator-admin"
"""What `apportion certs init` calls the operator's certificate."""

Data = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", help="Data of the local mesh (env APPORTION_DATA; default ~/.local/share/apportion)."
    ),
]
Registry = Annotated[
    str | None, typer.Option("--registry", metavar="HOST:PORT", help="Where the registry is (env APPORTION_REGISTRY).")
]
Scheduler = Annotated[
    str | None,
    typer.Option("--scheduler", metavar="HOST:PORT", help="Where the scheduler is (env APPORTION_SCHEDULER)."),
]
Query = Annotated[
    str | None,
    typer.Option("--query", metavar="HOST:PORT", help="Where Jaeger's query API is (env APPORTION_QUERY)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True)
class Mesh:
    """Where the mesh is: a flag, else APPORTION_…, else what `apportion up` wrote into the data folder, else the default.

    certs: the folder of its certificates, where it was written too.
    """

    data: Path
    flags: Mapping[str, str]
    written: Mapping[str, str]
    environment: Mapping[str, str]
    certs: Path | None = None

    def address(self, service: str) -> str:
        """HOST:PORT of registry, scheduler, query or frontend. Raises CommandError where it is not of that form."""
        found = (
            self.flags.get(service)
            or self.environment.get(f"APPORTION_{service.upper()}")
            or self.written.get(service)
            or DEFAULTS[service]
        )
        host, colon, port = found.rpartition(":")
        if not (host and colon and port.isdigit()):
            raise usage(f"--{service}: {found!r} is not HOST:PORT")
        return found

    @property
    def credentials(self) -> Credentials:
        """What commands show: APPORTION_CREDENTIAL (an API key or a token of one's own), else the mesh token; and a certificate
        where APPORTION_TLS_… name one, else an operator's where the local mesh was started with certificates. Raises
        CommandError where they name half of one."""
        shown = self.environment.get("APPORTION_CREDENTIAL") or self.environment.get("APPORTION_MESH_TOKEN")
        paths = [self.environment.get(f"APPORTION_TLS_{name}") for name in ("CERTIFICATE", "KEY", "CA")]
        if not any(paths):
            elsewhere = self.flags or any(f"APPORTION_{service.upper()}" in self.environment for service in DEFAULTS)
            return Credentials(shown, None if self.certs is None or elsewhere else certificate(self.certs, OPERATOR))
        if not all(paths):
            raise usage("APPORTION_TLS_CERTIFICATE, APPORTION_TLS_KEY, APPORTION_TLS_CA: set all three, or none")
        return Credentials(shown, Tls(*(Path(path).expanduser() for path in paths if path)))


def certificate(folder: Path, name: str) -> Tls:
    """One of the certificates that `apportion certs init` makes in a folder."""
    return Tls(folder / f"{name}.pem", folder / f"{name}.key", folder / "ca.pem")


def data_folder(flag: Path | None, environment: Mapping[str, str] | None = None) -> Path:
    """Where the local mesh keeps its data."""
    environment = os.environ if environment is None else environment
    if flag is not None:
        return flag.expanduser()
    if "APPORTION_DATA" in environment:
        return Path(environment["APPORTION_DATA"]).expanduser()
    return Path.home() / ".local" / "share" / "apportion"


def find_mesh(data: Path | None = None, **flags: str | None) -> Mesh:
    """Where the mesh is, from a command's options."""
    folder = data_folder(data)
    given = {name: value for name, value in flags.items() if value is not None}
    written = _written(folder / "mesh.json")
    certs = written.get("certs")
    return Mesh(folder, given, _addresses(written), dict(os.environ), Path(certs) if isinstance(certs, str) else None)


def read_addresses(path: Path) -> dict[str, str]:
    """The addresses that a running `apportion up` wrote; empty where there are none."""
    return _addresses(_written(path))


def _addresses(written: Mapping[str, Any]) -> dict[str, str]:
    return {str(name): str(address) for name, address in written.get("addresses", {}).items()}


def _written(path: Path) -> dict[str, Any]:
    try:
        written: Any = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return written if isinstance(written, dict) else {}
