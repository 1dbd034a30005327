"""One tenant's way in at one frontend: rate, concurrency and device time, as its lease has them.

The rate is held by the generic cell rate algorithm in its virtual scheduling form (ITU-T Recommendation I.371, annex A; ATM
Forum, Traffic Management Specification 4.0, section 4.4.2): of each tenant one moment is kept, the theoretical arrival time
of its next request. What comes no more than a tolerance before that moment conforms, and moves it on by one increment, which
is the time between two requests at the rate. It admits what a bucket of tokens would that fills at the rate and holds a
burst, without ever having to be filled: of any L seconds, at most burst + L x rate requests are admitted.

A lease that changes neither makes tokens nor moves them: those that are saved up stay, up to the new burst.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import exp

MICRO = 1_000_000
SECOND_NS = 1_000_000_000
_NS_MICRO = SECOND_NS * MICRO
UNLIMITED = 1 << 62
NEVER_NS = 1 << 62
SMOOTHED_S = 1.0
"""What is asked for is taken over about so long."""


class Quota(Enum):
    """What a request may be beyond. The names are told to callers."""

    RATE = "requests_per_s"
    CONCURRENT = "concurrent_requests"
    DEVICE = "device_time"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a frontend may admit for a tenant. Rates and bursts in millionths of a request; None: not limited.

    device_requests: how many, before the next terms; None: as many as come.
    """

    rate: int | None = None
    burst: int = MICRO
    concurrent: int | None = None
    device_requests: int | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """Terms for as long as it holds, and those of afterwards. mint: saved up as of now, in millionths of a request.

    device_level_ns, device_retry_s: what is left of the tenant's device time, and when there is some again.
    """

    terms: Terms
    afterwards: Terms
    mint: int = 0
    device_level_ns: int = 0
    device_retry_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What was asked for lately. rate: in millionths of a request a second. concurrent: in flight at the most, and refused for
    want of room.

    held: what is acted by; None: there is no lease.
    """

    rate: int
    in_flight: int
    concurrent: int
    held: Lease | None


class Gate:
    """Admits a tenant's requests; its methods take the moment on a clock that never goes back, in nanoseconds.

    It has nothing saved up at first.
    """

    __slots__ = (
        "_asked_at_ns",
        "_asked_before",
        "_burst",
        "_demand",
        "_full",
        "_increment_ns",
        "_most",
        "_peak",
        "_tat_ns",
        "_terms",
        "_then",
        "_tolerance_ns",
        "_until_ns",
        "_wanted",
        "asked",
        "device_left",
        "in_flight",
        "lease",
    )

    def __init__(self, terms: Terms, now_ns: int, *, until_ns: int = NEVER_NS, then: Terms | None = None) -> None:
        self.asked = self.in_flight = self._asked_before = self._full = self._peak = 0
        self._asked_at_ns, self._demand, self._wanted = now_ns, 0.0, 0.0
        self._tat_ns, self._increment_ns, self._tolerance_ns, self._burst = now_ns, 0, 0, 0
        self._most = self.device_left = UNLIMITED
        self.lease: Lease | None = None
        self._terms = terms
        self._until_ns, self._then = until_ns, then or terms
        self._act_by(terms, now_ns)

    @property
    def terms(self) -> Terms:
        """What it acts by."""
        return self._terms

    def enter(self, now_ns: int) -> Quota | None:
        """Admits a request, which `leave` ends; else the quota that it would be beyond, and nothing is counted."""
        self.asked += 1
        if now_ns >= self._until_ns:
            self._runs_out(now_ns)
        tat_ns = self._tat_ns
        if tat_ns - now_ns > self._tolerance_ns:
            return Quota.RATE
        in_flight = self.in_flight
        if in_flight >= self._most:
            self._full += 1
            return Quota.CONCURRENT
        if self.device_left <= 0:
            return Quota.DEVICE
        self._tat_ns = (tat_ns if tat_ns > now_ns else now_ns) + self._increment_ns
        self.device_left -= 1
        self.in_flight = in_flight + 1
        if in_flight >= self._peak:
            self._peak = in_flight + 1
        return None

    def leave(self) -> None:
        """A request that was admitted is over."""
        self.in_flight -= 1

    def wait_ns(self, now_ns: int) -> int:
        """How long until the rate admits a request, if no other one comes."""
        return max(0, self._tat_ns - self._tolerance_ns - now_ns)

    def tokens(self, now_ns: int) -> int:
        """Requests that are saved up, in millionths, rounded down; 0 where the rate is not limited."""
        if not self._increment_ns:
            return 0
        behind_ns = max(0, self._tat_ns - now_ns)
        return max(0, self._burst - -(-behind_ns * MICRO // self._increment_ns))

    def take(self, lease: Lease, until_ns: int, now_ns: int) -> None:
        """Acts by a lease until it runs out."""
        self.lease = lease
        self._until_ns, self._then = until_ns, lease.afterwards
        self._act_by(lease.terms, now_ns, lease.mint)

    def alone(self, terms: Terms, now_ns: int) -> None:
        """Acts by these terms from now on; there is no lease."""
        self._until_ns, self._then = NEVER_NS, terms
        self._act_by(terms, now_ns)

    def renew(self, until_ns: int, now_ns: int) -> None:
        """The lease holds for longer; also where it had run out."""
        if self.lease is None:
            return
        if self._terms != self.lease.terms:
            self._act_by(self.lease.terms, now_ns)
        self._until_ns = until_ns

    def demand(self, now_ns: int) -> Demand:
        """What was asked for since the last time that this was called."""
        elapsed_s = (now_ns - self._asked_at_ns) / SECOND_NS
        asked, self._asked_before = self.asked - self._asked_before, self.asked
        if elapsed_s > 0:
            kept = exp(-elapsed_s / SMOOTHED_S)
            self._demand = self._demand * kept + asked / elapsed_s * (1 - kept)
            self._wanted *= kept
            self._asked_at_ns = now_ns
        self._wanted = max(self._wanted, self._peak + self._full)
        self._peak, self._full = self.in_flight, 0
        held = None
        if self.lease is not None:
            held = Lease(self._terms, self.lease.afterwards, 0, self.lease.device_level_ns)
        return Demand(int(self._demand * MICRO), self.in_flight, round(self._wanted), held)

    def asked_lately(self, now_ns: int) -> float:
        """Requests a second, whether admitted or not, since `demand` was last asked."""
        elapsed_s = (now_ns - self._asked_at_ns) / SECOND_NS
        return (self.asked - self._asked_before) / elapsed_s if elapsed_s > 0 else 0.0

    def idle(self) -> bool:
        """Whether there is nothing to tell of it: no requests since `demand` was last asked, and none before that counts."""
        return self.asked == self._asked_before and not self.in_flight and self._demand < 1e-3

    def _runs_out(self, now_ns: int) -> None:
        self._until_ns = NEVER_NS
        self._act_by(self._then, now_ns)

    def _act_by(self, terms: Terms, now_ns: int, mint: int = 0) -> None:
        """Goes over to other terms. Tokens that are saved up stay, up to the burst; `mint` come on top of them."""
        tokens = self.tokens(now_ns) + mint
        self._terms = terms
        self._most = UNLIMITED if terms.concurrent is None else terms.concurrent
        self.device_left = UNLIMITED if terms.device_requests is None else terms.device_requests
        if terms.rate is None:
            self._tat_ns, self._increment_ns, self._tolerance_ns, self._burst = now_ns, 0, 0, 0
            return
        if terms.rate == 0:
            # Nothing is admitted, and nothing is saved up; what was saved up is gone.
            self._increment_ns, self._tolerance_ns, self._burst = 0, 0, 0
            self._tat_ns = NEVER_NS
            return
        increment_ns = -(-_NS_MICRO // terms.rate)
        self._burst = max(MICRO, terms.burst)
        missing = self._burst - min(tokens, self._burst)
        self._increment_ns = increment_ns
        self._tolerance_ns = (self._burst - MICRO) * increment_ns // MICRO
        self._tat_ns = now_ns + -(-missing * increment_ns // MICRO)
