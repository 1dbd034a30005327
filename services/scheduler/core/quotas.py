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
from dataclasses import dataclass, field, replace

from services.scheduler.core.catalogue import Quota
from services.scheduler.core.sharing import divide, divide_slots

MICRO = 1_000_000
TURN_S = 10.0
"""What cannot be divided among those who ask for the same goes to another one after so long."""
SPARE = 10
AGAIN_S = 0.2
"""Whoever waits for a part that others have to let go of asks again so soon."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a frontend may admit. rate, burst: in millionths. None: not limited."""

    rate: int | None = None
    burst: int = MICRO
    concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """A part, what is saved up of it now, and what holds once nothing is heard any more. device_*: see QuotaLease."""

    part: Part
    afterwards: Part
    mint: int = 0
    device_requests: int | None = None
    device_level_ns: int = 0
    device_retry_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A frontend's demand. held: what it acts by, where it says so. unleased: it has no lease, whatever it was given."""

    rate: int = 0
    in_flight: int = 0
    concurrent: int = 0
    held: Part | None = None
    unleased: bool = False

    def much_like(self, other: Asked) -> bool:
        """Whether nobody's part would be another one for it: a tenth more or less is within what parts have to spare."""
        return (
            abs(self.rate - other.rate) * SPARE <= other.rate
            and abs(self.concurrent - other.concurrent) * SPARE <= other.concurrent
            and self.unleased == other.unleased
        )


NOTHING = Asked()


@dataclass(frozen=True, slots=True)
class DeviceTime:
    """What is left of a tenant's device time, and what one of its requests takes; 0: not known."""

    level_ns: int
    request_ns: int = 0
    retry_s: float = 0.0


@dataclass(slots=True)
class Holder:
    """What one frontend has of one tenant. acted: what it is known to act by. given: what it may act by, too.

    given_serial: of the answer that had it. settled: the version of its pool for which it has what it is to have; weighed: what was
    asked for by then.
    """

    acted: Part | None = None
    given: Part | None = None
    given_serial: int = 0
    afterwards: Part | None = None
    asked: Asked = NOTHING
    weighed: Asked = NOTHING
    settled: int = 0

    def may_act_by(self, limited: Quota) -> tuple[int, int, int]:
        """The most that it may be acting by: rate, burst, requests in flight."""
        parts = [part for part in (self.acted, self.given) if part is not None]
        rate = max((part.rate or 0 for part in parts), default=0)
        burst = max((part.burst for part in parts if part.rate), default=0)
        slots = max((part.concurrent or 0 for part in parts), default=0)
        return rate, burst, max(slots, self.asked.in_flight if limited.concurrent is not None else 0)


@dataclass(slots=True)
class Pool:
    """One tenant's quota in parts. saved: by what nobody holds, in millionths of a request, as of `at`. version: moves on with
    everything that parts depend on, so that nothing is worked out anew for tenants that ask for nothing. turn: whose turn it is to
    have what cannot be divided."""

    quota: Quota
    at: float
    saved: int = 0
    version: int = 1
    turn: int = 0
    holders: dict[str, Holder] = field(default_factory=dict)

    def held_by_others(self, frontend_id: str) -> tuple[int, int, int]:
        """The most that the other frontends may be acting by."""
        held = [h.may_act_by(self.quota) for name, h in self.holders.items() if name != frontend_id]
        return sum(h[0] for h in held), sum(h[1] for h in held), sum(h[2] for h in held)

    def save(self, now: float) -> None:
        """Counts what the part of the rate that nobody holds has brought since the last time."""
        rate, burst, _ = self.held_by_others("")
        if self.quota.rate is None:
            self.saved = 0
        else:
            brought = int(max(0, self.quota.rate - rate) * (now - self.at))
            self.saved = max(0, min(self.saved + brought, self.quota.burst * MICRO - burst))
        self.at = now

    def aim(self, frontend_id: str) -> Part:
        """The part that a frontend is to have, by what all of them are asked for. Each may save up one request at least."""
        part = Part()
        if self.quota.rate is not None:
            rate = divide(self.quota.rate, {name: h.asked.rate for name, h in self.holders.items()})[frontend_id]
            rest = max(0, self.quota.burst - len(self.holders)) * MICRO
            part = replace(part, rate=rate, burst=MICRO + rest * rate // max(1, self.quota.rate))
        if self.quota.concurrent is not None:
            asked = {name: h.asked.concurrent for name, h in self.holders.items()}
            slots = divide_slots(self.quota.concurrent, asked, self.turn)[frontend_id]
            part = replace(part, concurrent=slots)
        return part

    def free(self, aim: Part, frontend_id: str) -> Part:
        """As much of a part as the others leave. A rate without a request that may be saved up is none."""
        others = self.held_by_others(frontend_id)
        part = aim
        if aim.rate is not None and self.quota.rate is not None:
            burst = max(self.quota.burst, len(self.holders)) * MICRO - others[1]
            rate = min(aim.rate, max(0, self.quota.rate - others[0])) if burst >= MICRO else 0
            part = replace(part, rate=rate, burst=max(MICRO, min(aim.burst, burst)))
        if aim.concurrent is not None and self.quota.concurrent is not None:
            part = replace(part, concurrent=min(aim.concurrent, max(0, self.quota.concurrent - others[2])))
        return part


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
            holder = pool.holders.get(frontend_id)
            told = asked.get(tenant, NOTHING)
            if holder is not None and holder.given is None and holder.asked == told == NOTHING:
                continue
            pool.save(now)
            if holder is None:
                holder = pool.holders[frontend_id] = Holder()
                pool.version += 1
            elif holder.given is not None:
                if serial >= holder.given_serial:
                    holder.acted = holder.given
                holder.given = None
            if told.unleased:
                holder.acted = holder.afterwards = None
            elif new and told.held is not None:
                holder.acted = _within(told.held, pool, frontend_id)
            turn = int(now / TURN_S)
            pool.version += (not told.much_like(holder.weighed)) or turn != pool.turn
            pool.turn = turn
            holder.asked = told
            if holder.settled != pool.version:
                holder.weighed = told

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
            pool.save(now)
            pool.version += pool.holders.pop(frontend_id, None) is not None

    def _grant(self, pool: Pool, frontend_id: str, device: DeviceTime | None, now: float) -> tuple[Grant | None, bool]:
        """Its part, as much of it as is free, and whether that is less than it is to be. None: it is too early for any."""
        holder, aim = pool.holders[frontend_id], pool.aim(frontend_id)
        if not self.warm(now):
            if holder.acted is None:
                return None, True
            aim = _least(aim, holder.acted)
        part = pool.free(aim, frontend_id)
        grant = Grant(part, _afterwards(pool, device), _mint(pool, holder, part))
        if device is not None:
            grant = replace(
                grant,
                device_requests=_device_requests(pool, frontend_id, device),
                device_level_ns=device.level_ns,
                device_retry_s=device.retry_s,
            )
        short = (part.rate or 0) < (aim.rate or 0) * 99 // 100 or (part.concurrent or 0) < (aim.concurrent or 0)
        return grant, short


def _mint(pool: Pool, holder: Holder, part: Part) -> int:
    """What is taken from what is saved up here, to fill a part of the burst that is new."""
    if not part.rate:
        return 0
    before = holder.acted.burst if holder.acted is not None and holder.acted.rate else 0
    minted = min(pool.saved, max(0, part.burst - before))
    pool.saved -= minted
    return minted


def _afterwards(pool: Pool, device: DeviceTime | None) -> Part:
    """An even part of everything; of device time, by what a request takes, as a rate."""
    quota, count = pool.quota, max(1, len(pool.holders))
    rate = None if quota.rate is None else quota.rate // count
    burst = max(MICRO, quota.burst * MICRO // count)
    if quota.device_ns is not None and device is not None and device.request_ns:
        by_device = quota.device_ns * MICRO // (quota.device_interval_s * device.request_ns * count)
        if rate is None or by_device < rate:
            rate, burst = by_device, max(MICRO, by_device if quota.rate is None else min(burst, by_device))
    return Part(rate, burst, None if quota.concurrent is None else max(1, quota.concurrent // count))


def _device_requests(pool: Pool, frontend_id: str, device: DeviceTime) -> int | None:
    """How many requests its part of what is left of the device time is; None where nobody knows what a request takes."""
    if device.level_ns <= 0:
        return 0
    if not device.request_ns:
        return None
    asked = {name: h.asked.rate for name, h in pool.holders.items()}
    return -(-divide(device.level_ns, asked)[frontend_id] // device.request_ns)


def _within(held: Part, pool: Pool, frontend_id: str) -> Part:
    """What a frontend held before this scheduler began, as far as the others leave it."""
    quota, others = pool.quota, pool.held_by_others(frontend_id)
    rate = None if quota.rate is None else min(held.rate or 0, max(0, quota.rate - others[0]))
    slots = None if quota.concurrent is None else min(held.concurrent or 0, max(0, quota.concurrent - others[2]))
    return Part(rate, held.burst, slots)


def _least(one: Part, other: Part) -> Part:
    rate = None if one.rate is None else min(one.rate, other.rate or 0)
    slots = None if one.concurrent is None else min(one.concurrent, other.concurrent or 0)
    return Part(rate, min(one.burst, other.burst), slots)
