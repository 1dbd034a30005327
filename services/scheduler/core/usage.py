"""Device time by tenant and model, over executors and whatever became of them: each nanosecond counted once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from services.scheduler.core.catalogue import Key
from services.scheduler.core.reports import UsageReport

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


@dataclass(slots=True)
class UsageLedger:
    """The sum, over all names that executors count under, of the most that was told under each.

    Counts under one name only grow, and every report tells them from their beginning. So it does not matter who tells
    them, in which order, how often, and what got lost in between; nor that this ledger began late.
    """

    _told: dict[tuple[str, str], dict[Key, Used]] = field(default_factory=dict)
    _models: dict[Key, Used] = field(default_factory=dict)

    def report(self, executor_id: str, usage: Iterable[UsageReport]) -> None:
        """What an executor tells, under whatever names. A model that it leaves out has used no more than before."""
        for each in usage:
            told = self._told.setdefault((executor_id, each.incarnation), {})
            before = told.get(each.key, Used())
            latest = before.or_more(Used(each.device_ns, each.requests, each.compute_unit_ns, each.batches))
            if latest != before:
                told[each.key] = latest
                self._models[each.key] = self.of_model(each.key).plus(latest).plus(before, -1)

    def of(self, tenant: str) -> Used:
        """A tenant's use so far."""
        total = Used()
        for key, used in self._models.items():
            if key.tenant == tenant:
                total = total.plus(used)
        return total

    def of_model(self, key: Key) -> Used:
        """A model's use so far."""
        return self._models.get(key, Used())

    def models(self) -> dict[Key, Used]:
        """Every model's use so far."""
        return dict(self._models)


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
