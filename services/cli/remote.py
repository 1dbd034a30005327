"""The services as commands call them: one stub for the time of a block, and every failure one line."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from services._proto.apportion.v1 import registry_pb2_grpc, scheduler_pb2_grpc
from services.cli.errors import CommandError
from services.cli.options import Mesh
from services.common.channel import connect
from services.common.status import from_rpc_error

CALL_S = 20.0
"""How long one call may take, uploads apart."""


class Unreachable(CommandError):
    """The service did not answer at all."""


@asynccontextmanager
async def registry(mesh: Mesh) -> AsyncIterator[Any]:
    """The registry's stub. Raises CommandError for every failure inside the block."""
    async with _stub(mesh, "registry", registry_pb2_grpc.RegistryServiceStub) as stub:
        yield stub


@asynccontextmanager
async def scheduler(mesh: Mesh) -> AsyncIterator[Any]:
    """The scheduler's stub. Raises CommandError for every failure inside the block."""
    async with _stub(mesh, "scheduler", scheduler_pb2_grpc.SchedulerServiceStub) as stub:
        yield stub


@asynccontextmanager
async def _stub(mesh: Mesh, service: str, stub: Any) -> AsyncIterator[Any]:
    address = mesh.address(service)
    async with connect(address, to=service, credentials=mesh.credentials) as channel:
        try:
            yield stub(channel)
        except grpc.RpcError as error:
            raise explained(error, service, address) from error


def explained(error: grpc.RpcError, service: str, address: str) -> CommandError:
    """The one line for a call that failed."""
    refusal = from_rpc_error(error)
    if refusal is not None:
        return Refused(refusal.message, str(refusal.reason))
    code = error.code()
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return Unreachable(f"cannot reach the {service} at {address}: is `apportion up` running?")
    return CommandError(f"the {service} at {address} failed: {code.name}: {error.details()}")


class Refused(CommandError):
    """The service said no. reason: one of services.common.errors.Reason."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
