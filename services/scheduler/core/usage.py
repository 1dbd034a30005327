"""Device time by tenant, summed over executors and their incarnations, each nanosecond counted once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.scheduler.core.catalogue import Key
from services.scheduler.core.reports import UsageReport


@dataclass(frozen=True, slots=True)
class Used:
    """Device time in nanoseconds, and requests."""

    device_ns: int = 0
    requests: int = 0


@dataclass(slots=True)
class _Incarnation:
    """One executor's counts, model by model, as it told them last."""

    name: str
    latest: dict[Key, Used]


@dataclass(slots=True)
class UsageLedger:
    """Counts since this ledger first heard of each incarnation.

    Executors count from the start of their incarnation and tell the total each time. An executor that attaches again
    under the same incarnation goes on where it was; one that comes with another starts from what it says first, so
    that nothing is counted twice, whoever comes back in whatever order.
    """

    _incarnations: dict[str, _Incarnation] = field(default_factory=dict)
    _tenants: dict[str, Used] = field(default_factory=dict)

    def hello(self, executor_id: str, incarnation: str, usage: Iterable[UsageReport]) -> None:
        """An executor attached with these counts."""
        known = self._incarnations.get(executor_id)
        counts = {each.key: Used(each.device_ns, each.requests) for each in usage if each.incarnation == incarnation}
        if known is None or known.name != incarnation:
            self._incarnations[executor_id] = _Incarnation(incarnation, counts)
        else:
            self._advance(known, counts)

    def report(self, executor_id: str, usage: Iterable[UsageReport]) -> None:
        """A later report's counts; those of another incarnation than the executor's hello are not its own and are left out."""
        known = self._incarnations.get(executor_id)
        if known is not None:
            counts = {each.key: Used(each.device_ns, each.requests) for each in usage if each.incarnation == known.name}
            self._advance(known, counts)

    def forget(self, executor_id: str) -> None:
        """An executor that is not expected back; what it used stays counted."""
        self._incarnations.pop(executor_id, None)

    def of(self, tenant: str) -> Used:
        """A tenant's use so far."""
        return self._tenants.get(tenant, Used())

    def _advance(self, known: _Incarnation, counts: dict[Key, Used]) -> None:
        for key, now in counts.items():
            before = known.latest.get(key, Used())
            latest = Used(max(now.device_ns, before.device_ns), max(now.requests, before.requests))
            known.latest[key] = latest
            total = self.of(key.tenant)
            self._tenants[key.tenant] = Used(
                total.device_ns + latest.device_ns - before.device_ns,
                total.requests + latest.requests - before.requests,
            )
