"""A push from end to end, with what the user sees of it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from services._proto.apportion.v1 import common_pb2, registry_pb2, scheduler_pb2
from services.cli import remote, show
from services.cli.errors import CommandError
from services.cli.options import Mesh
from services.cli.profiles import objective
from services.cli.push.artefact import Artefact
from services.cli.push.follow import until_serving, upload
from services.cli.push.standing import Serving, at_one_row, unloaded_note

DEFAULT_TENANT = "default"
"""Whom callers from this machine are, when they say nothing else."""


async def push(
    mesh: Mesh, request: Any, artefact: Artefact, *, timeout_s: float | None, as_json: bool, strict: bool = False
) -> None:
    """Uploads, makes the version and, unless timeout_s is None, waits until it serves.

    strict: CommandError where it serves but the model's objective is not promised.
    """
    async with remote.registry(mesh) as stub:
        await default_tenant(stub, request.key.tenant)
        made = await store(stub, request, artefact, quiet=as_json)
    if made.model.unloaded:
        # A push says nothing of that: who unloaded the model has it loaded when its files are as they should be.
        show.err.print(f"[yellow]note:[/] {unloaded_note(request.key)}")
    if timeout_s is None or made.model.unloaded:
        if as_json:
            show.print_json({"model": made.model, "version": made.version})
        return
    what = f"{request.key.tenant}/{request.key.name} version {made.version}"
    found = await followed(mesh, request.key, made.version, timeout_s, what)
    told = await objective_of(mesh, made.model, made.version)
    if as_json:
        show.print_json(
            {
                "model": made.model,
                "version": made.version,
                "signature": found.signature,
                "profile": found.profile,
                "objective": told,
            }
        )
    else:
        show.out.print(f"serves on {found.executor_id}, lane {found.lane}")
        print_signature(found.signature)
        if found.profile is not None:
            print_profile(found.profile)
    say_objective(found.profile, made.model, told, quiet=as_json)
    if strict:
        check_promised(what, made.model, told)


async def objective_of(mesh: Mesh, model: Any, version: int) -> Any | None:
    """What the scheduler says of a model's objective; None where there is none, or nobody can say."""
    if not model.slo.HasField("objective_us") or model.traffic_class == common_pb2.TRAFFIC_CLASS_BATCH:
        return None
    return await objective.of_version(mesh, model.key, version)


def say_objective(profile: Any | None, model: Any, told: Any | None, *, quiet: bool) -> None:
    """Whether the objective is promised; where nobody could say, at least whether it can be met at all. quiet: no good news."""
    if told is not None:
        objective.say(told, quiet=quiet)
    elif profile is not None:
        warn_below_cost(profile, model.slo)


def check_promised(what: str, model: Any, told: Any | None) -> None:
    """Raises CommandError where a model has an objective that is not promised, or nobody can say."""
    if not model.slo.HasField("objective_us") or model.traffic_class == common_pb2.TRAFFIC_CLASS_BATCH:
        return
    if told is None:
        raise CommandError(f"--strict: {what} serves, but nobody can say whether its objective is promised")
    if told.verdict != scheduler_pb2.OBJECTIVE_VERDICT_PROMISED:
        raise CommandError(f"--strict: {what} serves, but its objective is not promised")


async def store(stub: Any, request: Any, artefact: Artefact, *, quiet: bool) -> Any:
    """Uploads an artefact and makes its version; the registry's answer. request: without digest and format."""
    request.digest, request.config.format = artefact.digest, artefact.format
    existed = await _upload(stub, request.key.tenant, artefact)
    made = await stub.CreateVersion(request, timeout=remote.CALL_S)
    if not quiet:
        what = f"{request.key.tenant}/{request.key.name} version {made.version}"
        how = "was there already" if made.existed else ("stored; its bytes were there" if existed else "stored")
        show.out.print(f"[bold]{what}[/] {how}, {show.size(artefact.size_bytes)}")
    return made


async def followed(mesh: Mesh, key: Any, version: int, timeout_s: float, what: str) -> Serving:
    """Waits until a version serves, telling what is being done. Raises CommandError where it will not."""
    spinner = show.err.status("waiting for a place")
    with spinner if show.err.is_terminal else nullcontext():
        try:
            return await until_serving(mesh, key, version, timeout_s=timeout_s, stage=lambda text: spinner.update(text))
        except remote.Unreachable as error:
            raise CommandError(f"{what} is stored, but nobody can say whether it serves: {error.message}") from None


async def default_tenant(stub: Any, tenant: str) -> None:
    """Makes the tenant `default` where it is missing, for callers from this machine."""
    if tenant != DEFAULT_TENANT:
        return
    existing = await stub.ListTenants(registry_pb2.ListTenantsRequest(), timeout=remote.CALL_S)
    if any(one.name == tenant for one in existing.tenants):
        return
    await stub.CreateTenant(
        registry_pb2.CreateTenantRequest(name=tenant, reservation=common_pb2.Share(millidevices=0)),
        timeout=remote.CALL_S,
    )
    show.err.print("[dim]note: created the tenant default, with nothing reserved, for callers from this machine[/]")


async def _upload(stub: Any, tenant: str, artefact: Artefact) -> bool:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    # Nobody watches a bar in a pipe, where even its end would leave an empty line.
    with Progress(*columns, console=show.err, transient=True, disable=not show.err.is_terminal) as progress:
        bar = progress.add_task(artefact.path.name, total=artefact.size_bytes)
        return await upload(stub, tenant, artefact, sent=lambda count: progress.advance(bar, count))


def print_signature(signature: Any) -> None:
    """The tensors of a version, and along which axis requests are joined."""
    rows = []
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            axis = f"axis {spec.batch_axis}" if spec.HasField("batch_axis") else "none"
            rows.append([kind, spec.name, spec.datatype, show.shape(spec.shape).replace("[", "\\["), axis])
    show.print_table(show.table(None, ["", "tensor", "type", "shape", "batch"], rows))
    most = signature.max_batch_size
    show.out.print(f"batches of up to {most} rows" if most else "no batches: requests run one at a time")


def print_profile(profile: Any) -> None:
    """What the fewest rows cost, on each size of lane."""
    for units in sorted({point.compute_units for point in profile.points}):
        point = min((each for each in profile.points if each.compute_units == units), key=lambda each: each.rows)
        rows = f"{point.rows} row{'' if point.rows == 1 else 's'}"
        show.out.print(
            f"{rows} of {point.shape_bucket}: p50 {show.duration(point.p50_ns)}, p99 {show.duration(point.p99_ns)} "
            f"on {units} compute units of {profile.device_kind}, {len(profile.segments)} segments"
        )


def warn_below_cost(profile: Any, slo: Any) -> None:
    """Says so where the objective is below what one request takes alone."""
    point = at_one_row(profile)
    if point is None:
        return
    if slo.HasField("objective_us") and point.p99_ns > slo.objective_us * 1000:
        show.err.print(
            f"[yellow]warning:[/] the objective of {show.duration(slo.objective_us * 1000)} is below the model's own p99 "
            f"of {show.duration(point.p99_ns)}: requests will miss it"
        )


def class_name(model: Any) -> str:
    """The class of a model's traffic in a word."""
    return common_pb2.TrafficClass.Name(model.traffic_class).removeprefix("TRAFFIC_CLASS_").lower()
