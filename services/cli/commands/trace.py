"""`apportion trace`: one request's waterfall, or the traces that were kept."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
import time
from typing import Annotated, Any

import grpc
import typer

import services.common.attributes as names
from services.cli import remote, show
from services.cli.errors import CommandError, usage
from services.cli.options import Data, Json, Mesh, Query, find_mesh
from services.tracestore import client
from services.tracestore.core.lane import owner, seen_by
from services.tracestore.core.waterfall import duration_text, render

app = typer.Typer(no_args_is_help=True)

FRONTEND = "apportion-frontend"
"""Who makes the spans that bear verdicts."""
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
REDIRECTED_COLUMNS = 200


@app.command("show")
def show_trace(
    trace_id: Annotated[str, typer.Argument(metavar="ID", help="32 hexadecimal digits.", show_default=False)],
    linked: Annotated[
        bool, typer.Option("--linked/--no-linked", help="Also the batches that the request ran in.")
    ] = True,
    tenant: Annotated[
        str | None,
        typer.Option("--tenant", metavar="T", help="As this tenant may see it: others are neighbours without a name."),
    ] = None,
    data: Data = None,
    query: Query = None,
) -> None:
    """Show one trace as a waterfall, the batch it rode in, and who shared its lane."""
    if not re.fullmatch(r"[0-9a-fA-F]{32}", trace_id):
        raise usage(f"{trace_id!r} is not a trace id of 32 hexadecimal digits")
    lines = asyncio.run(_waterfall(find_mesh(data, query=query), trace_id.lower(), linked, tenant))
    if not lines:
        raise CommandError(f"no trace {trace_id} is kept: only violators and a sample of the rest are")
    print("\n".join(lines))


@app.command("list")
def list_traces(
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="T", help="Only this tenant's.")] = None,
    violated: Annotated[bool, typer.Option("--violated", help="Only requests that missed their objective.")] = False,
    last: Annotated[str, typer.Option(metavar="SPAN", help="How far back: 90s, 15m, 2h, 7d.")] = "15m",
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="How many at most.")] = 50,
    as_json: Json = False,
    data: Data = None,
    query: Query = None,
) -> None:
    """List kept traces, the latest first."""
    wanted: dict[str, str] = {} if tenant is None else {names.TENANT_NAME: tenant}
    if violated:
        wanted[names.SLO_VIOLATED] = "true"
    found = asyncio.run(_find(find_mesh(data, query=query), wanted, seconds(last), limit))
    served = [span for span in (_server_span(trace) for trace in found) if span is not None]
    if as_json:
        show.print_json([_entry(span) for span in served])
        return
    rows = [
        [
            entry["trace_id"],
            entry["tenant"],
            entry["model"],
            duration_text(entry["duration_ns"]),
            "" if entry["objective_us"] is None else duration_text(int(entry["objective_us"] * 1000)),
            entry["outcome"],
        ]
        for entry in map(_entry, served)
    ]
    show.print_table(show.table(None, ["trace", "tenant", "model", ">took", ">objective", "outcome"], rows))


def seconds(text: str) -> float:
    """ "15m" as 900.0. Raises CommandError for another form."""
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if matched is None or float(matched[1]) == 0:
        raise usage(f"--last: {text!r} is not a time span like 90s, 15m, 2h or 7d")
    return float(matched[1]) * UNITS_S[matched[2]]


async def _waterfall(mesh: Mesh, trace_id: str, linked: bool, tenant: str | None) -> list[str]:
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else REDIRECTED_COLUMNS
    address = mesh.address("query")
    try:
        spans = await client.fetch_trace(address, trace_id, credentials=mesh.credentials)
        more = await client.fetch_linked(address, spans, credentials=mesh.credentials) if linked else []
    except grpc.RpcError as error:
        raise remote.explained(error, "trace store", address) from error
    if tenant is not None:
        if owner(spans) != tenant:
            # What is another's answers as what is not there.
            return []
        spans, more = seen_by(tenant, spans), seen_by(tenant, more)
    return render(spans, more, columns=columns)


async def _find(mesh: Mesh, wanted: dict[str, str], last_s: float, limit: int) -> list[list[Any]]:
    address, now = mesh.address("query"), time.time_ns()
    try:
        return await client.find_traces(
            address,
            start_ns=now - int(last_s * 1e9),
            end_ns=now + 1,
            service=FRONTEND,
            wanted=wanted,
            limit=limit,
            credentials=mesh.credentials,
        )
    except grpc.RpcError as error:
        raise remote.explained(error, "trace store", address) from error


def _server_span(trace: list[Any]) -> Any | None:
    """The span that bears the verdict."""
    return next((span for span in trace if names.SLO_VIOLATED in span.attributes), None)


def _entry(span: Any) -> dict[str, Any]:
    return {
        "trace_id": span.trace_id,
        "tenant": str(span.attributes.get(names.TENANT_NAME, "")),
        "model": str(span.attributes.get(names.MODEL_NAME, "")),
        "duration_ns": span.duration_ns,
        "objective_us": span.attributes.get(names.SLO_OBJECTIVE_US),
        "violated": bool(span.attributes[names.SLO_VIOLATED]),
        "outcome": str(span.attributes.get(names.SLO_OUTCOME, "")),
    }
