"""When an executor says that it serves what it was told to."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.server import Server
from services.common.settings import ServiceSettings
from services.executor.core.replica import Phase
from services.executor.readiness import SERVICE, is_whole, tell

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("phase", list(Phase))
def test_only_replicas_on_their_way_keep_an_executor_from_being_whole(phase: Phase) -> None:
    assert is_whole({phase.value: 1}) == (phase not in (Phase.FETCHING, Phase.WAITING, Phase.LOADING))


async def test_an_executor_is_ready_once_attached_and_loaded_and_alive_all_along() -> None:
    server = Server(ServiceSettings(), "127.0.0.1:0", name="executor")
    address = await server.start()
    attached, phases = asyncio.Event(), {"loading": 1}
    telling = asyncio.create_task(tell(server, attached, lambda: phases, look_s=0.01))
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def says(service: str) -> int:
            return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status

        async def becomes(status: int) -> None:
            async with asyncio.timeout(5):
                while await says(SERVICE) != status:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

        await asyncio.sleep(0.03)
        assert await says(SERVICE) == NOT_SERVING
        assert await says("grpc.health.v1.Health") == SERVING
        attached.set()
        await asyncio.sleep(0.05)
        assert await says(SERVICE) == NOT_SERVING
        phases["loading"] = 0
        await becomes(SERVING)
        attached.clear()
        await asyncio.sleep(0.05)
        assert await says(SERVICE) == SERVING
        phases["fetching"] = 1
        await becomes(NOT_SERVING)
    telling.cancel()
    with suppress(asyncio.CancelledError):
        await telling
    await server.stop()
