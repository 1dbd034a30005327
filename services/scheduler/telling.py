"""Telling the registry who used how much, until it has it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc
import structlog

from services._proto.apportion.v1 import registry_pb2, registry_pb2_grpc
from services.common.channel import backoff
from services.scheduler.core.telling import Statement, Telling
from services.scheduler.core.usage import Used

log = structlog.get_logger()

MOST = 200
"""Statements that are told at once: the registry takes them in one transaction, which others wait for."""
CALL_TIMEOUT_S = 20.0


class UsageTeller:
    """Tells what is new, every so often. What is not heard is told again; so is everything, by every new scheduler."""

    def __init__(self, channel: grpc.aio.Channel, telling: Telling, every_s: float) -> None:
        self._stub = registry_pb2_grpc.RegistryServiceStub(channel)  # type: ignore[no-untyped-call]
        self._telling, self._every_s = telling, every_s

    async def run(self) -> None:
        """Tells until cancelled."""
        delays = backoff()
        while True:
            await asyncio.sleep(self._every_s)
            try:
                while statements := self._telling.take(MOST):
                    await self._tell(statements)
            except grpc.aio.AioRpcError as error:
                log.info("use not recorded", code=str(error.code()), why=error.details())
                await asyncio.sleep(next(delays))
            else:
                delays = backoff()

    async def _tell(self, statements: list[Statement]) -> None:
        """Tells statements, which are put back where it fails. One that the registry will not have keeps no other one waiting."""
        try:
            await self._stub.RecordUsage(request_of(statements), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                self._telling.put_back(statements)
                raise
            if len(statements) == 1:
                log.error("use cannot be recorded", place=statements[0].place, why=error.details())
                return
            half = len(statements) // 2
            self._telling.put_back(statements[half:])
            await self._tell(statements[:half])
        except asyncio.CancelledError:
            self._telling.put_back(statements)
            raise


def request_of(statements: Iterable[Statement]) -> registry_pb2.RecordUsageRequest:
    """The statements, for the registry."""
    return registry_pb2.RecordUsageRequest(books=[_book(each) for each in statements])


def _book(statement: Statement) -> registry_pb2.UsageBook:
    return registry_pb2.UsageBook(
        tenant=statement.place.tenant,
        executor_id=statement.place.executor_id,
        book=statement.place.book,
        device_kind=statement.device_kind,
        device_compute_units=statement.device_units,
        total=None if statement.total is None else _counts(statement.total),
        models=[
            registry_pb2.ModelUsage(
                name=part.model, life=part.life, counts=_counts(part.used, part.bytes_in, part.bytes_out)
            )
            for part in statement.parts
        ],
    )


def _counts(used: Used, bytes_in: int = 0, bytes_out: int = 0) -> registry_pb2.UsageCounts:
    return registry_pb2.UsageCounts(
        device_ns=used.device_ns,
        compute_unit_ns=used.compute_unit_ns,
        requests=used.requests,
        batches=used.batches,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
    )
