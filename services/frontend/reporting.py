"""Tells the scheduler, about once a second, how requests fared: for people to look at; and what tenants with a quota ask for,
to which it answers with leases. No request ever waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic_ns
from typing import TypeAlias

import grpc
import structlog

from services._proto.apportion.v1 import common_pb2, scheduler_pb2, scheduler_pb2_grpc
from services.frontend.accounting import Accounts, Counts
from services.frontend.core.gate import Demand
from services.frontend.quotas import MILLI_NS, Quotas, demand_message, lease_of

log = structlog.get_logger()

EVERY_S = 1.0
WAIT_S = 2.0
"""How long the scheduler may take to answer."""
SOON_S = 0.2
"""Reports follow one another no sooner, however much is wanted."""
LEAVE_S = 0.5

_State: TypeAlias = tuple[int, int, int, int]


class RequestReports:
    """One frontend's reports. Counts are told from their beginning, so that one that is lost makes no difference."""

    def __init__(
        self,
        frontend_id: str,
        accounts: Accounts,
        channel: grpc.aio.Channel,
        quotas: Quotas | None = None,
        *,
        every_s: float = EVERY_S,
    ) -> None:
        self._frontend_id, self._accounts, self._every_s = frontend_id, accounts, every_s
        self._quotas = quotas or Quotas()
        self._quotas.hungry = self.hurry
        self._stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)  # type: ignore[no-untyped-call]
        self._told: dict[tuple[str, str], _State] = {}
        self._epoch = self._serial = 0
        self._whole = self._leases_whole = True
        self._again_s = every_s
        self._hurried = asyncio.Event()

    def hurry(self) -> None:
        """The next report is wanted soon: a lease is missing, or not enough."""
        self._hurried.set()

    async def run(self) -> None:
        """Reports until cancelled, beginning at once: what comes after a first report is known to be new."""
        while True:
            self._hurried.clear()
            self._again_s = self._every_s
            try:
                await self.report()
            except grpc.RpcError as error:
                # Nobody needs to know of it but whoever looks at the figures, who sees that they end.
                log.debug("requests not reported", code=str(error.code()))
            except Exception as error:
                log.error("requests could not be reported", exc_info=error)
            await self._pause()

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
        sent_ns = monotonic_ns()
        demands = self._ask(request, sent_ns)
        # Until it is answered it is not known who has heard it.
        self._whole = True
        answered = set(changed)
        answer = await self._stub.ReportRequests(request, timeout=WAIT_S)
        # Another scheduler knows nothing of what the one before was told.
        self._whole = answer.epoch != self._epoch and not request.whole
        self._epoch = answer.epoch
        self._told = {key: state for key, state in states.items() if key in self._told or key in answered}
        self._take(answer, demands, sent_ns)

    async def leave(self) -> None:
        """Says that this frontend is about to stop, so that others may have its leases."""
        request = scheduler_pb2.ReportRequestsRequest(frontend_id=self._frontend_id, leaving=True)
        with suppress(grpc.RpcError):
            await self._stub.ReportRequests(request, timeout=LEAVE_S)

    def _ask(self, request: scheduler_pb2.ReportRequestsRequest, now_ns: int) -> dict[str, Demand]:
        """Adds to a report what tenants with a quota ask for."""
        demands = self._quotas.gates.demands(now_ns, whole=self._leases_whole)
        request.demands.extend(demand_message(tenant, demand) for tenant, demand in demands.items())
        request.leases_whole, request.leases_serial = self._leases_whole, self._serial
        return demands

    def _take(self, answer: scheduler_pb2.ReportRequestsResponse, demands: dict[str, Demand], sent_ns: int) -> None:
        """Acts by the leases that an answer has."""
        self._leases_whole = not answer.lease_ms
        if not answer.lease_ms:
            return
        self._serial = answer.leases_serial
        self._quotas.gates.told(demands)
        leases = {each.tenant: lease_of(each) for each in answer.leases}
        self._quotas.gates.take(leases, sent_ns + answer.lease_ms * MILLI_NS, monotonic_ns())
        if answer.again_ms:
            self._again_s = answer.again_ms / 1000

    async def _pause(self) -> None:
        """Until the next report is due, or wanted."""
        soon_s = min(SOON_S, self._every_s)
        await asyncio.sleep(soon_s)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurried.wait(), max(0.0, min(self._again_s, self._every_s) - soon_s))


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


def _moved(counts: Sequence[Counts]) -> dict[str, tuple[int, int]]:
    """Bytes in and out by executor, over all who asked."""
    found: dict[str, tuple[int, int]] = {}
    for each in counts:
        for executor_id, (bytes_in, bytes_out) in each.bytes.items():
            before = found.get(executor_id, (0, 0))
            found[executor_id] = (before[0] + bytes_in, before[1] + bytes_out)
    return found


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
        bytes=[
            scheduler_pb2.ByteCounts(executor_id=executor_id, bytes_in=moved[0], bytes_out=moved[1])
            for executor_id, moved in _moved(counts).items()
        ],
    )
