"""Tenants' quotas, and the leases by which frontends hold parts of them.

A frontend reports, and the answer has its part. No part is given before it is free: what a frontend may be acting by is
counted as its own until it has said that it acts by less, or its lease has run out. So at no moment do the parts add up to
more than the quota, whoever joins, dies, or hears nothing, in which order ever; but for frontends that are cut off from a
scheduler that goes on without them, and act by what they may have `afterwards`, which is an even part each.

A rate is held by gates that save up (services/frontend/core/gate.py). What all gates have saved up, together with what is
saved up here by the part of the rate that nobody holds, is never more than the burst: a new part of the burst is filled from
here alone (`mint`). So in any L seconds at most burst + L x rate requests are admitted by all frontends together; where there
are more frontends than the burst has requests, at most one for each in place of the burst.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from services.scheduler.core.catalogue import Quota
from services.scheduler.core.pools import MICRO, NOTHING, Asked, DeviceTime, Grant, Part, Pool

AGAIN_S = 0.2
"""Whoever waits for a part that others have to let go of asks again so soon."""


class Leases:
    """Every frontend's leases. lease_s: how long each holds. began: moments as everywhere in the core.

    For the first `lease_s` frontends are given no more than they hold from the scheduler before this one.
    """

    def __init__(self, *, lease_s: float, began: float) -> None:
        self.lease_s = lease_s
        self._began = began
        self._pools: dict[str, Pool] = {}
        self._heard: dict[str, float] = {}
        self._serial = 0

    def limit(self, quotas: Mapping[str, Quota], now: float) -> None:
        """These are the tenants' quotas from now on. A tenant whose quota is new has its burst saved up."""
        for tenant in self._pools.keys() - quotas.keys():
            del self._pools[tenant]
        for tenant, quota in quotas.items():
            pool = self._pools.get(tenant)
            if pool is None:
                saved = quota.burst * MICRO if quota.rate is not None and self.warm(now) else 0
                self._pools[tenant] = Pool(quota, now, saved)
            elif pool.quota != quota:
                pool.save(now)
                pool.quota, pool.version = quota, pool.version + 1

    def knows(self, frontend_id: str, now: float) -> bool:
        """Whether a frontend has been heard of lately. One that has not has to say what it holds."""
        self.expire(now)
        return frontend_id in self._heard

    def report(
        self, frontend_id: str, asked: Mapping[str, Asked], serial: int, now: float, *, leaving: bool = False
    ) -> None:
        """What a frontend says that it acts by and is asked for; of tenants that it leaves out nothing is asked."""
        self.expire(now)
        if leaving:
            self._forget(frontend_id, now)
            return
        new = frontend_id not in self._heard
        self._heard[frontend_id] = now
        for tenant, pool in self._pools.items():
            pool.hear(frontend_id, asked.get(tenant, NOTHING), serial, now, new=new)

    def grants(
        self, frontend_id: str, device: Mapping[str, DeviceTime], now: float
    ) -> tuple[int, dict[str, Grant], bool]:
        """The answer to a report: its serial, the grants that are new, and whether a part is not what it should be yet."""
        self._serial += 1
        found: dict[str, Grant] = {}
        waiting = False
        for tenant, pool in self._pools.items():
            holder = pool.holders.get(frontend_id)
            if holder is None or holder.settled == pool.version:
                continue
            grant, short = self._grant(pool, frontend_id, device.get(tenant), now)
            waiting = waiting or short
            if grant is None:
                continue
            same = holder.acted == grant.part and holder.afterwards == grant.afterwards
            if not same or grant.mint or pool.quota.device_ns is not None:
                holder.given, holder.given_serial = grant.part, self._serial
                holder.afterwards = grant.afterwards
                found[tenant] = grant
            elif not short:
                holder.settled = pool.version
        return self._serial, found, waiting

    def expire(self, now: float) -> None:
        """Frontends that have not been heard of for as long as a lease holds have none."""
        for frontend_id in [name for name, heard in self._heard.items() if now - heard > self.lease_s]:
            self._forget(frontend_id, now)

    def pools(self) -> Iterable[tuple[str, Pool]]:
        """Every tenant with a quota."""
        return self._pools.items()

    def warm(self, now: float) -> bool:
        """Whether frontends have had the time to say what they hold, or their leases have run out."""
        return now - self._began > self.lease_s

    def _forget(self, frontend_id: str, now: float) -> None:
        self._heard.pop(frontend_id, None)
        for pool in self._pools.values():
            pool.drop(frontend_id, now)

    def _grant(self, pool: Pool, frontend_id: str, device: DeviceTime | None, now: float) -> tuple[Grant | None, bool]:
        """Its part, as much of it as is free, and whether that is less than it is to be. None: it is too early for any."""
        holder, aim = pool.holders[frontend_id], pool.aim(frontend_id)
        if not self.warm(now):
            if holder.acted is None:
                return None, True
            aim = _least(aim, holder.acted)
        part = pool.free(aim, frontend_id)
        grant = Grant(part, pool.afterwards(device), pool.mint(holder, part))
        if device is not None:
            grant = replace(
                grant,
                device_requests=pool.device_requests(frontend_id, device),
                device_level_ns=device.level_ns,
                device_retry_s=device.retry_s,
            )
        short = (part.rate or 0) < (aim.rate or 0) * 99 // 100 or (part.concurrent or 0) < (aim.concurrent or 0)
        return grant, short


def _least(one: Part, other: Part) -> Part:
    rate = None if one.rate is None else min(one.rate, other.rate or 0)
    slots = None if one.concurrent is None else min(one.concurrent, other.concurrent or 0)
    return Part(rate, min(one.burst, other.burst), slots)
