"""`apportion model`: what is served."""

from __future__ import annotations

import asyncio
import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from services._proto.apportion.v1 import common_pb2, registry_pb2
from services.cli import remote, sharing, show, signing
from services.cli.errors import usage
from services.cli.options import Data, Json, Mesh, Registry, Scheduler, find_mesh
from services.cli.profiles import commands, objective
from services.cli.push import artefact, loading, parse, run

app = typer.Typer(no_args_is_help=True)
app.command("profile")(commands.profile_command)
app.command("objective")(commands.objective_command)
app.command("share")(sharing.share)
app.command("unshare")(sharing.unshare)

Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]
Tenant = Annotated[str, typer.Option("--tenant", metavar="T", help="Whose model it is.")]

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it serves.")]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait.")]


class Traffic(StrEnum):
    """The classes of traffic."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


CLASSES = {
    None: common_pb2.TRAFFIC_CLASS_UNSPECIFIED,
    Traffic.INTERACTIVE: common_pb2.TRAFFIC_CLASS_INTERACTIVE,
    Traffic.BATCH: common_pb2.TRAFFIC_CLASS_BATCH,
}


@app.command()
def push(
    name: Name,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            exists=True,
            help="A .onnx or a .pt2 file, a model's folder in Triton's layout, or approved code: .py, .pyz.",
            show_default=False,
        ),
    ],
    tenant: Tenant = "default",
    slo_ms: Annotated[
        float | None, typer.Option(metavar="N", help="The objective: from arrival to answer, in milliseconds.")
    ] = None,
    traffic_class: Annotated[Traffic | None, typer.Option("--class", help="interactive unless told otherwise.")] = None,
    version: Annotated[int | None, typer.Option(metavar="N", min=1, help="The next free number unless given.")] = None,
    max_batch: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=4096, help="Rows that one batch may hold.")
    ] = None,
    batch_axis: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=AXIS", help="Batch axis of a tensor, or none, where the artefact does not tell."),
    ] = None,
    warmup: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SHAPE:VALUE:TYPE",
            help="An input to warm up with: ids=1x16:1, sr=scalar:16000; VALUE and TYPE may be left out. Named again with "
            "another shape, both are measured.",
        ),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=64, help="Copies on different executors.")
    ] = None,
    sign_key: signing.SignKey = None,
    sign_certificate: signing.SignCertificate = None,
    signature: signing.SignatureFile = None,
    wait: Wait = True,
    timeout: Timeout = 300.0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 where it serves but its objective is not promised.")
    ] = False,
    as_json: Json = False,
    data: Data = None,
    registry: Registry = None,
    scheduler: Scheduler = None,
) -> None:
    """Push a model and wait until it serves."""
    if slo_ms is not None and not 0 < slo_ms < math.inf:
        raise usage(f"--slo-ms: {slo_ms:g} is not above 0")
    if strict and not wait:
        raise usage("--strict: whether an objective is promised is known once the model serves; leave out --no-wait")
    request = registry_pb2.CreateVersionRequest(
        key=common_pb2.ModelKey(tenant=tenant, name=name),
        version=version,
        config=registry_pb2.VersionConfig(max_batch_size=max_batch, batch_axes=parse.batch_axes(batch_axis or [])),
        slo=None if slo_ms is None else common_pb2.Slo(objective_us=round(slo_ms * 1000)),
        traffic_class=CLASSES[traffic_class],
        replicas=replicas,
    )
    for text in warmup or []:
        named, shape, filled = parse.warmup(text)
        request.config.warmup.append(registry_pb2.WarmupTensor(name=named, shape=shape, data=filled))
    signs = signing.signs(sign_key, sign_certificate, signature, folder=path.is_dir())
    mesh, timeout_s = find_mesh(data, registry=registry, scheduler=scheduler), timeout if wait else None
    if path.is_dir():
        asyncio.run(_folder(mesh, request, path, signs, timeout_s=timeout_s, as_json=as_json, strict=strict))
    else:
        found = artefact.inspect(path)
        request.artefact_signature = signs(found)
        asyncio.run(run.push(mesh, request, found, timeout_s=timeout_s, as_json=as_json, strict=strict))


async def _folder(
    mesh: Mesh, request: Any, path: Path, signs: signing.Signs, *, timeout_s: float | None, as_json: bool, strict: bool
) -> None:
    """Pushes a folder. What was said on the command line goes before what config.pbtxt says."""
    # The messages of config.pbtxt cannot be loaded beside tritonclient's in one process.
    from services.cli.push.repository import plan as planning
    from services.cli.push.repository import run as pushing

    if request.HasField("version"):
        raise usage(f"--version: {path} is a folder, whose folders are the versions")
    plan = planning.read(path, request.key.name)
    said = registry_pb2.VersionConfig()
    said.CopyFrom(request.config)
    request.config.CopyFrom(plan.config)
    if said.warmup:
        del request.config.warmup[:]
    request.config.MergeFrom(said)
    if plan.replicas is not None and not request.HasField("replicas"):
        request.replicas = plan.replicas
    await pushing.push(mesh, request, plan, signs, timeout_s=timeout_s, json=as_json, strict=strict)


@app.command("list")
def list_models(
    tenant: Annotated[str, typer.Option("--tenant", metavar="T", help="Only this tenant's.")] = "",
    as_json: Json = False,
    data: Data = None,
    registry: Registry = None,
) -> None:
    """List models."""
    models = asyncio.run(_all(find_mesh(data, registry=registry), tenant))
    if as_json:
        show.print_json(models)
        return
    rows = [
        [
            one.key.tenant,
            one.key.name,
            str(len(one.versions)),
            _objective(one.slo),
            run.class_name(one),
            "unloaded" if one.unloaded else str(one.replicas or 1),
        ]
        for one in models
    ]
    show.print_table(show.table(None, ["tenant", "model", ">versions", ">objective", "class", ">replicas"], rows))


@app.command("show")
def show_model(
    name: Name,
    tenant: Tenant = "default",
    as_json: Json = False,
    data: Data = None,
    registry: Registry = None,
    scheduler: Scheduler = None,
) -> None:
    """Show one model with its versions."""
    mesh = find_mesh(data, registry=registry, scheduler=scheduler)
    model = asyncio.run(_get(mesh, tenant, name))
    if as_json:
        show.print_json(model)
        return
    show.out.print(
        f"[bold]{tenant}/{name}[/]  objective {_objective(model.slo)}, {run.class_name(model)}"
        f"{', unloaded' if model.unloaded else ''}"
    )
    rows = [
        [
            str(v.version),
            show.size(v.size_bytes),
            _inspection(v),
            v.digest[:19],
            v.created_at.ToJsonString(),
            v.inspection_message,
        ]
        for v in model.versions
    ]
    show.print_table(show.table(None, [">version", ">size", "inspection", "digest", "created", ""], rows))
    for one in model.versions:
        if one.inspection == registry_pb2.INSPECTION_PASSED:
            show.out.print(f"\nversion {one.version}")
            run.print_signature(one.signature)
            for profile in one.profiles:
                run.print_profile(profile)
            told = asyncio.run(run.objective_of(mesh, model, one.version))
            if told is not None:
                objective.say(told)


@app.command()
def remove(
    name: Name,
    tenant: Tenant = "default",
    version: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only this version.")] = None,
    data: Data = None,
    registry: Registry = None,
) -> None:
    """Remove a model, or one of its versions."""

    async def call(mesh: Mesh) -> None:
        async with remote.registry(mesh) as stub:
            key = common_pb2.ModelKey(tenant=tenant, name=name)
            await stub.DeleteModel(registry_pb2.DeleteModelRequest(key=key, version=version), timeout=remote.CALL_S)

    asyncio.run(call(find_mesh(data, registry=registry)))
    show.out.print(f"{tenant}/{name}{'' if version is None else f' version {version}'} removed")


@app.command()
def unload(
    name: Name,
    tenant: Tenant = "default",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until nobody holds it.")] = True,
    timeout: Timeout = 60.0,
    data: Data = None,
    registry: Registry = None,
    scheduler: Scheduler = None,
) -> None:
    """Take a model off every device, until it is loaded again. What it has is finished; its versions stay."""
    mesh = find_mesh(data, registry=registry, scheduler=scheduler)
    key = common_pb2.ModelKey(tenant=tenant, name=name)
    asyncio.run(loading.unload(mesh, key, timeout_s=timeout if wait else None))
    show.out.print(f"{tenant}/{name} unloaded")


@app.command()
def load(
    name: Name,
    tenant: Tenant = "default",
    wait: Wait = True,
    timeout: Timeout = 300.0,
    data: Data = None,
    registry: Registry = None,
    scheduler: Scheduler = None,
) -> None:
    """Have a model served that was unloaded, and wait until it serves."""
    mesh = find_mesh(data, registry=registry, scheduler=scheduler)
    key = common_pb2.ModelKey(tenant=tenant, name=name)
    asyncio.run(loading.load(mesh, key, timeout_s=timeout if wait else None))


def _objective(slo: Any) -> str:
    return show.duration(slo.objective_us * 1000) if slo.HasField("objective_us") else "none"


def _inspection(version: Any) -> str:
    return registry_pb2.Inspection.Name(version.inspection).removeprefix("INSPECTION_").lower()


async def _all(mesh: Mesh, tenant: str) -> list[Any]:
    found: list[Any] = []
    async with remote.registry(mesh) as stub:
        token = ""
        while True:
            request = registry_pb2.ListModelsRequest(tenant=tenant, page_token=token)
            page = await stub.ListModels(request, timeout=remote.CALL_S)
            found.extend(page.models)
            token = page.next_page_token
            if not token:
                return found


async def _get(mesh: Mesh, tenant: str, name: str) -> Any:
    async with remote.registry(mesh) as stub:
        key = common_pb2.ModelKey(tenant=tenant, name=name)
        return (await stub.GetModel(registry_pb2.GetModelRequest(key=key), timeout=remote.CALL_S)).model
