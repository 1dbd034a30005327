"""`apportion layout`: which layout an executor's device is in, and an operator's say in it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from rich.table import Table

from services._proto.apportion.v1 import scheduler_pb2
from services.cli import remote, show
from services.cli.errors import usage
from services.cli.options import Data, Mesh, Scheduler, find_mesh

AUTO = "auto"

app = typer.Typer()


@app.command()
def layout(
    executor: Annotated[str | None, typer.Argument(metavar="EXECUTOR", help="Whose device.")] = None,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME|auto", help="The layout to bring into force; auto: by demand.")
    ] = None,
    data: Data = None,
    scheduler: Scheduler = None,
) -> None:
    """Without arguments shows the layouts of every device; with them brings one into force and keeps it."""
    mesh = find_mesh(data, scheduler=scheduler)
    if executor is None:
        show.print_table(layouts(asyncio.run(_fleet(mesh))))
        return
    if name is None:
        raise usage("NAME: which layout, or auto? `apportion layout` lists them")
    asyncio.run(_set(mesh, executor, "" if name == AUTO else name))
    chosen = "its layout follows demand" if name == AUTO else f"layout {name} comes into force and stays"
    show.out.print(f"{executor}: {chosen}", highlight=False)


def layouts(fleet: Any) -> Table:
    """One row a layout that a device is prepared for."""
    rows = []
    for one in fleet.executors:
        units = {lane.lane: lane.compute_units for lane in one.device.lanes}
        for number, each in enumerate(one.device.layouts):
            pinned = "in force, as an operator wants" if one.report.layout_pinned else "in force"
            rows.append(
                [
                    one.executor_id,
                    each.name,
                    pinned if number == one.report.layout else "",
                    ", ".join(f"{lane} ({units[lane]})" for lane in each.lanes),
                ]
            )
    return show.table("layouts", ["executor", "layout", "", "lanes (units)"], rows)


async def _fleet(mesh: Mesh) -> Any:
    async with remote.scheduler(mesh) as stub:
        return await stub.GetFleet(scheduler_pb2.GetFleetRequest(), timeout=remote.CALL_S)


async def _set(mesh: Mesh, executor: str, name: str) -> None:
    async with remote.scheduler(mesh) as stub:
        request = scheduler_pb2.SetExecutorLayoutRequest(executor_id=executor, layout=name)
        await stub.SetExecutorLayout(request, timeout=remote.CALL_S)
