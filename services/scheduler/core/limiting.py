"""What tenants may use: the leases of frontends, device time, and the memory that replicas hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from services.scheduler.core.budgets import DeviceBudgets
from services.scheduler.core.catalogue import Quota, Tenant
from services.scheduler.core.pools import Asked, DeviceTime, Grant
from services.scheduler.core.quotas import Leases
from services.scheduler.core.reports import Report

LEASE_S = 3.0
"""How long a lease holds."""


@dataclass(frozen=True, slots=True)
class HeldTime:
    """What a frontend was told of a tenant's device time by a scheduler before this one."""

    tenant: str
    level_ns: int


@dataclass(frozen=True, slots=True)
class QuotaReport:
    """What a frontend says of tenants with a quota. serial: of the last answer that it acts by. whole: of all of them."""

    frontend_id: str
    asked: Mapping[str, Asked] = field(default_factory=dict)
    serial: int = 0
    whole: bool = False
    leaving: bool = False
    held_time: tuple[HeldTime, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a frontend is answered. lease_s 0: it is not known yet what it holds. again: it is to report again soon."""

    serial: int = 0
    grants: Mapping[str, Grant] = field(default_factory=dict)
    lease_s: float = 0.0
    again: bool = False


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """A tenant's quota and what is used of it. asked: in millionths of a request a second, whether admitted or not."""

    tenant: str
    quota: Quota
    asked: int
    in_flight: int
    device_level_ns: int
    memory_bytes: int
    frontends: int


class Limiter:
    """Every tenant's quota."""

    def __init__(self, now: float, lease_s: float = LEASE_S) -> None:
        self._leases = Leases(lease_s=lease_s, began=now)
        self._budgets = DeviceBudgets()
        self._quotas: dict[str, Quota] = {}

    def limit(self, tenants: Iterable[Tenant], now: float) -> None:
        """These are the tenants from now on."""
        quotas = {each.name: each.quota for each in tenants if each.quota.limits}
        if quotas != self._quotas:
            self._quotas = quotas
            self._leases.limit({name: quota for name, quota in quotas.items() if quota.leased}, now)
            self._budgets.limit(quotas, now)

    def used(self, executor_id: str, compute_units: int, report: Report, now: float) -> None:
        """Takes what an executor tells of device time."""
        self._budgets.report(executor_id, compute_units, report.usage, now, report.tenants)

    def report(self, told: QuotaReport, now: float) -> Answer:
        """Takes a frontend's report, and answers it."""
        if told.leaving:
            self._leases.report(told.frontend_id, {}, 0, now, leaving=True)
            return Answer()
        if not told.whole and not self._leases.knows(told.frontend_id, now):
            return Answer()
        if not self._leases.warm(now):
            for held in told.held_time:
                self._budgets.adopt(held.tenant, held.level_ns, now)
        self._leases.report(told.frontend_id, told.asked, told.serial, now)
        left: dict[str, DeviceTime] = self._budgets.left(now)
        serial, grants, again = self._leases.grants(told.frontend_id, left, now)
        return Answer(serial, grants, self._leases.lease_s, again)

    def uses(self, memory_bytes: Mapping[str, int], now: float) -> list[QuotaUse]:
        """Every tenant with a quota, by name. memory_bytes: that replicas hold, by tenant."""
        self._leases.expire(now)
        pools, left = dict(self._leases.pools()), self._budgets.left(now)
        found = []
        for tenant, quota in sorted(self._quotas.items()):
            holders = pools[tenant].holders if tenant in pools else {}
            asked = sum(holder.asked.rate for holder in holders.values())
            in_flight = sum(holder.asked.in_flight for holder in holders.values())
            level_ns = left[tenant].level_ns if tenant in left else 0
            memory = memory_bytes.get(tenant, 0)
            found.append(QuotaUse(tenant, quota, asked, in_flight, level_ns, memory, len(holders)))
        return found
