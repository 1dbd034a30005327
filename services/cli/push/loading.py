"""Unloading a model and loading it again: the wish in the registry, then the wait until it has come true."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from services._proto.apportion.v1 import registry_pb2, scheduler_pb2
from services.cli import remote, show
from services.cli.errors import CommandError
from services.cli.options import Mesh
from services.cli.push.follow import EVERY_S
from services.cli.push.run import followed
from services.cli.push.standing import same, wanted


async def unload(mesh: Mesh, key: Any, *, timeout_s: float | None) -> None:
    """Has nobody hold the model and, unless timeout_s is None, waits until nobody does."""
    await _wish(mesh, key, unloaded=True)
    if timeout_s is None:
        return
    ends = time.monotonic() + timeout_s
    async with remote.scheduler(mesh) as scheduler:
        while True:
            fleet = await scheduler.GetFleet(scheduler_pb2.GetFleetRequest(), timeout=remote.CALL_S)
            holders = [each.executor_id for each in fleet.executors if each.attached and _holds(each, key)]
            if not holders:
                return
            if time.monotonic() > ends:
                raise CommandError(
                    f"{key.tenant}/{key.name} is unloaded, and after {timeout_s:.0f} s still held by {', '.join(holders)}"
                )
            await asyncio.sleep(EVERY_S)


async def load(mesh: Mesh, key: Any, *, timeout_s: float | None) -> None:
    """Has the model served again and, unless timeout_s is None, waits until every wanted version serves."""
    model = await _wish(mesh, key, unloaded=False)
    if timeout_s is None:
        return
    numbers = wanted(model)
    if not numbers:
        raise CommandError(f"{key.tenant}/{key.name} has no version that is not refused; push another one")
    for number in numbers:
        what = f"{key.tenant}/{key.name} version {number}"
        found = await followed(mesh, key, number, timeout_s, what)
        show.out.print(f"[bold]{what}[/] serves on {found.executor_id}, lane {found.lane}")


async def _wish(mesh: Mesh, key: Any, *, unloaded: bool) -> Any:
    async with remote.registry(mesh) as stub:
        asked = registry_pb2.UpdateModelRequest(key=key, unloaded=unloaded)
        return (await stub.UpdateModel(asked, timeout=remote.CALL_S)).model


def _holds(executor: Any, key: Any) -> bool:
    return any(same(replica.key, key) for replica in executor.report.replicas)
