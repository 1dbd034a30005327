"""Device time within a tenant's quota: what is left of it, and what one of its requests takes.

What is left comes back evenly and falls by what executors report, a second late. So it may fall below nothing by what is used
in that time; what was used too much has to come back before anything more is admitted, so that over time no more than the
quota is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from services.scheduler.core.catalogue import Quota
from services.scheduler.core.pools import DeviceTime
from services.scheduler.core.reports import TenantUsage, UsageReport

NS = 1_000_000_000
SMOOTHED = 0.3
"""The part that the last report has in what a request takes."""


@dataclass(slots=True)
class _Budget:
    quota: Quota
    level_ns: int
    at: float
    request_ns: float = 0.0

    def come_back(self, now: float) -> None:
        """Counts what has come back since the last time."""
        assert self.quota.device_ns is not None
        brought = int(self.quota.device_ns * (now - self.at) / self.quota.device_interval_s)
        if brought > 0:
            self.level_ns = min(self.quota.device_ns, self.level_ns + brought)
            self.at = now


@dataclass(slots=True)
class DeviceBudgets:
    """By tenant. What an executor tells first, under whatever name of counts, was used before: it is charged to nobody."""

    _budgets: dict[str, _Budget] = field(default_factory=dict)
    _told: dict[tuple[str, str, str], tuple[int, int]] = field(default_factory=dict)

    def limit(self, quotas: Mapping[str, Quota], now: float) -> None:
        """These are the tenants' quotas from now on. A new one is whole; one that changes keeps what was used of it."""
        for tenant in self._budgets.keys() - {name for name, each in quotas.items() if each.device_ns is not None}:
            del self._budgets[tenant]
        for tenant, quota in quotas.items():
            if quota.device_ns is None:
                continue
            budget = self._budgets.get(tenant)
            if budget is None:
                self._budgets[tenant] = _Budget(quota, quota.device_ns, now)
            elif budget.quota != quota:
                budget.come_back(now)
                assert budget.quota.device_ns is not None
                used_ns = budget.quota.device_ns - budget.level_ns
                budget.quota, budget.level_ns = quota, quota.device_ns - used_ns

    def report(
        self,
        executor_id: str,
        compute_units: int,
        usage: Iterable[UsageReport],
        now: float,
        tenants: Iterable[TenantUsage] = (),
    ) -> None:
        """What an executor tells, of a device with so many compute units. tenants: all that each used, where that is told."""
        totals: dict[tuple[str, str], tuple[int, int]] = {}
        for each in usage:
            place = (each.incarnation, each.key.tenant)
            used, requests = totals.get(place, (0, 0))
            totals[place] = (used + each.compute_unit_ns, requests + each.requests)
        for one in tenants:
            totals[one.incarnation, one.tenant] = (one.compute_unit_ns, one.requests)
        for (incarnation, tenant), (used, requests) in totals.items():
            name = (executor_id, incarnation, tenant)
            before = self._told.get(name)
            self._told[name] = (used, requests) if before is None else (max(used, before[0]), max(requests, before[1]))
            budget = self._budgets.get(tenant)
            if before is not None and budget is not None and used > before[0]:
                self._charge(budget, (used - before[0]) // max(1, compute_units), requests - before[1], now)

    def adopt(self, tenant: str, level_ns: int, now: float) -> None:
        """What was left by a scheduler before this one: no more than that is."""
        budget = self._budgets.get(tenant)
        if budget is not None:
            budget.come_back(now)
            budget.level_ns = min(budget.level_ns, level_ns)

    def left(self, now: float) -> dict[str, DeviceTime]:
        """What is left, by tenant."""
        found: dict[str, DeviceTime] = {}
        for tenant, budget in self._budgets.items():
            budget.come_back(now)
            per_s = (budget.quota.device_ns or 0) / budget.quota.device_interval_s
            retry_s = max(0.0, -budget.level_ns / per_s) if per_s else 0.0
            found[tenant] = DeviceTime(budget.level_ns, int(budget.request_ns), retry_s)
        return found

    def _charge(self, budget: _Budget, used_ns: int, requests: int, now: float) -> None:
        budget.come_back(now)
        budget.level_ns -= used_ns
        if requests > 0:
            each = used_ns / requests
            budget.request_ns = each if not budget.request_ns else budget.request_ns * (1 - SMOOTHED) + each * SMOOTHED
