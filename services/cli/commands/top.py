"""`apportion top`: the mesh at work, live."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from typing import Annotated, Any

import typer

from services._proto.apportion.v1 import scheduler_pb2
from services.cli import remote, show
from services.cli.errors import CommandError
from services.cli.options import Data, Mesh, Scheduler, find_mesh
from services.cli.top.figures import Figures, figures
from services.cli.top.frame import frame
from services.cli.top.screen import Screen, full_screen, is_terminal

app = typer.Typer()

_ANSWER_S = 5.0


@app.command()
def top(
    once: Annotated[bool, typer.Option("--once", help="Print one frame.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object of figures.")] = False,
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="T", help="Only this tenant's.")] = None,
    models: Annotated[bool, typer.Option("--models", help="A line for each model too.")] = False,
    interval: Annotated[float, typer.Option(metavar="S", min=0.2, help="Seconds between frames.")] = 1.0,
    data: Data = None,
    scheduler: Scheduler = None,
) -> None:
    """Watch tenants, lanes, queues and objectives, live.

    USED is device time in the last second, in devices; OF RES. the same as a part of the reservation. IN OBJ. is the part of
    the last minute's requests that met their objective, P99 the 99th percentile of their time from arrival to answer.
    UNIT-S is device time times compute units, in seconds, from the beginning. `q` or Ctrl-C ends it.
    """
    mesh = find_mesh(data, scheduler=scheduler)
    if as_json:
        show.print_json(asyncio.run(_figures(mesh, tenant)))
    elif once or not is_terminal():
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 160
        shown = asyncio.run(_figures(mesh, tenant))
        print("\n".join(frame(shown, width, models=models, colours=sys.stdout.isatty())))
    else:
        # Whoever cannot be reached at the start is said so in one line.
        shown = asyncio.run(_figures(mesh, tenant))
        try:
            with full_screen() as screen:
                _watch(screen, mesh, shown, tenant, interval, models=models)
        except KeyboardInterrupt:
            return


def _watch(screen: Screen, mesh: Mesh, shown: Figures, tenant: str | None, interval_s: float, *, models: bool) -> None:
    """Draws until a key ends it. What cannot be had is said above what was had last."""
    note = ""
    while True:
        screen.draw(frame(shown, screen.size[0], models=models, note=note))
        if screen.wait(interval_s):
            return
        try:
            shown, note = asyncio.run(_figures(mesh, tenant)), ""
        except CommandError as error:
            note = f"{time.strftime('%H:%M:%S')} {error.message}"


async def _figures(mesh: Mesh, tenant: str | None) -> Figures:
    async with remote.scheduler(mesh) as stub:
        fleet: Any = await stub.GetFleet(scheduler_pb2.GetFleetRequest(), timeout=_ANSWER_S)
    return figures(fleet, tenant)
