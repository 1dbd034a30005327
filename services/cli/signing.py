"""Signing artefacts at a push, and `apportion tenant signers`: whose signatures a tenant's artefacts need."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from services._proto.apportion.v1 import registry_pb2
from services.cli import remote, show
from services.cli.errors import CommandError, usage
from services.cli.options import Data, Json, Mesh, Registry, find_mesh
from services.cli.push.artefact import Artefact
from services.common.errors import Refusal
from services.common.signing import MOST_BUNDLE_BYTES, sign, signer_of

PASSWORD = "APPORTION_SIGN_PASSWORD"
Signs = Callable[[Artefact], bytes]
"""The signature of a file that is pushed; empty: none."""

SignKey = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", exists=True, dir_okay=False, help=f"Sign with this private key; its password: {PASSWORD}."
    ),
]
SignCertificate = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="The signer's certificate, and those between it and its authority.",
    ),
]
SignatureFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", exists=True, dir_okay=False, help="A signature that model_signing has made."),
]


def unsigned(artefact: Artefact) -> bytes:  # noqa: ARG001
    """No signature."""
    return b""


def signs(key: Path | None, certificate: Path | None, signature: Path | None, *, folder: bool) -> Signs:
    """How files are signed, by what was said on the command line. Raises CommandError."""
    if key is not None and signature is not None:
        raise usage("--sign-key and --signature: give one of them")
    if certificate is not None and key is None:
        raise usage("--sign-certificate: needs --sign-key")
    if signature is not None:
        if folder:
            raise usage("--signature: is of one file; sign a folder's files with --sign-key")
        return lambda _: _read(signature)
    return unsigned if key is None else lambda artefact: signed(artefact, key, certificate)


def signed(artefact: Artefact, key: Path, certificate: Path | None) -> bytes:
    """A signature of a file. Raises CommandError."""
    try:
        return sign(artefact.digest, key, certificates=certificate, password=os.environ.get(PASSWORD))
    except Refusal as refusal:
        raise CommandError(f"--sign-key: {refusal.message}") from None
    except (OSError, ValueError, TypeError) as error:
        raise CommandError(f"--sign-key: {artefact.path.name} cannot be signed with {key}: {error}") from None


def _read(signature: Path) -> bytes:
    size = signature.stat().st_size
    if size > MOST_BUNDLE_BYTES:
        raise CommandError(f"--signature: {signature} has {size} bytes, more than {MOST_BUNDLE_BYTES}")
    return signature.read_bytes()


def signers(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    add: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", exists=True, help="A public key, or an authority's certificate, as PEM."),
    ] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="ID", help="One that signs no more.")] = None,
    as_json: Json = False,
    data: Data = None,
    registry: Registry = None,
) -> None:
    """Show or change who signs a tenant's artefacts. Where anybody does, no other artefact is taken or loaded."""
    mesh = find_mesh(data, registry=registry)
    found = asyncio.run(_changed(mesh, name, [_signer(path) for path in add or []], remove or []))
    if as_json:
        show.print_json({"tenant": name, "signers": [each.id for each in found]})
        return
    if not found:
        show.out.print(f"artefacts of tenant [bold]{name}[/] need no signature")
    for each in found:
        show.out.print(each.id)


def _signer(path: Path) -> Any:
    try:
        return registry_pb2.Signer(pem=signer_of(path.read_text(encoding="utf-8")).pem)
    except (OSError, ValueError) as error:
        raise CommandError(f"--add: {path} {error}") from None


async def _changed(mesh: Mesh, name: str, more: list[Any], fewer: list[str]) -> list[Any]:
    async with remote.registry(mesh) as stub:
        answer = await stub.GetTenant(registry_pb2.GetTenantRequest(name=name), timeout=remote.CALL_S)
        held = list(answer.tenant.signers)
        unknown = set(fewer) - {each.id for each in held}
        if unknown:
            raise CommandError(f"--remove: {', '.join(sorted(unknown))} does not sign for {name}")
        if not more and not fewer:
            return held
        kept = [each for each in held if each.id not in fewer]
        wanted = registry_pb2.Signers(signers=[*kept, *more])
        request = registry_pb2.UpdateTenantRequest(name=name, signers=wanted)
        return list((await stub.UpdateTenant(request, timeout=remote.CALL_S)).tenant.signers)
