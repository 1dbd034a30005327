"""Workloads that try to break the promise, from choices that somebody else makes. PURE."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import msgspec
import numpy as np

from gpu_sharing.simulation import arrivals
from gpu_sharing.simulation.faults import FaultRates
from gpu_sharing.simulation.models import EXACT, Bounded, Lognormal, Segment, SimulatedModel
from gpu_sharing.simulation.promise import bound, stretch
from gpu_sharing.simulation.scenario import Arrive, Contract, Happening, Scenario, Tenant, Unload
from gpu_sharing.units import MS, SECOND, Millidevices, Nanoseconds

_FULL = 1000


class Choices(Protocol):
    """Where a workload's parts come from: chance, or a tool that looks for the smallest that breaks something."""

    def integer(self, least: int, most: int) -> int:
        """A whole number between both, which belong to it. Smaller ones make simpler workloads."""
        ...


class Chance:
    """Choices at random."""

    def __init__(self, chance: np.random.Generator) -> None:
        self._chance = chance

    def integer(self, least: int, most: int) -> int:
        """See `Choices`."""
        return int(self._chance.integers(least, most + 1))


class _World(NamedTuple):
    """stretch_ns: how long a burst at a reservation takes. slice_ns: a usual slice. end: of arrivals.

    together: bursts begin at one moment. pressing: all that is reserved is asked for at once, a moment after somebody else has
    begun a slice, and nothing is saved by batching: answers then come as late as they ever may.
    """

    choose: Choices
    chance: np.random.Generator
    stretch_ns: Nanoseconds
    slice_ns: Nanoseconds
    end: Nanoseconds
    together: bool
    pressing: bool


def promise_workload(choose: Choices) -> Scenario:
    """Tenants with the promise, many of them just so, beside others that flood, overrun, break, cancel, come and go."""
    seed = choose.integer(0, 2**31)
    chance = np.random.Generator(np.random.PCG64(seed))
    pressing = choose.integer(0, 1) == 1
    stretch_ns = choose.integer(5, 60) * MS
    slice_ns = stretch_ns // choose.integer(40 if pressing else 8, 80)
    end = stretch_ns * choose.integer(1, 5)
    together = pressing or choose.integer(0, 2) < 2
    world = _World(choose, chance, stretch_ns, slice_ns, end, together, pressing)
    bandwidths = _bandwidths(choose, whole=pressing)
    tenants, happenings = [], list[Happening]()
    for replica, bandwidth in enumerate(bandwidths, start=1):
        make = _conforming if pressing or replica == 1 or choose.integer(0, 4) else _other
        tenant, came = make(world, replica, bandwidth)
        tenants.append(tenant)
        happenings += came
    for replica in range(len(bandwidths) + 1, len(bandwidths) + 1 + choose.integer(0, 3)):
        tenant, came = _other(world, replica, 0)
        tenants.append(tenant)
        happenings += came
    scenario = Scenario(tuple(tenants), tuple(happenings), seed=seed)
    return _with_objectives(scenario, choose)


def _bandwidths(choose: Choices, *, whole: bool) -> list[Millidevices]:
    """Whose sum is the whole lane, or less."""
    parts = [choose.integer(1, 10) for _ in range(choose.integer(1, 5))]
    total = _FULL if whole or choose.integer(0, 2) else choose.integer(200, _FULL)
    return [total * part // sum(parts) for part in parts]


def _conforming(world: _World, replica: int, bandwidth: Millidevices) -> tuple[Tenant, list[Happening]]:
    choose = world.choose
    pressing = world.pressing
    errors = (EXACT, EXACT, Bounded(0.8, 1.0), Bounded(0.9, 1.25))
    error = errors[0 if pressing else choose.integer(0, 3)]
    burst_ns = world.stretch_ns * (4, 4, 4, 2, 6, 9)[0 if pressing else choose.integer(0, 5)] // 4
    requests = choose.integer(1, 6)
    most_rows = (1, 0, 4, 8)[choose.integer(0, 1 if pressing else 3)]
    rows = choose.integer(1, min(3, max(1, most_rows)))
    cost_ns = max(1000, int(burst_ns * bandwidth / _FULL / requests / error.most))
    model = _model(world, cost_ns, rows, most_rows)
    sigma_ns = model.cost(rows) * requests
    rho = max(1, math.floor(bandwidth / error.most))
    tenant = Tenant(replica, model, bandwidth, choose.integer(1, 4), error=error, contract=Contract(sigma_ns, rho))
    return tenant, _conforming_arrivals(world, tenant, Contract(sigma_ns, rho), rows)


def _model(world: _World, cost_ns: Nanoseconds, rows: int, most_rows: int, slices: int | None = None) -> SimulatedModel:
    """One whose batch of `rows` costs about cost_ns, in segments of about a usual slice at the most rows."""
    choose = world.choose
    fixed_ns = cost_ns * (0, 1, 3)[choose.integer(0, 2)] // 4
    row_ns = (cost_ns - fixed_ns) // rows
    whole_ns = fixed_ns + row_ns * max(most_rows, rows)
    count = slices or min(40, max(1, -(-whole_ns // (world.slice_ns * choose.integer(1, 1 if world.pressing else 2)))))
    return SimulatedModel((Segment(fixed_ns // count, max(1, row_ns // count)),) * count, most_rows)


def _conforming_arrivals(world: _World, tenant: Tenant, contract: Contract, rows: int) -> list[Happening]:
    choose = world.choose
    start = 1 if world.together else choose.integer(0, 20) * world.stretch_ns // 20
    bucket = arrivals.TokenBucket(contract.sigma_ns, contract.rho)
    cost_ns = tenant.model.cost(rows)
    most = min(60, 1 + (contract.sigma_ns + contract.rho * world.end // _FULL) // cost_ns)
    costs = [cost_ns] * most
    style = choose.integer(0, 1 if world.pressing else 2)
    if style == 0:
        moments = list(arrivals.greedy(bucket, costs, start))
    elif style == 1:
        # Rests long enough to have all of sigma again, then asks for it at once.
        moments, burst = [], max(1, contract.sigma_ns // cost_ns)
        rest = contract.sigma_ns * _FULL // contract.rho
        while len(moments) < most:
            moments += arrivals.greedy(bucket, costs[:burst], moments[-1] + rest if moments else start)
    else:
        rate = 2.0 * contract.rho / _FULL * SECOND / cost_ns
        came = arrivals.poisson(world.chance, rate, start, start + world.end)
        moments = [moment for moment, _ in arrivals.thinned(bucket, came, costs)]
    cancels = choose.integer(0, 5) == 5
    return [Arrive(moment, tenant.replica, rows, _cancelled(world, often=cancels)) for moment in moments]


def _cancelled(world: _World, *, often: bool) -> Nanoseconds | None:
    if not often or world.chance.random() < 0.6:
        return None
    return int(world.chance.integers(0, world.stretch_ns))


def _other(world: _World, replica: int, bandwidth: Millidevices) -> tuple[Tenant, list[Happening]]:
    """Somebody without the promise."""
    choose = world.choose
    pressing = world.pressing
    most_rows = (1, 0, 4, 16)[choose.integer(0, 1 if pressing else 3)]
    slices = choose.integer(1, 8)
    cost_ns = world.slice_ns * slices * choose.integer(1, 1 if pressing else 3)
    error = (EXACT, Bounded(0.5, 2.0), Lognormal(0.5))[choose.integer(0, 0 if pressing else 2)]
    faults = FaultRates(raises=0.05, out_of_memory=0.05) if choose.integer(0, 3) == 3 else None
    objective_ns = None if choose.integer(0, 2) == 0 else cost_ns * choose.integer(1, 20)
    deadline_ns = None if objective_ns is None or choose.integer(0, 1) else 2 * objective_ns
    loaded_at = 0 if choose.integer(0, 2) else world.end // 3
    model = _model(world, cost_ns, 1, most_rows, slices)
    shares = (bandwidth, choose.integer(1, 4), objective_ns, deadline_ns, error, faults)
    tenant = Tenant(replica, model, *shares, loaded_at=loaded_at)
    happenings: list[Happening] = []
    cancels = choose.integer(0, 2) == 2
    for moment in _flood(world, cost_ns):
        if moment >= loaded_at or choose.integer(0, 1):
            happenings.append(Arrive(moment, replica, 1, _cancelled(world, often=cancels)))
    if choose.integer(0, 3) == 3:
        at = loaded_at + world.end // choose.integer(1, 4)
        happenings.append(Unload(at, replica, drain_ns=world.stretch_ns * choose.integer(0, 2)))
    return tenant, happenings


def _flood(world: _World, cost_ns: Nanoseconds) -> list[Nanoseconds]:
    choose, chance = world.choose, world.chance
    rate = SECOND / cost_ns * (0.3, 1.0, 3.0)[choose.integer(0, 2)]
    style = choose.integer(0, 3)
    if style == 0:
        moments = [0] * 40
    elif style == 1:
        moments = arrivals.bursts(choose.integer(1, 12), max(1, world.end // 5), 0, world.end)
    elif style == 2:
        moments = arrivals.gamma(chance, rate, 3.0, 0, world.end)
    else:
        moments = arrivals.on_off(chance, rate, world.end // 6 + 1, world.end // 6 + 1, 0, world.end)
    return moments[:80]


def _with_objectives(scenario: Scenario, choose: Choices) -> Scenario:
    """Objectives at the bound, near it, or beyond it, once everyone's slices are known."""
    tenants = []
    for tenant in scenario.tenants:
        contract = tenant.contract
        if contract is not None:
            percent = (100, 100, 103, 109, 150, 400)[choose.integer(0, 5)]
            objective_ns = -(-bound(scenario, tenant, contract) * percent // 100)
            deadline_ns = (objective_ns, None, 2 * objective_ns)[choose.integer(0, 2)]
            tenant = msgspec.structs.replace(tenant, objective_ns=objective_ns, deadline_ns=deadline_ns)
            assert contract.rho * stretch(scenario, tenant) <= tenant.bandwidth
        tenants.append(tenant)
    return msgspec.structs.replace(scenario, tenants=tuple(tenants))
