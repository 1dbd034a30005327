"""Whether this executor serves what it was told to: the health of its service by name, for whoever rolls a fleet.

The health of the whole process ("") says only that it answers: frontends find executors by routes and ask nobody's health.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from services._proto.apportion.v1 import executor_pb2
from services.common.server import Server
from services.executor.core.replica import Phase

SERVICE = executor_pb2.DESCRIPTOR.services_by_name["ExecutorService"].full_name
LOOK_S = 0.5
ON_THE_WAY = (Phase.FETCHING, Phase.WAITING, Phase.LOADING)


def is_whole(phases: Mapping[str, int]) -> bool:
    """Whether no replica is still on its way to being served. phases: how many replicas stand where, by the phase's value."""
    return not any(phases.get(phase.value, 0) for phase in ON_THE_WAY)


async def tell(
    server: Server, attached: asyncio.Event, phases: Callable[[], Mapping[str, int]], *, look_s: float = LOOK_S
) -> None:
    """Says so to health checks until cancelled: not before a scheduler has welcomed this executor for the first time.

    One that loses its scheduler goes on serving, so that changes nothing.
    """
    await server.set_serving(False, SERVICE)
    await attached.wait()
    told = False
    while True:
        whole = is_whole(phases())
        if whole != told:
            await server.set_serving(whole, SERVICE)
            told = whole
        await asyncio.sleep(look_s)
