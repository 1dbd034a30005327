"""`apportion slo`: objectives, and whether they were kept."""

from __future__ import annotations

import asyncio
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from services._proto.apportion.v1 import common_pb2, registry_pb2
from services.cli import remote, show
from services.cli.commands.trace import FRONTEND, seconds
from services.cli.errors import CommandError, usage
from services.cli.options import Data, Json, Mesh, Query, Registry, find_mesh
from services.cli.slo import exports, figures, gather, page, text, words
from services.tracestore.core.budgets import Objective
from services.tracestore.core.report import Report, report
from services.tracestore.core.rollups import Slot

app = typer.Typer(no_args_is_help=True)

BROKEN, DOUBTFUL = 1, 3
"""Exit statuses: an objective is broken; with --strict, the report proves nothing."""
Model = Annotated[str, typer.Argument(metavar="MODEL", show_default=False)]
Tenant = Annotated[str, typer.Option("--tenant", metavar="T", help="Whose model it is.")]
Whose = Annotated[str, typer.Option("--tenant", metavar="T", help="Only this tenant's.", show_default=False)]
Which = Annotated[str, typer.Option("--model", metavar="MODEL", help="Only models of this name.", show_default=False)]


class Format(StrEnum):
    """What objectives are exported as."""

    OPENSLO = "openslo"
    PROMETHEUS = "prometheus"


@app.command("set")
def set_slo(
    model: Model,
    objective: Annotated[
        str, typer.Argument(metavar="OBJECTIVE", help=words.FORM[0].upper() + words.FORM[1:] + ".", show_default=False)
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="One of the same name is replaced.")] = "main",
    tenant: Tenant = "default",
    as_json: Json = False,
    data: Data = None,
    registry: Registry = None,
) -> None:
    """Judge a model by an objective."""
    slo = registry_pb2.ModelSlo(name=name, slo=words.parsed(objective))
    request = registry_pb2.SetModelSloRequest(key=common_pb2.ModelKey(tenant=tenant, name=model), slo=slo)

    async def call(mesh: Mesh) -> Any:
        async with remote.registry(mesh) as stub:
            return (await stub.SetModelSlo(request, timeout=remote.CALL_S)).model

    told = asyncio.run(call(find_mesh(data, registry=registry)))
    if as_json:
        show.print_json([each for each in told.slos if each.name == name])
        return
    (made,) = (each for each in gather.objectives_of(told) if each.name == name)
    said = words.said(made.ratio_ppm, made.objective_us, made.window_s)
    show.out.print(f"{tenant}/{model} is judged by [bold]{name}[/]: {said}")


@app.command("remove")
def remove_slo(
    model: Model,
    name: Annotated[str, typer.Option(metavar="NAME")] = "main",
    tenant: Tenant = "default",
    data: Data = None,
    registry: Registry = None,
) -> None:
    """Judge a model by an objective no longer."""
    request = registry_pb2.RemoveModelSloRequest(key=common_pb2.ModelKey(tenant=tenant, name=model), name=name)

    async def call(mesh: Mesh) -> None:
        async with remote.registry(mesh) as stub:
            await stub.RemoveModelSlo(request, timeout=remote.CALL_S)

    asyncio.run(call(find_mesh(data, registry=registry)))
    show.out.print(f"{tenant}/{model} is not judged by [bold]{name}[/] any more")


@app.command("list")
def list_slos(
    tenant: Whose = "", model: Which = "", as_json: Json = False, data: Data = None, registry: Registry = None
) -> None:
    """List objectives; a model without any is judged by what it promises."""
    held = asyncio.run(_objectives(find_mesh(data, registry=registry), tenant, model))
    said = [words.said(each.ratio_ppm, each.objective_us, each.window_s) for each in held]
    if as_json:
        show.print_json(
            [
                {"tenant": each.tenant, "model": each.model, "name": each.name, "objective": sentence}
                for each, sentence in zip(held, said, strict=True)
            ]
        )
        return
    rows = [[each.tenant, each.model, each.name, sentence] for each, sentence in zip(held, said, strict=True)]
    show.print_table(show.table(None, ["tenant", "model", "name", "objective"], rows))


@app.command("export")
def export_slos(
    form: Annotated[Format, typer.Option("--format", help="What to make of them.")],
    tenant: Whose = "",
    model: Which = "",
    data: Data = None,
    registry: Registry = None,
) -> None:
    """Print objectives as OpenSLO documents, or as Prometheus recording and alert rules."""
    held = asyncio.run(_objectives(find_mesh(data, registry=registry), tenant, model))
    print(exports.openslo(held) if form is Format.OPENSLO else exports.prometheus(held), end="")


@app.command("report")
def report_slos(
    tenant: Whose = "",
    model: Which = "",
    last: Annotated[str, typer.Option(metavar="SPAN", help="How far back: 90s, 15m, 2h, 7d.")] = "1h",
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one HTML page that needs nothing else.")
    ] = None,
    trace_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where the page's traces are, {} for the id: http://jaeger:16686/trace/{}."),
    ] = None,
    traces: Annotated[bool, typer.Option("--traces/--no-traces", help="Look at traces, for causes.")] = True,
    prometheus: Annotated[
        str | None, typer.Option(metavar="URL", help="Counts from here, where traces are in a Jaeger.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help=f"Exit with {DOUBTFUL} where sources disagree, traces lack, or nothing was counted."
        ),
    ] = False,
    as_json: Json = False,
    data: Data = None,
    registry: Registry = None,
    query: Query = None,
) -> None:
    """Say whether objectives were kept, and where the time went. Exits with 1 where one is broken."""
    if trace_url is not None and not trace_url.startswith(("http://", "https://")):
        raise usage(f"--trace-url: {trace_url!r} is not http:// or https://")
    mesh, asked = find_mesh(data, registry=registry, query=query), _asked(last, tenant, model)
    made, slots = asyncio.run(_report(mesh, asked, traces, prometheus))
    if html is not None:
        windows: dict[tuple[str, str], list[Slot]] = {}
        for slot in slots:
            windows.setdefault((slot.tenant, slot.model), []).append(slot)
        _write(html, page.page(made, dict(windows), trace_url))
        print(f"written to {html}", file=sys.stderr)
    if as_json:
        show.print_json(figures.plain(made))
    elif html is None:
        print("\n".join(text.lines(made)))
    if made.broken:
        raise typer.Exit(BROKEN)
    if strict and made.doubtful:
        raise typer.Exit(DOUBTFUL)


def _asked(last: str, tenant: str, model: str) -> gather.Asked:
    """Whole minutes: this one is included, as far as it is known."""
    end_s = (int(time.time()) // gather.MINUTE_S + 1) * gather.MINUTE_S
    span_s = max(gather.MINUTE_S, int(seconds(last)))
    return gather.Asked((end_s - span_s) // gather.MINUTE_S * gather.MINUTE_S, end_s, tenant, model)


async def _objectives(mesh: Mesh, tenant: str, model: str) -> list[Objective]:
    return [objective for told in await gather.models(mesh, tenant, model) for objective in gather.objectives_of(told)]


async def _report(mesh: Mesh, asked: gather.Asked, traces: bool, prometheus: str | None) -> tuple[Report, list[Slot]]:
    objectives = await _objectives(mesh, asked.tenant, asked.model)
    slots = await gather.counted(mesh, asked, objectives, prometheus)
    spans = await gather.traced(mesh, asked, FRONTEND) if traces else None
    return report(slots, objectives, spans, asked.start_s, asked.end_s), slots


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"--html: cannot write {path}: {error.strerror}") from error
