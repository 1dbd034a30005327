"""A frontend on real ports beside fakes of everything that it talks to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from frontend_fakes import FakeExecutor, FakeMesh, route
from frontend_world import Start, World

from services.frontend.serve import Frontend
from services.frontend.settings import FrontendSettings


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
