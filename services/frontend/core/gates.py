"""The gates of all tenants with a quota: which there are, by what they act, and what is told of them.

What holds when nobody gives leases:

- a frontend that has just started admits `unleased` of each quota, from nothing saved up;
- a quota that is new while leases are being given limits nothing until its lease comes, or PENDING_NS at the most;
- a lease that runs out leaves its holder the part that it would have if all frontends shared evenly, for as long as nobody
  says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from services.frontend.core.gate import MICRO, Demand, Gate, Lease, Quota, Terms

PENDING_NS = 3_000_000_000
"""A quota that nobody leases is limited by this frontend alone after so long."""


@dataclass(frozen=True, slots=True)
class Limits:
    """A tenant's quota, as far as frontends hold it. rate: in millionths of a request a second; burst: in requests.
    device_ns: of whole devices, within device_interval_s."""

    rate: int | None = None
    burst: int = 1
    concurrent: int | None = None
    device_ns: int | None = None
    device_interval_s: int = 3600

    @property
    def any(self) -> bool:
        """Whether anything is limited here."""
        return self.rate is not None or self.concurrent is not None or self.device_ns is not None


class Gates:
    """By tenant. unleased: the part of a quota that this frontend admits without a lease, in millionths; 0: nothing."""

    def __init__(self, unleased: int) -> None:
        self._unleased = unleased
        self._gates: dict[str, Gate] = {}
        self._limits: dict[str, Limits] = {}
        self._told: set[str] = set()
        self._leased_until_ns = 0
        self.get = self._gates.get
        """get(tenant): its gate; None: it has no quota. The dictionary's own, since every request asks."""

    def limits(self, tenant: str) -> Limits:
        """What a tenant that has a gate may use."""
        return self._limits[tenant]

    def replace(self, limits: Mapping[str, Limits], now_ns: int) -> None:
        """Takes a whole snapshot of quotas."""
        self.change(limits, self._limits.keys() - limits.keys(), now_ns)

    def change(self, limits: Mapping[str, Limits], removed: Iterable[str], now_ns: int) -> None:
        """Takes one commit's changes: what the named tenants have now, and tenants that are gone."""
        for tenant in removed:
            self._drop(tenant)
        for tenant, each in limits.items():
            if not each.any:
                self._drop(tenant)
            elif self._limits.get(tenant) != each:
                self._limits[tenant] = each
                gate = self._gates.get(tenant)
                if gate is None:
                    self._gates[tenant] = self._unleased_gate(each, now_ns)
                elif gate.lease is None:
                    gate.alone(part(each, self._unleased), now_ns)

    @property
    def hungry(self) -> bool:
        """Whether a tenant with a quota has no lease."""
        return any(gate.lease is None for gate in self._gates.values())

    def demands(self, now_ns: int, *, whole: bool) -> dict[str, Demand]:
        """What is to be told of whom: all of them where `whole`."""
        return {
            tenant: gate.demand(now_ns)
            for tenant, gate in self._gates.items()
            if whole or gate.lease is None or not gate.idle() or tenant in self._told
        }

    def told(self, demands: Mapping[str, Demand]) -> None:
        """These have been heard of. Whoever asked for anything is told of once more, so that it is known that he has ended."""
        self._told = {tenant for tenant, demand in demands.items() if demand.rate or demand.concurrent}

    def take(self, leases: Mapping[str, Lease], until_ns: int, now_ns: int) -> None:
        """Acts by these leases, and by those that it has already, until then; also by those that had run out."""
        self._leased_until_ns = until_ns
        for tenant, gate in self._gates.items():
            lease = leases.get(tenant)
            if lease is None:
                gate.renew(until_ns, now_ns)
            else:
                gate.take(lease, until_ns, now_ns)

    def __iter__(self) -> Iterator[tuple[str, Gate]]:
        """Every tenant with a quota, and its gate."""
        return iter(list(self._gates.items()))

    def _drop(self, tenant: str) -> None:
        self._gates.pop(tenant, None)
        self._limits.pop(tenant, None)
        self._told.discard(tenant)

    def _unleased_gate(self, limits: Limits, now_ns: int) -> Gate:
        alone = part(limits, self._unleased)
        if now_ns < self._leased_until_ns:
            return Gate(Terms(), now_ns, until_ns=now_ns + PENDING_NS, then=alone)
        return Gate(alone, now_ns)


def part(limits: Limits, ppm: int) -> Terms:
    """What so many millionths of a quota are; of what is counted in whole requests at least one, unless it is nothing.

    Device time is not known here: who has a quota of it alone is not limited.
    """
    terms = Terms()
    if limits.rate is not None:
        terms = replace(terms, rate=limits.rate * ppm // MICRO, burst=max(MICRO, limits.burst * ppm))
    if limits.concurrent is not None:
        terms = replace(terms, concurrent=max(1, limits.concurrent * ppm // MICRO) if ppm else 0)
    return terms


def details(quota: Quota, gate: Gate, limits: Limits, now_ns: int) -> tuple[str, str, float]:
    """(limit, use, seconds to wait), for whoever is refused."""
    if quota is Quota.RATE:
        limit = f"{(limits.rate or 0) / MICRO:g} requests/s (burst {limits.burst})"
        share = "" if gate.terms.rate is None else f", whose part is {gate.terms.rate / MICRO:g}"
        return limit, f"{gate.asked_lately(now_ns):.1f} requests/s at this frontend{share}", _wait_s(gate, now_ns)
    if quota is Quota.CONCURRENT:
        share = f", whose part is {gate.terms.concurrent}"
        return f"{limits.concurrent} requests in flight", f"{gate.in_flight} in flight at this frontend{share}", 0.1
    limit_s = (limits.device_ns or 0) / 1e9
    limit = f"{limit_s:g} device-seconds in {limits.device_interval_s} s"
    lease = gate.lease
    left_s = lease.device_level_ns / 1e9 if lease is not None else 0.0
    return limit, f"{limit_s - left_s:.3f} device-seconds", max(0.1, lease.device_retry_s if lease is not None else 1.0)


def _wait_s(gate: Gate, now_ns: int) -> float:
    wait_ns = gate.wait_ns(now_ns)
    return 1.0 if wait_ns > 3_600_000_000_000 else max(0.001, wait_ns / 1e9)
