"""Leases and use as frontends and the registry meet them: over gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from scheduler_fakes import FakeExecutor, FakeRegistry, Starts, key, tenant

from services._proto.apportion.v1 import registry_pb2
from services._proto.apportion.v1 import scheduler_pb2 as pb
from services.scheduler import serve as serving
from services.scheduler.core.limiting import LEASE_S


def limited(name: str, **quota: int) -> registry_pb2.Tenant:
    made = tenant(name, 0)
    made.quota.CopyFrom(registry_pb2.Quota(**quota))
    return made


async def until(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def leased(stub: Any, frontend: str, **held: int) -> pb.ReportRequestsResponse:
    """The first answer that has a lease; what is told before it is known what frontends hold has none."""
    demand = pb.QuotaDemand(tenant="t", microrequests_per_s=90_000_000, unleased=not held)
    if held:
        demand.held.CopyFrom(pb.QuotaLease(tenant="t", **held))
    request = pb.ReportRequestsRequest(frontend_id=frontend, demands=[demand], leases_whole=True)
    async with asyncio.timeout(15):
        while True:
            answer = await stub.ReportRequests(request)
            if answer.leases:
                return answer
            await asyncio.sleep(0.05)


async def test_a_frontend_is_answered_with_its_part_of_a_quota(start: Starts, registry: FakeRegistry) -> None:
    registry.tenants = [limited("t", millirequests_per_s=50_000, burst=5, concurrent_requests=7), tenant("free", 0)]
    stub = await start()
    answer = await leased(stub, "one", microrequests_per_s=50_000_000, microburst=5_000_000, concurrent=7)
    (lease,) = answer.leases
    assert lease.tenant == "t"
    assert lease.microrequests_per_s == 50_000_000, "a scheduler that begins anew leaves what is held"
    assert lease.static_microrequests_per_s == 50_000_000
    assert answer.lease_ms == 3000
    assert answer.leases_serial > 0
    (use,) = (await stub.GetQuotas(pb.GetQuotasRequest())).quotas
    assert (use.tenant, use.limit_millirequests_per_s, use.limit_concurrent) == ("t", 50_000, 7)
    assert (use.asked_millirequests_per_s, use.frontends) == (90_000, 1)
    assert not (await stub.GetQuotas(pb.GetQuotasRequest(tenant="free"))).quotas


class Clock:
    """The scheduler's, which this can put on."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


async def test_a_second_frontend_has_its_part_once_the_first_has_let_go_of_it(
    start: Starts, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(serving, "time", clock)
    registry.tenants = [limited("t", millirequests_per_s=50_000, burst=10)]
    stub = await start()
    held = {"microrequests_per_s": 50_000_000, "microburst": 10_000_000}
    first = await leased(stub, "one", **held)
    clock.ahead_s = LEASE_S + 0.1
    await leased(stub, "one", **held)
    asked = pb.QuotaDemand(tenant="t", microrequests_per_s=90_000_000, unleased=True)
    joins = pb.ReportRequestsRequest(frontend_id="two", demands=[asked], leases_whole=True)
    answer = await stub.ReportRequests(joins)
    assert [each.microrequests_per_s for each in answer.leases] == [0]
    assert answer.again_ms == 200
    less = await leased(stub, "one", **held)
    assert less.leases[0].microrequests_per_s == 25_000_000
    said = pb.QuotaDemand(tenant="t", microrequests_per_s=90_000_000)
    serial = less.leases_serial
    await stub.ReportRequests(pb.ReportRequestsRequest(frontend_id="one", demands=[said], leases_serial=serial))
    again = pb.ReportRequestsRequest(frontend_id="two", demands=[said], leases_serial=answer.leases_serial)
    (lease,) = (await stub.ReportRequests(again)).leases
    assert lease.microrequests_per_s == 25_000_000
    assert first.leases_serial < serial
    gone = await stub.ReportRequests(pb.ReportRequestsRequest(frontend_id="one", leaving=True))
    assert gone.lease_ms == 0


async def test_what_executors_and_frontends_count_is_told_to_the_registry_until_it_has_it(
    start: Starts, registry: FakeRegistry
) -> None:
    registry.tenants, registry.fails, registry.refuses = [tenant("t", 0)], 2, {"bad"}
    stub, executor = await start(usage_interval_s=0.05), FakeExecutor()
    await executor.attach(stub)
    usage = [
        pb.Usage(key=key("t/m"), device_ns=700, compute_unit_ns=1400, requests=3, batches=2, incarnation="book"),
        pb.Usage(key=key("bad/m"), device_ns=1, incarnation="book"),
    ]
    await executor.call.write(pb.AttachRequest(report=pb.ExecutorReport(usage=usage)))
    moved = [pb.ByteCounts(executor_id=executor.name, bytes_in=10, bytes_out=20)]
    counts = pb.RequestCounts(key=key("t/m"), requests=1, bytes=moved)
    await stub.ReportRequests(pb.ReportRequestsRequest(frontend_id="frontend-1", counts=[counts]))
    await until(lambda: {each.book for each in registry.used if each.tenant == "t"} >= {"book", "frontend-1"})
    told = {each.book: each for each in registry.used}
    assert told["book"].models[0].counts == registry_pb2.UsageCounts(
        device_ns=700, compute_unit_ns=1400, requests=3, batches=2
    )
    assert told["frontend-1"].models[0].counts == registry_pb2.UsageCounts(bytes_in=10, bytes_out=20)
    assert told["book"].device_kind == told["frontend-1"].device_kind != ""
    assert not any(each.tenant == "bad" for each in registry.used)
