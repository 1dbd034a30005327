"""Telling the registry what workers found, until it has it."""

from __future__ import annotations

import asyncio

import grpc
import structlog

from services._proto.apportion.v1 import registry_pb2_grpc
from services.common.channel import backoff
from services.scheduler import convert
from services.scheduler.core.events import RecordInspection

log = structlog.get_logger()

FINAL = frozenset({grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION})
"""Codes after which another try cannot help: the version is gone, or the registry will not have it."""
CALL_TIMEOUT_S = 10.0


class InspectionRecorder:
    """Records inspections one after another, each tried again with backoff; one that fails lets the others go first."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = registry_pb2_grpc.RegistryServiceStub(channel)  # type: ignore[no-untyped-call]
        self._waiting: asyncio.Queue[RecordInspection] = asyncio.Queue()

    def record(self, inspection: RecordInspection) -> None:
        """Takes one to be recorded."""
        self._waiting.put_nowait(inspection)

    async def run(self) -> None:
        """Records until cancelled."""
        delays = backoff()
        while True:
            inspection = await self._waiting.get()
            if await self._try(inspection):
                delays = backoff()
                continue
            self._waiting.put_nowait(inspection)
            await asyncio.sleep(next(delays))

    async def _try(self, inspection: RecordInspection) -> bool:
        subject = {"model": str(inspection.ref.key), "version": inspection.ref.version}
        try:
            await self._stub.RecordInspection(convert.inspection(inspection), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            final = error.code() in FINAL
            log.info("inspection not recorded", again=not final, code=str(error.code()), why=error.details(), **subject)
            return final
        log.info("inspection recorded", outcome=type(inspection.outcome).__name__.lower(), **subject)
        return True
