"""`apportion status`: the fleet as the scheduler knows it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from rich.table import Table

from services._proto.apportion.v1 import scheduler_pb2
from services.cli import remote, show
from services.cli.options import Data, Json, Mesh, Scheduler, find_mesh

app = typer.Typer()

NO_GPU = "no CUDA device found"
"""What an executor says where there is nothing to say."""

STATES: dict[int, str] = {
    scheduler_pb2.REPLICA_STATE_LOADING: "[cyan]loading[/]",
    scheduler_pb2.REPLICA_STATE_READY: "[green]ready[/]",
    scheduler_pb2.REPLICA_STATE_DRAINING: "[yellow]draining[/]",
    scheduler_pb2.REPLICA_STATE_REFUSED: "[red]refused[/]",
    scheduler_pb2.REPLICA_STATE_FAILED: "[red]failed[/]",
}


@app.command()
def status(
    as_json: Json = False,
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="T", help="Only this tenant's.")] = None,
    data: Data = None,
    scheduler: Scheduler = None,
) -> None:
    """Who runs where, and at what share."""
    fleet = asyncio.run(_fleet(find_mesh(data, scheduler=scheduler)))
    if as_json:
        show.print_json(fleet)
        return
    for part in (
        executors(fleet),
        ways(fleet),
        lanes(fleet),
        replicas(fleet, tenant),
        tenants(fleet, tenant),
        unplaced(fleet, tenant),
        unpromised(fleet, tenant),
    ):
        if part.row_count:
            show.print_table(part)
            show.out.print()


async def _fleet(mesh: Mesh) -> Any:
    async with remote.scheduler(mesh) as stub:
        return await stub.GetFleet(scheduler_pb2.GetFleetRequest(), timeout=remote.CALL_S)


def executors(fleet: Any) -> Table:
    """One row an executor."""
    rows = [
        [
            one.executor_id,
            "[green]attached[/]" if one.attached else "[red]gone[/]",
            one.address,
            one.device.device_kind,
            scheduler_pb2.Backend.Name(one.device.backend).removeprefix("BACKEND_").lower(),
            str(one.device.compute_units),
            f"{show.size(one.report.memory_used_bytes)} of {show.size(one.device.memory_bytes)}",
        ]
        for one in fleet.executors
    ]
    columns = ["executor", "", "address", "device", "backend", ">units", ">memory"]
    return show.table("executors", columns, rows)


def ways(fleet: Any) -> Table:
    """One row an executor where there is, or was said to be, more than a processor: what keeps its lanes apart, and why that."""
    rows = [
        [one.executor_id, one.device.backend_reason]
        for one in fleet.executors
        if one.device.backend_reason not in ("", NO_GPU)
    ]
    return show.table("how devices are divided", ["executor", "way"], rows)


def lanes(fleet: Any) -> Table:
    """One row a lane: how busy, how long its queue, and what of it has been promised."""
    rows = []
    for one in fleet.executors:
        reports = {lane.lane: lane for lane in one.report.lanes}
        used = {each.lane for each in one.report.replicas}
        layouts = one.device.layouts
        in_force = set(layouts[one.report.layout].lanes if layouts else [lane.lane for lane in one.device.lanes])
        for lane in one.device.lanes:
            if lane.lane not in used | in_force:
                continue
            report = reports.get(lane.lane, scheduler_pb2.LaneReport())
            rows.append(
                [
                    one.executor_id,
                    str(lane.lane),
                    str(lane.compute_units),
                    f"{report.busy_ppm / 10_000:.0f} %",
                    str(report.waiting_requests),
                    str(sum(r.lane == lane.lane for r in one.report.replicas)),
                ]
            )
    return show.table("lanes", ["executor", ">lane", ">units", ">busy", ">waiting", ">replicas"], rows)


def replicas(fleet: Any, tenant: str | None = None) -> Table:
    """One row a replica."""
    rows = []
    for executor in fleet.executors:
        for one in executor.report.replicas:
            if tenant is None or one.key.tenant == tenant:
                rows.append(
                    [
                        one.key.tenant,
                        one.key.name,
                        str(one.version),
                        STATES.get(one.state, "?"),
                        f"{executor.executor_id}/{one.lane}",
                        show.share(one.bandwidth.millidevices),
                        show.size(one.memory_bytes),
                        str(one.waiting_requests),
                        one.message or one.stage,
                    ]
                )
    columns = ["tenant", "model", ">version", "state", "lane", ">share", ">memory", ">waiting", ""]
    return show.table("replicas", columns, sorted(rows))


def tenants(fleet: Any, tenant: str | None = None) -> Table:
    """One row a tenant: what it was promised and what it used."""
    rows = [
        [
            one.tenant,
            show.share(one.reservation.millidevices),
            str(one.weight),
            f"{one.device_ns / 1e9:.2f}",
            str(one.requests),
        ]
        for one in fleet.tenants
        if tenant is None or one.tenant == tenant
    ]
    return show.table("tenants", ["tenant", ">reserved", ">weight", ">device-seconds", ">requests"], rows)


def unplaced(fleet: Any, tenant: str | None = None) -> Table:
    """One row a version that has no place."""
    rows = [
        [one.key.tenant, one.key.name, str(one.version), one.message]
        for one in fleet.unplaced
        if tenant is None or one.key.tenant == tenant
    ]
    return show.table("without a place", ["tenant", "model", ">version", "why"], rows)


def unpromised(fleet: Any, tenant: str | None = None) -> Table:
    """One row a version whose objective is not promised."""
    rows = [
        [one.key.tenant, one.key.name, str(one.version), one.message.replace("[", "\\[")]
        for one in fleet.unpromised
        if tenant is None or one.key.tenant == tenant
    ]
    return show.table("objectives that are not promised", ["tenant", "model", ">version", "why"], rows)
