"""Tenants' quotas at a frontend: what the registry and the scheduler say of them, and what callers are told who are beyond."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic_ns

from services._proto.apportion.v1 import registry_pb2, scheduler_pb2
from services.common.errors import Reason, Refusal
from services.frontend.core.gate import MICRO, Demand, Gate, Lease, Quota, Terms
from services.frontend.core.gates import Gates, Limits, details

MILLI_NS = 1_000_000
NAMES = {
    Quota.RATE: "requests a second",
    Quota.CONCURRENT: "requests at the same time",
    Quota.DEVICE: "device time",
}


class Quotas:
    """Every tenant's gate. unleased: the part of a quota that is admitted without a lease, from 0 to 1.

    hungry: called where a lease is missing, or is less than the quota and not enough: another one is to be asked for soon.
    """

    def __init__(self, unleased: float = 0.1) -> None:
        self.gates = Gates(int(unleased * MICRO))
        self.hungry: Callable[[], None] = lambda: None

    def replace(self, tenants: Iterable[registry_pb2.Tenant]) -> None:
        """Takes every tenant there is."""
        self.gates.replace(_limits(tenants), monotonic_ns())
        self._look()

    def change(self, tenants: Iterable[registry_pb2.Tenant], removed: Iterable[str]) -> None:
        """Takes tenants that have changed, and those that are gone."""
        self.gates.change(_limits(tenants), removed, monotonic_ns())
        self._look()

    def refusal(self, tenant: str, exceeded: Quota, gate: Gate, now_ns: int) -> Refusal:
        """What a request is told that would be beyond a quota."""
        limits = self.gates.limits(tenant)
        limit, use, wait_s = details(exceeded, gate, limits, now_ns)
        if _is_part(gate.terms, limits):
            self.hungry()
        return Refusal(
            Reason.QUOTA_EXCEEDED,
            f"tenant {tenant!r} is beyond its quota of {NAMES[exceeded]} ({exceeded.value}): limit {limit}, use {use}",
            facts={"subject": f"tenant:{tenant}", "quota": exceeded.value, "limit": limit, "use": use},
            retry_after_s=wait_s,
        )

    def _look(self) -> None:
        if self.gates.hungry:
            self.hungry()


def _is_part(terms: Terms, limits: Limits) -> bool:
    fewer = limits.rate is not None and terms.rate is not None and terms.rate < limits.rate
    return fewer or (
        limits.concurrent is not None and terms.concurrent is not None and terms.concurrent < limits.concurrent
    )


def _limits(tenants: Iterable[registry_pb2.Tenant]) -> dict[str, Limits]:
    return {tenant.name: limits_of(tenant.quota) for tenant in tenants}


def limits_of(quota: registry_pb2.Quota) -> Limits:
    """What frontends hold of a quota."""
    return Limits(
        quota.millirequests_per_s * 1000 if quota.HasField("millirequests_per_s") else None,
        max(1, quota.burst),
        quota.concurrent_requests if quota.HasField("concurrent_requests") else None,
        quota.device_ms * MILLI_NS if quota.HasField("device_ms") else None,
        quota.device_interval_s or 3600,
    )


def demand_message(tenant: str, demand: Demand) -> scheduler_pb2.QuotaDemand:
    """What is told of a tenant."""
    held = demand.held
    return scheduler_pb2.QuotaDemand(
        tenant=tenant,
        microrequests_per_s=demand.rate,
        in_flight=demand.in_flight,
        concurrent=demand.concurrent,
        unleased=held is None,
        held=None
        if held is None
        else scheduler_pb2.QuotaLease(
            tenant=tenant,
            microrequests_per_s=held.terms.rate,
            microburst=held.terms.burst,
            concurrent=held.terms.concurrent,
            device_requests=held.terms.device_requests,
            device_level_ns=held.device_level_ns,
        ),
    )


def lease_of(message: scheduler_pb2.QuotaLease) -> Lease:
    """A lease."""
    concurrent = message.concurrent if message.HasField("concurrent") else None
    terms = Terms(
        message.microrequests_per_s if message.HasField("microrequests_per_s") else None,
        message.microburst,
        concurrent,
        message.device_requests if message.HasField("device_requests") else None,
    )
    limited = message.HasField("static_microrequests_per_s")
    afterwards = Terms(
        message.static_microrequests_per_s if limited else None,
        message.static_microburst,
        None if concurrent is None else message.static_concurrent,
    )
    return Lease(terms, afterwards, message.mint, message.device_level_ns, message.device_retry_ms / 1000)
