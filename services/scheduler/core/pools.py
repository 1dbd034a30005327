"""A tenant's quota in parts: what each frontend holds of it, what it is asked for, and what it may have next."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from services.scheduler.core.catalogue import Quota
from services.scheduler.core.sharing import divide, divide_slots

MICRO = 1_000_000
TURN_S = 10.0
"""What cannot be divided among those who ask for the same goes to another one after so long."""
SPARE = 10


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

    def confirm(self, serial: int) -> None:
        """It acts by what the answer with this serial had, and by nothing that was given before."""
        if self.given is not None:
            if serial >= self.given_serial:
                self.acted = self.given
            self.given = None


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

    def hear(self, frontend_id: str, told: Asked, serial: int, now: float, *, new: bool) -> None:
        """A frontend says what it acts by (the answer with this serial) and is asked for. new: nothing was heard of it lately."""
        holder = self.holders.get(frontend_id)
        if holder is not None and holder.given is None and holder.asked == told == NOTHING:
            return
        self.save(now)
        if holder is None:
            holder = self.holders[frontend_id] = Holder()
            self.version += 1
        holder.confirm(serial)
        if told.unleased:
            holder.acted = holder.afterwards = None
        elif new and told.held is not None:
            holder.acted = self._within(told.held, frontend_id)
        turn = int(now / TURN_S)
        self.version += (not told.much_like(holder.weighed)) or turn != self.turn
        self.turn = turn
        holder.asked = told
        if holder.settled != self.version:
            holder.weighed = told

    def drop(self, frontend_id: str, now: float) -> None:
        """A frontend holds nothing any more."""
        self.save(now)
        self.version += self.holders.pop(frontend_id, None) is not None

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

    def mint(self, holder: Holder, part: Part) -> int:
        """What is taken from what is saved up here, to fill a part of the burst that is new."""
        if not part.rate:
            return 0
        before = holder.acted.burst if holder.acted is not None and holder.acted.rate else 0
        minted = min(self.saved, max(0, part.burst - before))
        self.saved -= minted
        return minted

    def afterwards(self, device: DeviceTime | None) -> Part:
        """An even part of everything; of device time, by what a request takes, as a rate."""
        quota, count = self.quota, max(1, len(self.holders))
        rate = None if quota.rate is None else quota.rate // count
        burst = max(MICRO, quota.burst * MICRO // count)
        if quota.device_ns is not None and device is not None and device.request_ns:
            by_device = quota.device_ns * MICRO // (quota.device_interval_s * device.request_ns * count)
            if rate is None or by_device < rate:
                rate, burst = by_device, max(MICRO, by_device if quota.rate is None else min(burst, by_device))
        return Part(rate, burst, None if quota.concurrent is None else max(1, quota.concurrent // count))

    def device_requests(self, frontend_id: str, device: DeviceTime) -> int | None:
        """How many requests a frontend's part of what is left of the device time is; None where nobody knows what a request takes."""
        if device.level_ns <= 0:
            return 0
        if not device.request_ns:
            return None
        asked = {name: h.asked.rate for name, h in self.holders.items()}
        return -(-divide(device.level_ns, asked)[frontend_id] // device.request_ns)

    def _within(self, held: Part, frontend_id: str) -> Part:
        """What a frontend held before this scheduler began, as far as the others leave it."""
        quota, others = self.quota, self.held_by_others(frontend_id)
        rate = None if quota.rate is None else min(held.rate or 0, max(0, quota.rate - others[0]))
        slots = None if quota.concurrent is None else min(held.concurrent or 0, max(0, quota.concurrent - others[2]))
        return Part(rate, held.burst, slots)
