"""What tests of the frontend talk to: a frontend, its mesh of fakes, and a client's stub."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from frontend_fakes import FakeExecutor, FakeMesh

from services._proto.inference import grpc_service_pb2_grpc
from services.frontend.serve import Frontend

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
