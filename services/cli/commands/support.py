"""`apportion support`: what a report of a defect needs, in one file, without keys, tokens or tensors."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from services.cli.errors import CommandError
from services.cli.options import Data, Mesh, Query, Registry, Scheduler, find_mesh
from services.common.settings import is_loopback

app = typer.Typer()

ASKED: dict[str, tuple[str, ...]] = {
    "status.json": ("status", "--json"),
    "tenants.json": ("tenant", "list", "--json"),
    "models.json": ("model", "list", "--json"),
    "layouts.txt": ("layout",),
    "violations.json": ("trace", "list", "--violated", "--json"),
}
"""What is asked of the mesh, by the commands that anybody would ask with."""
ASK_S, SCRAPE_S = 60.0, 10.0
LOG_BYTES = 1 << 20
"""Of each log, the end."""
SECRET = re.compile(r"\bap_[A-Za-z0-9_-]{8,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)|(?i:(?<=bearer ))\S+")
PRIVATE = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|DATABASE_URL")


@app.command()
def support(
    target: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A .tar.gz; default: by the time of day.")
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metrics", metavar="HOST:PORT", help="Metrics to take along, beside those of a local mesh."),
    ] = None,
    data: Data = None,
    registry: Registry = None,
    scheduler: Scheduler = None,
    query: Query = None,
) -> None:
    """Collect what a report needs: the fleet, tenants and models, violations, metrics, versions, logs of a local mesh.

    What cannot be had is said in errors.txt and stops nothing. Names of tenants and models are in it; keys, tokens and
    passwords are taken out.
    """
    mesh = find_mesh(data, registry=registry, scheduler=scheduler, query=query)
    file = target or Path(time.strftime("apportion-support-%Y%m%d-%H%M%S.tar.gz"))
    errors: list[str] = []
    secrets = [value for name, value in mesh.environment.items() if PRIVATE.search(name) and len(value) > 3]
    parts = dict(_parts(mesh, metrics or [], errors))
    parts["errors.txt"] = "".join(f"{line}\n" for line in errors)
    try:
        with tarfile.open(file, "w:gz") as archive:
            for name, text in sorted(parts.items()):
                _add(archive, name, redacted(text, secrets))
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror or error}") from None
    print(f"{file}: {len(parts)} files{f', {len(errors)} things could not be had (errors.txt)' if errors else ''}")


def redacted(text: str, secrets: list[str]) -> str:
    """The text without keys, bearer tokens, passwords in URLs and these secrets."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "[redacted]")
    return SECRET.sub("[redacted]", text)


def _parts(mesh: Mesh, metrics: list[str], errors: list[str]) -> Iterator[tuple[str, str]]:
    yield "versions.json", json.dumps(_versions(), indent=1)
    yield "environment.json", json.dumps(_environment(mesh.environment), indent=1)
    for name, arguments in ASKED.items():
        text = _asked(mesh, arguments, errors)
        if text is not None:
            yield name, text
    local = [address for name, address in mesh.written.items() if "metrics" in name]
    for address in dict.fromkeys([*local, *metrics]):
        text = _scraped(address, _metrics_token(address, mesh.environment), errors)
        if text is not None:
            yield f"metrics/{address.replace(':', '_')}.txt", text
    for path in sorted(mesh.data.glob("logs/*.log")):
        yield f"logs/{path.name}", path.read_bytes()[-LOG_BYTES:].decode(errors="replace")


def _asked(mesh: Mesh, arguments: tuple[str, ...], errors: list[str]) -> str | None:
    where = {f"APPORTION_{name.upper()}": address for name, address in mesh.flags.items()}
    command = [sys.executable, "-m", "services.cli", *arguments, "--data", str(mesh.data)]
    try:
        done = subprocess.run(command, env={**mesh.environment, **where}, capture_output=True, text=True, timeout=ASK_S)
    except subprocess.TimeoutExpired:
        errors.append(f"{' '.join(arguments)}: no answer within {ASK_S:g} s")
        return None
    if done.returncode:
        errors.append(
            f"{' '.join(arguments)}: {(done.stderr.strip().splitlines() or ['failed'])[-1].removeprefix('error: ')}"
        )
        return None
    return done.stdout


def _metrics_token(address: str, environment: Mapping[str, str]) -> str | None:
    """What is shown to whoever tells metrics there: as the services have it, who ask for the mesh token beyond loopback."""
    token = environment.get("APPORTION_METRICS_TOKEN")
    return token or (None if is_loopback(address) else environment.get("APPORTION_MESH_TOKEN"))


def _scraped(address: str, token: str | None, errors: list[str]) -> str | None:
    shown = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(f"http://{address}/metrics", headers=shown)
        with urllib.request.urlopen(request, timeout=SCRAPE_S) as answer:
            return answer.read().decode(errors="replace")
    except (OSError, ValueError) as error:
        errors.append(f"metrics of {address}: {error}")
        return None


def _versions() -> dict[str, object]:
    installed = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    return {
        "python": sys.version,
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "packages": dict(sorted(installed.items(), key=lambda each: str(each[0]).lower())),
    }


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Our variables; of those that hold secrets, only that they are set."""
    return {
        name: "[set]" if PRIVATE.search(name) else value
        for name, value in sorted(environment.items())
        if name.startswith("APPORTION_")
    }


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    content = text.encode()
    entry = tarfile.TarInfo(f"apportion-support/{name}")
    entry.size, entry.mtime = len(content), int(time.time())
    archive.addfile(entry, io.BytesIO(content))
