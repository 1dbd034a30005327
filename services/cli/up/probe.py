"""Finds out when services are ready, and when the mesh answers as a whole."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from services._proto.apportion.v1 import scheduler_pb2, scheduler_pb2_grpc
from services.common.channel import Credentials, connect

EVERY_S = 0.1
CALL_S = 2.0
PATIENCE_S = 30.0
"""After this long, the user is told what is being waited for."""

LIVE = "/inference.GRPCInferenceService/ServerReady"


def read_ready(path: Path) -> dict[str, str] | None:
    """The addresses in a service's ready file; None while there is none."""
    try:
        written = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return {key: value for key, value in written.items() if isinstance(value, str)}


async def until_answering(
    scheduler: str, frontend: str, credentials: Credentials, *, executors: int = 1, says: Callable[[str], None]
) -> None:
    """Returns once the scheduler sees that many executors attached and the frontend says that it is ready."""
    started, told = time.monotonic(), False
    to_frontend = connect(frontend, to="frontend", credentials=credentials._replace(mesh_token=None))
    async with connect(scheduler, to="scheduler", credentials=credentials) as to_scheduler, to_frontend:
        while True:
            missing = await _missing(to_scheduler, to_frontend, executors)
            if missing is None:
                return
            if not told and time.monotonic() - started > PATIENCE_S:
                told = True
                says(f"still waiting: {missing}; its log is in the data folder")
            await asyncio.sleep(EVERY_S)


async def _missing(scheduler: grpc.aio.Channel, frontend: grpc.aio.Channel, executors: int) -> str | None:
    try:
        stub: Any = scheduler_pb2_grpc.SchedulerServiceStub(scheduler)  # type: ignore[no-untyped-call]
        fleet = await stub.GetFleet(scheduler_pb2.GetFleetRequest(), timeout=CALL_S)
        attached = sum(executor.attached for executor in fleet.executors)
        if attached < executors:
            return f"{attached} of {executors} executors have attached to the scheduler"
    except grpc.RpcError as error:
        return f"the scheduler does not answer ({error.code().name})"
    return None if await _frontend_ready(frontend) else "the frontend is not ready"


async def _frontend_ready(frontend: grpc.aio.Channel) -> bool:
    """ServerReady, by hand: its messages must not be imported where tritonclient's may be."""
    call = frontend.unary_unary(LIVE, request_serializer=None, response_deserializer=None)
    try:
        answer: bytes = await call(b"", timeout=CALL_S)
    except grpc.RpcError:
        return False
    # ServerReadyResponse has one field: bool ready = 1.
    return answer == b"\x08\x01"
