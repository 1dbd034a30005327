"""`apportion model profile` and `apportion model objective`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from services._proto.apportion.v1 import common_pb2, registry_pb2, scheduler_pb2
from services.cli import remote, show
from services.cli.commands.tenant import millidevices
from services.cli.errors import FAILED, CommandError, usage
from services.cli.options import Data, Json, Mesh, Registry, Scheduler, find_mesh
from services.cli.profiles import measuring, objective, table
from services.cli.push import artefact, parse
from services.common.objectives import WAY_NS, Ask

Tenant = Annotated[str, typer.Option("--tenant", metavar="T", help="Whose model it is.")]


def profile_command(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    tenant: Tenant = "default",
    version: Annotated[int | None, typer.Option(metavar="N", min=1, help="The highest unless given.")] = None,
    as_json: Json = False,
    data: Data = None,
    registry: Registry = None,
) -> None:
    """What a model's batches take: a table, and curves."""
    found = asyncio.run(_version(find_mesh(data, registry=registry), tenant, name, version))
    if as_json:
        show.print_json({"version": found.version, "digest": found.digest, "profiles": list(found.profiles)})
        return
    show.out.print(f"[bold]{tenant}/{name}[/] version {found.version}")
    if not found.profiles:
        why = found.inspection_message or "no worker has loaded it yet"
        raise CommandError(f"{tenant}/{name} version {found.version} has no profile: {why}")
    for each in found.profiles:
        table.print_profile(each)


def objective_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", show_default=False)] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", exists=True, dir_okay=False, help="A .onnx or .pt2 that was not pushed: measured here."
        ),
    ] = None,
    tenant: Tenant = "default",
    version: Annotated[int, typer.Option(metavar="N", min=0, help="0: the highest.")] = 0,
    reserve: Annotated[
        float | None, typer.Option(metavar="R", help="In devices; the tenant's own reservation unless given.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(metavar="N", help="Requests a second; as many as the reservation holds unless given."),
    ] = None,
    burst: Annotated[int, typer.Option(metavar="N", help="Requests that come at once.")] = 1,
    rows: Annotated[int, typer.Option(metavar="N", help="Rows of each request.")] = 1,
    shape: Annotated[
        str, typer.Option(metavar="SHAPE", help="As the profile names it; the costliest unless given.")
    ] = "",
    slo_ms: Annotated[float | None, typer.Option(metavar="N", help="The objective wanted, in milliseconds.")] = None,
    error: Annotated[float, typer.Option(metavar="E", help="How far costs may exceed the profile's p99.")] = 1.0,
    way_ms: Annotated[
        float, typer.Option(metavar="N", help="What the way to the worker and back needs, in milliseconds.")
    ] = WAY_NS / 1e6,
    units: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="With --file: compute units of the lane to measure on.")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=4096, help="With --file: rows that one batch may hold.")
    ] = None,
    batch_axis: Annotated[list[str] | None, typer.Option(metavar="NAME=AXIS", help="With --file: as `push`.")] = None,
    warmup: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SHAPE:VALUE:TYPE", help="With --file: as `push`.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 where what was asked for is not promised.")
    ] = False,
    as_json: Json = False,
    data: Data = None,
    scheduler: Scheduler = None,
) -> None:
    """Which objective can be had at a reservation, before or after a push."""
    if (name is None) == (file is None):
        raise usage("NAME, --file: give one of them")
    wanted_ns = None if slo_ms is None else objective.millis("--slo-ms", slo_ms)
    reserved = None if reserve is None else millidevices(reserve)
    way_ns = objective.millis("--way-ms", way_ms)
    ask = objective.check(Ask(reserved or 0, rate, burst, rows, wanted_ns, error, way_ns, shape_bucket=shape))
    mesh = find_mesh(data, scheduler=scheduler)
    if file is None:
        request = _request(common_pb2.ModelKey(tenant=tenant, name=name), version, reserved, ask)
        told = asyncio.run(objective.ask_scheduler(mesh, request))
        answers, holds = list(told.answers), ""
    else:
        if reserved is None:
            raise usage("--reserve: is needed with --file: nothing is promised without a reservation")
        config = _config(max_batch, batch_axis or [], warmup or [])
        answers, holds = asyncio.run(_of_file(mesh, artefact.inspect(file), config, units, ask))
    _print(answers, holds, as_json)
    if strict and not any(each.verdict == scheduler_pb2.OBJECTIVE_VERDICT_PROMISED for each in answers):
        raise typer.Exit(FAILED)


def _config(max_batch: int | None, batch_axes: list[str], warmups: list[str]) -> registry_pb2.VersionConfig:
    config = registry_pb2.VersionConfig(max_batch_size=max_batch, batch_axes=parse.batch_axes(batch_axes))
    for text in warmups:
        named, extents, filled = parse.warmup(text)
        config.warmup.append(registry_pb2.WarmupTensor(name=named, shape=extents, data=filled))
    return config


def _print(answers: list[Any], holds: str, as_json: bool) -> None:
    if as_json:
        show.print_json({"answers": answers, "holds": holds})
        return
    if not answers:
        raise CommandError("no executor is attached: there is no lane to answer for")
    objective.print_answers(answers)
    if holds:
        show.out.print(f"[dim]{objective.plain(holds)}[/]")


def _request(key: Any, version: int, reserved: int | None, ask: Ask) -> Any:
    request = scheduler_pb2.GetObjectiveRequest(
        key=key,
        version=version,
        rate=ask.rate,
        burst=ask.burst,
        rows=ask.rows,
        shape_bucket=ask.shape_bucket,
        error=ask.error,
        way_us=ask.way_ns // 1_000,
        objective_us=None if ask.objective_ns is None else ask.objective_ns // 1_000,
    )
    if reserved is not None:
        request.reservation.millidevices = reserved
    return request


async def _of_file(
    mesh: Mesh, found: artefact.Artefact, config: Any, units: int | None, ask: Ask
) -> tuple[list[Any], str]:
    fleet = await _fleet(mesh)
    measured = await measuring.measure(found, config, units=units or _usual(fleet), timeout_s=300.0)
    if not measured.profile.points:
        raise CommandError(f"{found.path} was not measured: it rejects inputs that are made up; give --warmup")
    return objective.here(measured, fleet, ask)


async def _fleet(mesh: Mesh) -> Any | None:
    try:
        async with remote.scheduler(mesh) as stub:
            return await stub.GetFleet(scheduler_pb2.GetFleetRequest(), timeout=remote.CALL_S)
    except CommandError:
        return None


def _usual(fleet: Any | None) -> int | None:
    """The size of the mesh's smallest lane of processor cores, which is what there is here; None where there is none."""
    if fleet is None:
        return None
    cpus = [
        each.device for each in fleet.executors if each.attached and each.device.backend == scheduler_pb2.BACKEND_CPU
    ]
    return min((lane.compute_units for device in cpus for lane in device.lanes), default=None)


async def _version(mesh: Mesh, tenant: str, name: str, number: int | None) -> Any:
    async with remote.registry(mesh) as stub:
        key = common_pb2.ModelKey(tenant=tenant, name=name)
        model = (await stub.GetModel(registry_pb2.GetModelRequest(key=key), timeout=remote.CALL_S)).model
    wanted = number or max((each.version for each in model.versions), default=0)
    found = next((each for each in model.versions if each.version == wanted), None)
    if found is None:
        raise CommandError(f"--version: {tenant}/{name} has no version {wanted}")
    return found
