"""Tells the scheduler, about once a second, how requests fared: for people to look at. No request ever waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

import grpc
import structlog

from services._proto.apportion.v1 import common_pb2, scheduler_pb2, scheduler_pb2_grpc
from services.frontend.accounting import Accounts, Counts

log = structlog.get_logger()

EVERY_S = 1.0
WAIT_S = 2.0
"""How long the scheduler may take to answer."""

_State: TypeAlias = tuple[int, int, int, int]


class RequestReports:
    """One frontend's reports. Counts are told from their beginning, so that one that is lost makes no difference."""

    def __init__(
        self, frontend_id: str, accounts: Accounts, channel: grpc.aio.Channel, *, every_s: float = EVERY_S
    ) -> None:
        self._frontend_id, self._accounts, self._every_s = frontend_id, accounts, every_s
        self._stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)  # type: ignore[no-untyped-call]
        self._told: dict[tuple[str, str], _State] = {}
        self._epoch = 0
        self._whole = True

    async def run(self) -> None:
        """Reports until cancelled, beginning at once: what comes after a first report is known to be new."""
        while True:
            try:
                await self.report()
            except grpc.RpcError as error:
                # Nobody needs to know of it but whoever looks at the figures, who sees that they end.
                log.debug("requests not reported", code=str(error.code()))
            except Exception as error:
                log.error("requests could not be reported", exc_info=error)
            await asyncio.sleep(self._every_s)

    async def report(self) -> None:
        """One report: of what has changed since the last that was answered. Raises grpc.RpcError."""
        counts: dict[tuple[str, str], list[Counts]] = {}
        for key, each in self._accounts.by_model().items():
            counts.setdefault(_owned(key), []).append(each)
        states = {key: _state(each) for key, each in counts.items()}
        changed = [key for key, state in states.items() if self._whole or self._told.get(key) != state]
        request = scheduler_pb2.ReportRequestsRequest(
            frontend_id=self._frontend_id, counts=[_written(key, counts[key]) for key in changed], whole=self._whole
        )
        # Until it is answered it is not known who has heard it.
        self._whole = True
        answered = set(changed)
        answer = await self._stub.ReportRequests(request, timeout=WAIT_S)
        # Another scheduler knows nothing of what the one before was told.
        self._whole = answer.epoch != self._epoch and not request.whole
        self._epoch = answer.epoch
        self._told = {key: state for key, state in states.items() if key in self._told or key in answered}


def _owned(key: tuple[str, str]) -> tuple[str, str]:
    """The model as its owner has it: what others ask of it is demand for it, too."""
    owner, between, name = key[1].partition("/")
    return (owner, name) if between else key


def _state(counts: Sequence[Counts]) -> _State:
    return (
        sum(sum(each.outcomes.values()) for each in counts),
        sum(each.within for each in counts),
        sum(each.missed for each in counts),
        sum(each.in_flight for each in counts),
    )


def _written(key: tuple[str, str], counts: Sequence[Counts]) -> scheduler_pb2.RequestCounts:
    tenant, model = key
    requests, within, missed, in_flight = _state(counts)
    latencies: dict[int, int] = {}
    for each in counts:
        for bucket, count in each.latencies.items():
            latencies[bucket] = latencies.get(bucket, 0) + count
    return scheduler_pb2.RequestCounts(
        key=common_pb2.ModelKey(tenant=tenant, name=model),
        requests=requests,
        within=within,
        missed=missed,
        in_flight=in_flight,
        latencies=[scheduler_pb2.LatencyCount(bucket=bucket, count=count) for bucket, count in latencies.items()],
    )
