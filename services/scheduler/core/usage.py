"""Device time by tenant and model, over executors and whatever became of them: each nanosecond counted once."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from functools import reduce

from services.scheduler.core.catalogue import Key
from services.scheduler.core.reports import TenantUsage, UsageReport

MILLION = 1_000_000
RATE_US = 1_000_000
"""A rate is taken over so long at the least, where there are reports to take it from."""
STALE_S = 3.0
"""A rate that no report has confirmed for so long is no more."""


@dataclass(frozen=True, slots=True)
class Used:
    """Device time in nanoseconds, the same times compute units, requests and batches."""

    device_ns: int = 0
    requests: int = 0
    compute_unit_ns: int = 0
    batches: int = 0

    def or_more(self, other: Used) -> Used:
        """The larger of each count."""
        return Used(
            max(self.device_ns, other.device_ns),
            max(self.requests, other.requests),
            max(self.compute_unit_ns, other.compute_unit_ns),
            max(self.batches, other.batches),
        )

    def plus(self, other: Used, times: int = 1) -> Used:
        """The sum of each count."""
        return Used(
            self.device_ns + times * other.device_ns,
            self.requests + times * other.requests,
            self.compute_unit_ns + times * other.compute_unit_ns,
            self.batches + times * other.batches,
        )


NOTHING = Used()


def total(uses: Iterable[Used]) -> Used:
    """The sum of each count."""
    return reduce(Used.plus, uses, NOTHING)


@dataclass(slots=True)
class _Account:
    """The most that was told under one name. models: with the life that each is in. lives: the latest that was told of; None: its
    executor knows no lives, tells no tenants and folds nothing."""

    tenants: dict[str, Used] = field(default_factory=dict)
    models: dict[Key, tuple[int, Used]] = field(default_factory=dict)
    lives: int | None = None

    def of(self, tenant: str) -> Used:
        """A tenant's use under this name."""
        if self.lives is not None:
            return self.tenants.get(tenant, NOTHING)
        return total(used for key, (_, used) in self.models.items() if key.tenant == tenant)


@dataclass(slots=True)
class UsageLedger:
    """The sum, over all names that executors count under, of the most that was told under each.

    Counts under one name only grow, and every report tells them from their beginning. So it does not matter who tells
    them, in which order, how often, and what got lost in between; nor that this ledger began late.

    That holds of tenants' counts, of which there are as many as tenants, and they are what is billed. Models' counts are
    details, which end: an executor folds those of a model that is gone for good, and counts one that comes after it in a
    later life. As a report is whole, and numbers of lives ascend, a report that could know of a life and leaves it out says
    that it has ended; and one that tells of a life that could have been known before, and was not, is an old one.
    """

    _told: dict[tuple[str, str], _Account] = field(default_factory=dict)
    _models: dict[Key, Used] = field(default_factory=dict)

    def report(
        self, executor_id: str, usage: Iterable[UsageReport], tenants: Iterable[TenantUsage] = ()
    ) -> dict[Key, Used]:
        """What an executor tells, under whatever names. A model that it leaves out has used no more than before.

        Returns what is new, by model: each nanosecond once, under its tenant's empty name where no model of it was told. Over
        all reports it adds up to what `of` says.
        """
        news: dict[Key, Used] = {}
        named: dict[str, list[UsageReport]] = {}
        for each in usage:
            named.setdefault(each.incarnation, []).append(each)
        sums: dict[str, list[TenantUsage]] = {}
        for one in tenants:
            sums.setdefault(one.incarnation, []).append(one)
        for name in named.keys() | sums.keys():
            account = self._told.setdefault((executor_id, name), _Account())
            self._take(account, named.get(name, []), sums.get(name, []), news)
        return news

    def _take(
        self, account: _Account, usage: list[UsageReport], tenants: list[TenantUsage], news: dict[Key, Used]
    ) -> None:
        concerned = {each.key.tenant for each in usage} | {each.tenant for each in tenants}
        before = {tenant: account.of(tenant) for tenant in concerned}
        found: dict[Key, Used] = {}
        for each in usage:
            more = self._count(account, each)
            if more != NOTHING:
                found[each.key] = found.get(each.key, NOTHING).plus(more)
        if tenants:
            _take_tenants(account, usage, tenants)
        for tenant, used in before.items():
            own = {key: more for key, more in found.items() if key.tenant == tenant}
            rest = account.of(tenant).plus(used, -1).plus(total(own.values()), -1)
            for key, more in (*own.items(), (Key(tenant, ""), rest)):
                if more != NOTHING:
                    news[key] = news.get(key, NOTHING).plus(more)

    def _count(self, account: _Account, told: UsageReport) -> Used:
        """Counts what is told of one model; returns what is new."""
        life, known = account.models.get(told.key, (None, NOTHING))
        if life != told.life:
            if account.lives is not None and told.life <= account.lives:
                return NOTHING
            known = NOTHING
        latest = known.or_more(Used(told.device_ns, told.requests, told.compute_unit_ns, told.batches))
        account.models[told.key] = (told.life, latest)
        more = latest.plus(known, -1)
        if more != NOTHING:
            self._models[told.key] = self.of_model(told.key).plus(more)
        return more

    def keep(self, models: Container[Key], executors: Container[str]) -> None:
        """Of models that are neither among these nor told of by any of these executors nothing is known any more but their
        tenants' use."""
        for (executor_id, _), account in self._told.items():
            if executor_id not in executors and account.lives is not None:
                for key in [key for key in account.models if key not in models]:
                    del account.models[key]
        told = {key for account in self._told.values() for key in account.models}
        for key in [key for key in self._models if key not in models and key not in told]:
            del self._models[key]

    def of(self, tenant: str) -> Used:
        """A tenant's use so far, also of models that are no more."""
        return total(account.of(tenant) for account in self._told.values())

    def of_model(self, key: Key) -> Used:
        """A model's use so far."""
        return self._models.get(key, NOTHING)

    def models(self) -> dict[Key, Used]:
        """Every model's use so far."""
        return dict(self._models)


def _take_tenants(account: _Account, usage: list[UsageReport], tenants: list[TenantUsage]) -> None:
    lives = max(each.lives for each in tenants)
    listed = {(each.key, each.life) for each in usage}
    for key, (life, _) in list(account.models.items()):
        if life <= lives and (key, life) not in listed:
            del account.models[key]
    for each in tenants:
        used = Used(each.device_ns, each.requests, each.compute_unit_ns, each.batches)
        account.tenants[each.tenant] = account.tenants.get(each.tenant, NOTHING).or_more(used)
    account.lives = lives if account.lives is None else max(account.lives, lives)


@dataclass(slots=True)
class _Measured:
    at_us: int
    used: dict[Key, int]


@dataclass(slots=True)
class _Device:
    incarnation: str
    measured: deque[_Measured]
    heard_at: float


@dataclass(slots=True)
class UsageRates:
    """How much of a device each model uses now, from the last reports of each executor, by that executor's own clock."""

    _devices: dict[str, _Device] = field(default_factory=dict)

    def report(
        self, executor_id: str, incarnation: str, measured_us: int, usage: Iterable[UsageReport], now: float
    ) -> None:
        """What an executor told at `now`. An executor that does not say when it measured has no rates."""
        if not measured_us:
            return
        used: dict[Key, int] = {}
        for each in usage:
            used[each.key] = used.get(each.key, 0) + each.compute_unit_ns
        device = self._devices.get(executor_id)
        if device is None or device.incarnation != incarnation:
            device = self._devices[executor_id] = _Device(incarnation, deque(), now)
        device.heard_at = now
        measured = device.measured
        measured.append(_Measured(measured_us, used))
        while len(measured) > 2 and measured[1].at_us <= measured_us - RATE_US:
            measured.popleft()

    def used_ppm(self, executor_id: str, compute_units: int, now: float) -> dict[Key, int]:
        """What each model uses of a device of so many compute units, in millionths of the device."""
        device = self._devices.get(executor_id)
        if device is None or now - device.heard_at > STALE_S or len(device.measured) < 2:
            return {}
        first, last = device.measured[0], device.measured[-1]
        whole = (last.at_us - first.at_us) * 1_000 * max(1, compute_units)
        if whole <= 0:
            return {}
        return {
            key: max(0, used - first.used.get(key, 0)) * MILLION // whole
            for key, used in last.used.items()
            if used > first.used.get(key, 0)
        }

    def forget(self, executor_id: str) -> None:
        """An executor that is not expected back."""
        self._devices.pop(executor_id, None)
