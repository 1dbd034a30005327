"""Quotas between the contracts' messages and the core's words."""

from __future__ import annotations

from services._proto.apportion.v1 import scheduler_pb2 as pb
from services.common.errors import invalid
from services.scheduler.core.limiting import Answer, HeldTime, QuotaReport, QuotaUse
from services.scheduler.core.pools import Asked, Grant, Part
from services.scheduler.core.quotas import AGAIN_S


def quota_report(message: pb.ReportRequestsRequest) -> QuotaReport:
    """What a frontend says of tenants with a quota. Refuses one without a name."""
    if not message.frontend_id:
        raise invalid("frontend_id", "must not be empty")
    held = (each for each in message.demands if message.leases_whole and each.held.HasField("device_requests"))
    return QuotaReport(
        message.frontend_id,
        {each.tenant: _asked(each, whole=message.leases_whole) for each in message.demands},
        message.leases_serial,
        message.leases_whole,
        message.leaving,
        tuple(HeldTime(each.tenant, each.held.device_level_ns) for each in held),
    )


def _asked(message: pb.QuotaDemand, *, whole: bool) -> Asked:
    held = _part(message.held) if whole and message.HasField("held") else None
    return Asked(message.microrequests_per_s, message.in_flight, message.concurrent, held, message.unleased)


def _part(message: pb.QuotaLease) -> Part:
    return Part(
        message.microrequests_per_s if message.HasField("microrequests_per_s") else None,
        message.microburst,
        message.concurrent if message.HasField("concurrent") else None,
    )


def add_answer(response: pb.ReportRequestsResponse, answer: Answer) -> pb.ReportRequestsResponse:
    """The response, with the leases."""
    response.leases.extend(_lease(tenant, grant) for tenant, grant in answer.grants.items())
    response.leases_serial, response.lease_ms = answer.serial, int(answer.lease_s * 1000)
    response.again_ms = int(AGAIN_S * 1000) if answer.again else 0
    return response


def _lease(tenant: str, grant: Grant) -> pb.QuotaLease:
    return pb.QuotaLease(
        tenant=tenant,
        microrequests_per_s=grant.part.rate,
        microburst=grant.part.burst,
        mint=grant.mint,
        concurrent=grant.part.concurrent,
        device_requests=grant.device_requests,
        device_level_ns=grant.device_level_ns,
        device_retry_ms=min(int(grant.device_retry_s * 1000), (1 << 32) - 1),
        static_microrequests_per_s=grant.afterwards.rate,
        static_microburst=grant.afterwards.burst,
        static_concurrent=grant.afterwards.concurrent or 0,
    )


def quota_use(use: QuotaUse) -> pb.QuotaUse:
    """A tenant's quota and what is used of it."""
    quota = use.quota
    return pb.QuotaUse(
        tenant=use.tenant,
        limit_millirequests_per_s=None if quota.rate is None else quota.rate // 1000,
        asked_millirequests_per_s=use.asked // 1000,
        limit_concurrent=quota.concurrent,
        in_flight=use.in_flight,
        limit_device_ms=None if quota.device_ns is None else quota.device_ns // 1_000_000,
        device_interval_s=0 if quota.device_ns is None else quota.device_interval_s,
        device_left_ms=use.device_level_ns // 1_000_000,
        limit_memory_bytes=quota.memory_bytes,
        memory_bytes=use.memory_bytes,
        frontends=use.frontends,
    )
