"""Quotas held by many frontends: never more than there is, and nothing of it lost, whoever comes, goes, or hears nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from services.frontend.core.gate import MICRO, NEVER_NS, SECOND_NS, Gate, Lease, Terms
from services.scheduler.core.budgets import DeviceBudgets
from services.scheduler.core.catalogue import Key, Quota
from services.scheduler.core.pools import Asked, Grant, Part
from services.scheduler.core.quotas import Leases
from services.scheduler.core.reports import UsageReport
from services.scheduler.core.sharing import divide, divide_slots

LEASE_S = 3.0
TENANT = "t"


def terms_of(part: Part) -> Terms:
    return Terms(part.rate, part.burst, part.concurrent)


@dataclass
class SimFrontend:
    """A frontend's gate, and its exchanges with a scheduler. closes: it admits nothing once its lease has run out."""

    name: str
    closes: bool
    now: float
    serial: int = 0
    whole: bool = True
    held: Part | None = None
    gate: Gate = field(default_factory=lambda: Gate(Terms(0, MICRO, 0), 0))
    admitted: list[float] = field(default_factory=list)

    def ask(self, count: int, now: float, *, stay: bool = False) -> int:
        """So many requests come at once; how many are admitted."""
        got = sum(self.gate.enter(int(now * SECOND_NS)) is None for _ in range(count))
        self.admitted += [now] * got
        for _ in range(0 if stay else got):
            self.gate.leave()
        return got

    def exchange(self, leases: Leases, now: float, *, lost: bool = False) -> dict[str, Grant]:
        """A report and its answer. lost: the answer never comes."""
        whole = self.whole or not leases.knows(self.name, now)
        demand = self.gate.demand(int(now * SECOND_NS))
        acted = Part(self.gate.terms.rate, self.gate.terms.burst, self.gate.terms.concurrent)
        held = acted if whole and self.gate.lease is not None else None
        asked = Asked(demand.rate, demand.in_flight, demand.concurrent, held, self.gate.lease is None)
        leases.report(self.name, {TENANT: asked}, self.serial, now)
        serial, grants, _ = leases.grants(self.name, {}, now)
        self.whole = lost
        if lost:
            return {}
        self.serial = serial
        grant, until_ns = grants.get(TENANT), int((now + LEASE_S) * SECOND_NS)
        if grant is None:
            self.gate.renew(until_ns, int(now * SECOND_NS))
        else:
            afterwards = Terms(0, MICRO, 0) if self.closes else terms_of(grant.afterwards)
            self.gate.take(Lease(terms_of(grant.part), afterwards, grant.mint), until_ns, int(now * SECOND_NS))
        return grants


def most_beyond(admitted: Iterable[float], per_s: float) -> float:
    """By how much the admissions within any window exceed what the rate brings in it."""
    best, beyond = 0.0, 0.0
    for count, at in enumerate(sorted(admitted), 1):
        best = max(best, at * per_s - (count - 1))
        beyond = max(beyond, best + count - at * per_s)
    return beyond


steps = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "exchange", "exchange", "exchange", "lose", "die", "leave", "join"]),
        st.integers(0, 5),
        st.integers(0, 1500),
    ),
    max_size=150,
)


class Fleet:
    """Frontends that come and go. Time passes with every step."""

    def __init__(self, quota: Quota, count: int, *, closes: bool = True) -> None:
        self.now, self.closes, self.made, self.most = 10.0, closes, 0, 0
        self.leases = Leases(lease_s=LEASE_S, began=0.0)
        self.leases.limit({TENANT: quota}, self.now)
        self.alive: list[SimFrontend] = []
        self.dead: list[SimFrontend] = []
        for _ in range(count):
            self.join()

    def join(self) -> None:
        self.made += 1
        self.alive.append(SimFrontend(f"f{self.made}", self.closes, self.now))
        self.most = max(self.most, len(self.alive))

    def step(self, what: str, which: int, wait_ms: int) -> None:
        self.now += wait_ms / 1000
        if what == "join" and len(self.alive) < 6:
            self.join()
        if not self.alive or what == "join":
            return
        one = self.alive[which % len(self.alive)]
        if what == "ask":
            one.ask(1 + which * 4, self.now)
        elif what in ("exchange", "lose"):
            one.exchange(self.leases, self.now, lost=what == "lose")
        else:
            if what == "leave":
                self.leases.report(one.name, {}, 0, self.now, leaving=True)
            self.alive.remove(one)
            self.dead.append(one)

    def admitted(self) -> list[float]:
        return [at for one in (*self.alive, *self.dead) for at in one.admitted]

    def settle(self, wanted: int = 300, rounds: int = 12) -> None:
        """Everybody is asked for much, and reports, until nothing moves."""
        for _ in range(rounds):
            self.now += 1.0
            for one in self.alive:
                one.ask(wanted, self.now)
                one.exchange(self.leases, self.now)


@given(steps, st.integers(1, 200), st.integers(1, 12), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_all_frontends_together_admit_no_more_in_any_window_than_the_burst_and_what_the_rate_brings(
    story, per_s, burst, count
):
    fleet = Fleet(Quota(rate=per_s * MICRO, burst=burst), count)
    for step in story:
        fleet.step(*step)
    names = fleet.made
    assert most_beyond(fleet.admitted(), per_s) <= max(burst, names) + 1e-3


@given(steps, st.integers(1, 12), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_no_more_requests_are_in_flight_than_there_are_slots(story, slots, count):
    fleet = Fleet(Quota(concurrent=slots), count)
    in_flight: dict[str, int] = {}
    heard: dict[str, float] = {}
    for what, which, wait_ms in story:
        if what == "ask" and fleet.alive:
            fleet.now += wait_ms / 1000
            one = fleet.alive[which % len(fleet.alive)]
            if which % 2 and in_flight.get(one.name):
                one.gate.leave()
                in_flight[one.name] -= 1
            else:
                in_flight[one.name] = in_flight.get(one.name, 0) + one.ask(which, fleet.now, stay=True)
        else:
            before = {one.name for one in fleet.alive}
            fleet.step(what, which, wait_ms)
            for name in before - {one.name for one in fleet.alive}:
                # Its requests end with it.
                in_flight.pop(name, None)
        for one in fleet.alive:
            # Who is cut off keeps what it has in flight, whatever others are given: here nobody is.
            if fleet.now - heard.get(one.name, fleet.now) >= 1.4 or one.name not in heard or what == "exchange":
                one.exchange(fleet.leases, fleet.now)
                heard[one.name] = fleet.now
        assert sum(in_flight.values()) <= slots


@given(steps, st.integers(1, 200), st.integers(1, 12), st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_no_part_of_a_quota_is_lost_for_ever(story, per_s, burst, slots):
    for quota in (Quota(rate=per_s * MICRO, burst=burst), Quota(concurrent=slots)):
        fleet = Fleet(quota, 2)
        for step in story:
            fleet.step(*step)
        if not fleet.alive:
            fleet.join()
        fleet.settle()
        held = []
        for _ in range(4):
            # A slot that moves from one to another is nobody's for a while.
            fleet.settle(rounds=1)
            parts = [one.gate.terms for one in fleet.alive]
            held.append(sum(part.concurrent or 0 for part in parts))
            if quota.rate is not None:
                assert quota.rate * 0.97 <= sum(part.rate or 0 for part in parts) <= quota.rate
        assert quota.concurrent is None or max(held) == slots


@given(steps, st.integers(1, 100), st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_a_scheduler_that_begins_anew_gives_away_nothing_that_is_held(story, per_s, burst):
    fleet = Fleet(Quota(rate=per_s * MICRO, burst=burst), 3)
    fleet.settle(rounds=5)
    for place, step in enumerate(story):
        fleet.step(*step)
        if place == len(story) // 2:
            fleet.leases = Leases(lease_s=LEASE_S, began=fleet.now)
            fleet.leases.limit({TENANT: Quota(rate=per_s * MICRO, burst=burst)}, fleet.now)
            for one in fleet.alive:
                one.whole, one.serial = True, 0
    assert most_beyond(fleet.admitted(), per_s) <= max(burst, fleet.made) + 1e-3


@given(st.integers(1, 6), st.integers(10, 500))
@settings(max_examples=20, deadline=None)
def test_with_the_scheduler_gone_frontends_go_on_with_even_parts_which_add_up_to_the_quota(count, per_s):
    fleet = Fleet(Quota(rate=per_s * MICRO, burst=count, concurrent=12), count, closes=False)
    fleet.settle()
    fleet.now += LEASE_S + 1
    for one in fleet.alive:
        one.ask(1, fleet.now)
    parts = [one.gate.terms for one in fleet.alive]
    assert sum(part.rate or 0 for part in parts) <= per_s * MICRO
    assert all(part.rate == per_s * MICRO // count for part in parts)
    assert sum(part.concurrent or 0 for part in parts) <= 12


@given(st.integers(1, 5), st.integers(1, 5), st.integers(10, 500))
@settings(max_examples=20, deadline=None)
def test_frontends_that_are_cut_off_and_those_that_are_not_admit_at_most_twice_the_quota(cut, left, per_s):
    fleet = Fleet(Quota(rate=per_s * MICRO, burst=cut + left), cut + left, closes=False)
    fleet.settle()
    gone, fleet.alive = fleet.alive[:cut], fleet.alive[cut:]
    fleet.settle()
    for one in gone:
        one.ask(1, fleet.now)
    rate = sum(one.gate.terms.rate or 0 for one in (*gone, *fleet.alive))
    assert rate <= 2 * per_s * MICRO


def test_whoever_is_asked_for_more_gets_more_and_the_idle_keep_a_little():
    fleet = Fleet(Quota(rate=100 * MICRO, burst=10), 2)
    busy, idle = fleet.alive
    for _ in range(30):
        fleet.now += 0.5
        busy.ask(500, fleet.now)
        for one in (busy, idle):
            one.exchange(fleet.leases, fleet.now)
    assert (busy.gate.terms.rate or 0) >= 98 * MICRO
    assert (idle.gate.terms.rate or 0) >= 0.9 * MICRO


def test_a_flood_through_two_frontends_is_admitted_at_the_quota():
    fleet = Fleet(Quota(rate=50 * MICRO, burst=5), 2)
    fleet.settle(rounds=3)
    before, began = len(fleet.admitted()), fleet.now
    for tick in range(1, 2001):
        fleet.now = began + tick / 100
        for place, one in enumerate(fleet.alive):
            one.ask(3 if tick % 2 else 2, fleet.now)
            if tick % 100 == place * 37:
                one.exchange(fleet.leases, fleet.now)
    assert 0.97 * 1000 <= len(fleet.admitted()) - before <= 1005


@given(st.integers(0, 10**9), st.dictionaries(st.text(max_size=3), st.integers(0, 10**9), min_size=1, max_size=8))
def test_what_is_divided_adds_up_and_nobody_who_asks_for_little_goes_short(whole, asked):
    for divided in (divide(whole, asked), divide_slots(whole, asked)):
        assert sum(divided.values()) == whole
        assert min(divided.values()) >= 0
    parts = divide_slots(whole, asked)
    for name, wanted in asked.items():
        assert parts[name] >= min(wanted, whole // len(asked))


def used(device_s: float, requests: int = 0, name: str = "book", tenant: str = TENANT) -> UsageReport:
    ns = int(device_s * 1e9)
    return UsageReport(Key(tenant, "m"), name, ns, ns * 8, requests)


def test_device_time_falls_by_what_is_reported_and_comes_back_evenly():
    budgets = DeviceBudgets()
    budgets.limit({TENANT: Quota(device_ns=60 * SECOND_NS, device_interval_s=600)}, 0.0)
    budgets.report("e", 8, [used(1000.0, 100)], 0.0)
    assert budgets.left(0.0)[TENANT].level_ns == 60 * SECOND_NS, "what was used before is charged to nobody"
    budgets.report("e", 8, [used(1090.0, 190)], 0.0)
    left = budgets.left(0.0)[TENANT]
    assert (left.level_ns, left.request_ns, left.retry_s) == (-30 * SECOND_NS, SECOND_NS, 300.0)
    assert budgets.left(301.0)[TENANT].level_ns > 0
    assert budgets.left(10_000.0)[TENANT].level_ns == 60 * SECOND_NS
    budgets.report("e", 8, [used(1090.0, 190)], 10_000.0)
    assert budgets.left(10_000.0)[TENANT].level_ns == 60 * SECOND_NS, "told again, it changes nothing"


@given(st.lists(st.tuples(st.floats(0.1, 5), st.floats(0, 20)), max_size=60), st.floats(1, 100), st.integers(1, 100))
def test_over_time_no_more_device_time_is_used_than_the_quota_and_what_one_report_brings(reports, quota_s, interval_s):
    budgets = DeviceBudgets()
    budgets.limit({TENANT: Quota(device_ns=int(quota_s * 1e9), device_interval_s=interval_s)}, 0.0)
    now = total = most = 0.0
    budgets.report("e", 8, [used(0.0)], 0.0)
    for step, wanted in reports:
        now += step
        if budgets.left(now)[TENANT].level_ns > 0:
            total, most = total + wanted, max(most, wanted)
        budgets.report("e", 8, [used(total)], now)
        assert total <= quota_s + quota_s / interval_s * now + most + 0.01


def test_the_gate_is_told_how_many_requests_the_device_time_is_good_for():
    leases, budgets = Leases(lease_s=LEASE_S, began=-10.0), DeviceBudgets()
    quotas = {TENANT: Quota(device_ns=10 * SECOND_NS, device_interval_s=10)}
    leases.limit(quotas, 0.0)
    budgets.limit(quotas, 0.0)
    budgets.report("e", 8, [used(0.0)], 0.0)
    budgets.report("e", 8, [used(8.0, 80)], 0.0)
    leases.report("f", {}, 0, 0.0)
    grant = leases.grants("f", budgets.left(0.0), 0.0)[1][TENANT]
    assert grant.device_requests == 20, "2 s are left, of 0.1 s a request"
    assert grant.afterwards.rate == 10 * MICRO, "and a second of them comes back each second"
    gate = Gate(Terms(), 0)
    gate.take(Lease(Terms(device_requests=grant.device_requests), terms_of(grant.afterwards)), NEVER_NS, 0)
    assert [gate.enter(0) is None for _ in range(21)].count(True) == 20
