"""The promise, directly: within (σ, ρ) and with enough time, neither refused nor late, whatever the others do.

Small workloads on the smallest lane there is; the simulated device has many more, with errors, faults and contention.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

from arbiter_world import Model, World
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_sharing.arbiter import Arbiter

UNIT = 10_000


class Tenant(NamedTuple):
    """kind: "kept" has the promise; "flood" has objectives it cannot have; "fill" is class batch."""

    model: Model
    bandwidth: int
    kind: str
    burst: int
    percent: int
    seed: int


def bound(tenants: list[Tenant], tenant: Tenant) -> int:
    """The least objective for which the promise is made."""
    longest = max(each.model.segment(max(1, each.model.max_batch_size)) for each in tenants)
    return math.ceil(tenant.burst * tenant.model.cost(1) * 1000 / tenant.bandwidth) + 2 * longest


def greedy(tenant: Tenant, until: int, chance: random.Random) -> list[int]:
    """As early as (σ, ρ) allows, with rests in which the bucket fills up again; exact: in thousandths of a nanosecond."""
    cost, sigma = tenant.model.cost(1) * 1000, tenant.burst * tenant.model.cost(1) * 1000
    tokens, moment, moments = sigma, 0, []
    while moment < until and len(moments) < 60:
        if tokens < cost:
            wait = -(-(cost - tokens) // tenant.bandwidth)
            moment, tokens = moment + wait, min(sigma, tokens + wait * tenant.bandwidth)
        tokens -= cost
        moments.append(moment)
        if chance.random() < 0.15:
            rest = chance.randrange(1 + sigma // tenant.bandwidth)
            moment, tokens = moment + rest, min(sigma, tokens + rest * tenant.bandwidth)
    return moments


def fill(world: World, replica: int, tenant: Tenant, objective: int, until: int) -> None:
    """Its requests come."""
    chance = random.Random(tenant.seed)
    if tenant.kind == "kept":
        for moment in greedy(tenant, until, chance):
            world.arrive(replica, at=moment, within=objective)
        return
    cost, moment = tenant.model.cost(1), 0
    while moment < until:
        for _ in range(chance.choice((1, 1, 6))):
            within = None if tenant.kind == "fill" else cost * chance.choice((1, 3, 30))
            call = world.arrive(replica, at=moment, within=within, patience=chance.choice((None, 40 * cost)))
            if chance.random() < 0.1:
                world.cancel(call, moment + chance.randrange(1, 5 * cost))
        moment += 1 + int(cost * chance.random())


def broken(tenants: list[Tenant], until: int = 300 * UNIT) -> list[str]:
    """What became of requests that were promised more."""
    world = World(Arbiter(), audit_every=40)
    objectives = {}
    for replica, tenant in enumerate(tenants):
        world.host(replica, tenant.model, bandwidth=tenant.bandwidth, tenant=f"tenant {replica}")
        objectives[replica] = bound(tenants, tenant) * tenant.percent // 100 if tenant.kind == "kept" else 0
        fill(world, replica, tenant, objectives[replica], until)
    world.run()
    assert set(world.endings) == set(world.requests)
    kept = [ending for ending in world.endings.values() if tenants[ending.request.replica].kind == "kept"]
    return [f"{ending}" for ending in kept if not ending.is_good]


MODELS = st.builds(
    Model,
    segments=st.integers(1, 6),
    fixed=st.sampled_from([0, UNIT, 4 * UNIT]),
    each=st.integers(1, 5).map(lambda units: units * UNIT),
    max_batch_size=st.sampled_from([0, 1, 4, 8]),
)


@st.composite
def workloads(draw: st.DrawFn) -> list[Tenant]:
    """Tenants whose reservations add up to the lane or less; the first has the promise."""
    parts = draw(st.lists(st.integers(1, 10), min_size=1, max_size=4))
    tenants = []
    for place, part in enumerate(parts):
        kind = "kept" if place == 0 else draw(st.sampled_from(["kept", "kept", "flood", "fill"]))
        burst, percent = draw(st.integers(1, 6)), draw(st.sampled_from([100, 100, 105, 200]))
        tenants.append(Tenant(draw(MODELS), 1000 * part // sum(parts), kind, burst, percent, draw(st.integers(0, 99))))
    for _ in range(draw(st.integers(0, 2))):
        tenants.append(
            Tenant(draw(MODELS), 0, draw(st.sampled_from(["flood", "fill"])), 1, 100, draw(st.integers(0, 99)))
        )
    return tenants


@settings(max_examples=150, deadline=None)
@given(workloads())
def test_a_tenant_within_its_reservation_is_neither_refused_nor_late(tenants: list[Tenant]) -> None:
    assert not broken(tenants)


def by_chance(seed: int) -> list[Tenant]:
    """A workload that a seed stands for."""
    chance = random.Random(seed)
    parts = [chance.randint(1, 10) for _ in range(chance.randint(1, 4))]
    tenants = []
    for bandwidth in [*(1000 * part // sum(parts) for part in parts), *[0] * chance.randint(0, 2)]:
        model = Model(
            chance.randint(1, 6),
            chance.choice((0, UNIT, 4 * UNIT)),
            chance.randint(1, 5) * UNIT,
            chance.choice((0, 1, 4, 8)),
        )
        kind = (
            "kept"
            if not tenants
            else chance.choice(("kept", "kept", "flood", "fill") if bandwidth else ("flood", "fill"))
        )
        tenants.append(Tenant(model, bandwidth, kind, chance.randint(1, 6), chance.choice((100, 100, 105, 200)), seed))
    return tenants


def test_the_promise_holds_in_workloads_drawn_by_chance() -> None:
    for seed in range(60):
        assert not broken(by_chance(seed)), seed
