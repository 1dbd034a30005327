"""ModelStatistics: executors are asked, since requests are counted where they run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
import structlog

from services._proto.apportion.v1 import executor_pb2
from services._proto.inference import grpc_service_pb2 as pb
from services.common.access.callers import calling
from services.common.errors import Reason, Refusal
from services.frontend.core.routing import RoutingTable, find
from services.frontend.core.statistics import Counted, Duration, Size, summed
from services.frontend.forward import Links

log = structlog.get_logger()

WAIT_S = 2.0
"""How long an executor may take to tell its counts."""


class Statistics:
    """Asks every executor and adds up."""

    def __init__(self, table: RoutingTable, links: Links) -> None:
        self._table, self._links = table, links

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, _context: Any) -> pb.ModelStatisticsResponse:
        """Counts of the version, of the model's versions, or of all the caller's models.

        Raises Refusal: MODEL_NOT_FOUND, VERSION_NOT_FOUND; EXECUTOR_LOST where an executor does not tell its counts, since
        sums without them would shrink.
        """
        tenant = calling().tenant
        known = self._known(tenant, request.name, request.version)
        told = await self._told(tenant, request.name)
        return pb.ModelStatisticsResponse(model_stats=[_written(counted) for counted in summed(told, known)])

    def _known(self, tenant: str, name: str, version: str) -> list[tuple[str, int]]:
        if not name:
            return [(route.model, number) for route in self._table.models(tenant) for number in route.versions]
        route = self._table.route(tenant, name)
        if version:
            return [(name, find(route, version).version)]
        return [(name, number) for number in route.versions]

    async def _told(self, tenant: str, model: str) -> list[Counted]:
        request = executor_pb2.GetStatisticsRequest(tenant=tenant, model=model)
        asked = [(link.address, link.statistics(request, WAIT_S)) for link in self._links.up()]
        answers = await asyncio.gather(*(call for _, call in asked), return_exceptions=True)
        told: list[Counted] = []
        for (address, _), answer in zip(asked, answers, strict=True):
            if isinstance(answer, grpc.RpcError):
                raise Refusal(
                    Reason.EXECUTOR_LOST,
                    f"the executor at {address} does not tell its counts; try again",
                    facts={"executor_address": address},
                    retry_after_s=1,
                )
            if isinstance(answer, BaseException):
                raise answer
            told += map(_read, answer.versions)
        return told


def _read(told: executor_pb2.VersionStatistics) -> Counted:
    return Counted(
        model=told.key.name,
        version=told.version,
        rows=told.rows,
        batches=told.batches,
        success=Duration(told.answered, told.answered_ns),
        fail=Duration(told.failed, told.failed_ns),
        queue_ns=told.queue_ns,
        decode_ns=told.decode_ns,
        compute_ns=told.compute_ns,
        encode_ns=told.encode_ns,
        last_arrival_ms=told.last_arrival_ms,
        sizes={size.rows: Size(size.batches, size.decode_ns, size.compute_ns, size.encode_ns) for size in told.by_rows},
    )


def _written(counted: Counted) -> pb.ModelStatistics:
    ran = counted.success.count
    times = {
        "success": (ran, counted.success.ns),
        "fail": (counted.fail.count, counted.fail.ns),
        "queue": (ran, counted.queue_ns),
        "compute_input": (ran, counted.decode_ns),
        "compute_infer": (ran, counted.compute_ns),
        "compute_output": (ran, counted.encode_ns),
    }
    return pb.ModelStatistics(
        name=counted.model,
        version=str(counted.version),
        last_inference=counted.last_arrival_ms,
        inference_count=counted.rows,
        execution_count=counted.batches,
        inference_stats=pb.InferStatistics(**{name: _duration(*time) for name, time in times.items()}),
        batch_stats=_sizes(sorted(counted.sizes.items())),
    )


def _sizes(sizes: Iterable[tuple[int, Size]]) -> list[pb.InferBatchStatistics]:
    return [
        pb.InferBatchStatistics(
            batch_size=rows,
            compute_input=_duration(size.batches, size.decode_ns),
            compute_infer=_duration(size.batches, size.compute_ns),
            compute_output=_duration(size.batches, size.encode_ns),
        )
        for rows, size in sizes
    ]


def _duration(count: int, ns: int) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=count, ns=ns)
