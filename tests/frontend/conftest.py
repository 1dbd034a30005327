"""A frontend on real ports beside fakes of everything that it talks to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from frontend_fakes import FakeExecutor, FakeMesh, route

from services._proto.inference import grpc_service_pb2_grpc
from services.frontend.serve import Frontend
from services.frontend.settings import FrontendSettings

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class World:
    """A frontend, its mesh, and a client's stub."""

    def __init__(self, frontend: Frontend, mesh: FakeMesh, address: str, executors: list[FakeExecutor]) -> None:
        self.frontend, self.mesh, self.address, self.executors = frontend, mesh, address, executors
        self.channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self.stub: Any = grpc_service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    async def until(self, holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
        """Waits until something holds; fails where it never does."""
        async with asyncio.timeout(timeout_s):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


Start = Callable[..., Awaitable[World]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts a world: `await start(FakeExecutor(), routes=…, **settings)`; without routes, `m` is at every executor."""
    async with AsyncExitStack() as stack:

        async def begin(
            *executors: FakeExecutor, routes: Any = None, tenants: Any = (), models: Any = (), **settings: Any
        ) -> World:
            for executor in executors:
                if not executor.address:
                    await executor.start()
                stack.push_async_callback(executor.stop)
            mesh = await FakeMesh().start()
            given = {"listen": "127.0.0.1:0", "metrics_listen": None, "trace_sample": 0.0, "drain_s": 0.0, **settings}
            frontend = Frontend(FrontendSettings(registry=mesh.address, scheduler=mesh.address, **given))
            world = World(frontend, mesh, await frontend.start(), list(executors))
            stack.push_async_callback(mesh.server.stop, 0)
            stack.push_async_callback(frontend.stop)
            stack.push_async_callback(world.channel.close)
            mesh.tell_tenants(tenants, models)
            mesh.tell_routes(routes if routes is not None else [route("m", [e.address for e in executors])])
            await world.until(lambda: frontend.ready)
            return world

        yield begin
