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
from gpu_sharing.simulation.scenario import Arrive, Contract, Happening, Scenario, Tenant, Unload, Update
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

    begins: when bursts begin, where they begin together; None: each at a moment of its own. pressing: all that is reserved is asked for at once, a moment after somebody else has
    begun a slice, and nothing is saved by batching: answers then come as late as they ever may. frame: the device.
    """

    choose: Choices
    chance: np.random.Generator
    stretch_ns: Nanoseconds
    slice_ns: Nanoseconds
    end: Nanoseconds
    begins: Nanoseconds | None
    pressing: bool
    frame: Scenario


class _Came(NamedTuple):
    """A tenant, and what happens to it."""

    tenant: Tenant
    happenings: list[Happening]


def promise_workload(choose: Choices) -> Scenario:
    """Tenants with the promise, many of them just so, beside others that flood, overrun, break, cancel, come and go."""
    seed = choose.integer(0, 2**31)
    chance = np.random.Generator(np.random.PCG64(seed))
    pressing = choose.integer(0, 1) == 1
    stretch_ns = choose.integer(5, 60) * MS
    slice_ns = stretch_ns // choose.integer(40 if pressing else 8, 80)
    end = stretch_ns * choose.integer(1, 5)
    begins = 1 + stretch_ns * choose.integer(0, 2) if pressing or choose.integer(0, 2) < 2 else None
    contended = not pressing and choose.integer(0, 5) == 5
    frame = Scenario((), (), lanes=2 if contended else 1, seed=seed, memory_shared=contended)
    world = _World(choose, chance, stretch_ns, slice_ns, end, begins, pressing, frame)
    came = _reserved(world)
    for number in range(choose.integer(1 if contended else 0, 3)):
        came.append(_other(world, len(came) + 1, 0, lane=1 if contended and number == 0 else 0))
    came += _moved(world, came)
    tenants = tuple(each.tenant for each in came)
    happenings = tuple(happening for each in came for happening in each.happenings)
    return _with_objectives(msgspec.structs.replace(frame, tenants=tenants, happenings=happenings), choose)


def _reserved(world: _World) -> list[_Came]:
    """Tenants whose reservations add up to the whole lane, or less."""
    choose = world.choose
    parts = [choose.integer(1, 10) for _ in range(choose.integer(1, 5))]
    total = _FULL if world.pressing or choose.integer(0, 2) else choose.integer(200, _FULL)
    came = []
    for replica, part in enumerate(parts, start=1):
        make = _conforming if replica == 1 or choose.integer(0, 4) else _other
        came.append(make(world, replica, max(1, total * part // sum(parts))))
    return came


def _conforming(world: _World, replica: int, bandwidth: Millidevices) -> _Came:
    choose, pressing = world.choose, world.pressing
    errors = (EXACT, EXACT, Bounded(0.8, 1.0), Bounded(0.9, 1.25))
    error = errors[0 if pressing else choose.integer(0, 3)]
    memory_share = choose.integer(0, 10) / 10 if world.frame.memory_shared else 0.0
    burst_ns = world.stretch_ns * (4, 4, 4, 2, 6, 9)[0 if pressing else choose.integer(0, 5)] // 4
    requests = choose.integer(1, 6)
    most_rows = (1, 0, 4, 8)[choose.integer(0, 1 if pressing else 3)]
    rows = choose.integer(1, min(3, max(1, most_rows)))
    blank = Tenant(replica, SimulatedModel((), memory_share=memory_share), bandwidth, error=error)
    most = stretch(world.frame, blank)
    model = _model(world, max(1000, int(burst_ns * bandwidth / _FULL / requests / most)), rows, most_rows)
    contract = Contract(model.cost(rows) * requests, max(1, math.floor(bandwidth / most)))
    tenant = msgspec.structs.replace(
        blank,
        model=msgspec.structs.replace(model, memory_share=memory_share),
        weight=choose.integer(1, 4),
        contract=contract,
    )
    return _Came(tenant, _conforming_arrivals(world, tenant, contract, rows))


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
    start = choose.integer(0, 20) * world.stretch_ns // 20 if world.begins is None else world.begins
    bucket = arrivals.TokenBucket(contract.sigma_ns, contract.rho)
    most = min(60, 1 + (contract.sigma_ns + contract.rho * world.end // _FULL) // tenant.model.cost(rows))
    mixed = not world.pressing and choose.integer(0, 1) == 1
    sizes = [int(size) for size in world.chance.integers(1, rows + 1, most)] if mixed else [rows] * most
    costs = [tenant.model.cost(size) for size in sizes]
    style = choose.integer(0, 1 if world.pressing else 2)
    if style == 0:
        moments = list(arrivals.greedy(bucket, costs, start))
    elif style == 1:
        moments = _bursts(bucket, costs, contract, start)
    else:
        rate = 2.0 * contract.rho / _FULL * SECOND / tenant.model.cost(rows)
        came = arrivals.poisson(world.chance, rate, start, start + world.end)
        moments = [moment for moment, _ in arrivals.thinned(bucket, came, costs)]
    cancels = choose.integer(0, 5) == 5
    longer = choose.integer(0, 3) == 3
    return [
        Arrive(moment, tenant.replica, size, _cancelled(world, often=cancels), _longer(world, often=longer))
        for moment, size in zip(moments, sizes, strict=False)
    ]


def _bursts(
    bucket: arrivals.TokenBucket, costs: list[Nanoseconds], contract: Contract, start: Nanoseconds
) -> list[Nanoseconds]:
    """Rests long enough to have all of sigma again, then asks for it at once, and so on."""
    rest = contract.sigma_ns * _FULL // contract.rho + 1
    moments, spent = list[Nanoseconds](), 0
    for cost in costs:
        if spent + cost > contract.sigma_ns:
            start, spent = start + rest, 0
        bucket.take(start, cost)
        moments.append(start)
        spent += cost
    return moments


def _cancelled(world: _World, *, often: bool) -> Nanoseconds | None:
    if not often or world.chance.random() < 0.6:
        return None
    return int(world.chance.integers(0, world.stretch_ns))


def _longer(world: _World, *, often: bool) -> Nanoseconds:
    return int(world.chance.integers(0, 2 * world.stretch_ns)) if often and world.chance.random() < 0.5 else 0


def _other(world: _World, replica: int, bandwidth: Millidevices, *, lane: int = 0) -> _Came:
    """Somebody without the promise."""
    choose, pressing = world.choose, world.pressing
    most_rows = (1, 0, 4, 16)[choose.integer(0, 1 if pressing else 3)]
    slices = choose.integer(1, 8)
    cost_ns = world.slice_ns * slices * choose.integer(1, 1 if pressing else 3)
    model = _model(world, cost_ns, 1, most_rows, slices)
    # With an objective far away, much is promised for much later.
    patience = (cost_ns, world.stretch_ns)[choose.integer(0, 1)] * choose.integer(1, 20)
    objective_ns = None if choose.integer(0, 2) == 0 else patience
    errors = (EXACT, Bounded(1.0, 2.0), Bounded(0.5, 2.0), Lognormal(0.5))
    tenant = Tenant(
        replica,
        msgspec.structs.replace(model, memory_share=0.8 if world.frame.memory_shared else 0.0),
        bandwidth,
        choose.integer(1, 4),
        objective_ns,
        deadline_ns=None if objective_ns is None or choose.integer(0, 1) else 2 * objective_ns,
        error=errors[choose.integer(0, 1 if pressing else 3)],
        faults=FaultRates(raises=0.05, out_of_memory=0.05) if choose.integer(0, 3) == 3 else None,
        lane=lane,
        loaded_at=0 if choose.integer(0, 2) else world.end // 3,
    )
    return _Came(tenant, _flooded(world, tenant, cost_ns))


def _flooded(world: _World, tenant: Tenant, cost_ns: Nanoseconds) -> list[Happening]:
    choose = world.choose
    cancels = choose.integer(0, 2) == 2
    happenings: list[Happening] = []
    for moment in _flood(world, cost_ns):
        if moment >= tenant.loaded_at or choose.integer(0, 1):
            happenings.append(Arrive(moment, tenant.replica, 1, _cancelled(world, often=cancels)))
    if choose.integer(0, 3) == 3:
        at = tenant.loaded_at + world.end // choose.integer(1, 4)
        happenings.append(Unload(at, tenant.replica, drain_ns=world.stretch_ns * choose.integer(0, 2)))
    return happenings


def _flood(world: _World, cost_ns: Nanoseconds) -> list[Nanoseconds]:
    choose, chance = world.choose, world.chance
    rate = SECOND / cost_ns * (0.3, 1.0, 3.0)[choose.integer(0, 2)]
    start = max(0, (world.begins or 1) - 1)
    end = start + world.end
    style = choose.integer(0, 4)
    if style == 0:
        moments = [0] * 40
    elif style == 1:
        moments = [start] * 60
    elif style == 2:
        moments = arrivals.bursts(choose.integer(1, 12), max(1, world.end // 5), 0, end)
    elif style == 3:
        moments = arrivals.gamma(chance, rate, 3.0, 0, end)
    else:
        moments = arrivals.on_off(chance, rate, world.end // 6 + 1, world.end // 6 + 1, 0, end)
    return moments[:80]


def _moved(world: _World, came: list[_Came]) -> list[_Came]:
    """Reservations of those without the promise change hands: at once between two of them, or to a newcomer."""
    others = [each for each in came if each.tenant.contract is None and each.tenant.lane == 0]
    holders = [each for each in others if each.tenant.bandwidth]
    if not holders or world.choose.integer(0, 1):
        return []
    holder = holders[0]
    part = holder.tenant.bandwidth
    moments = (holder.tenant.loaded_at + world.end // world.choose.integer(1, 5), max(1, (world.begins or 1) - 1))
    at = max(holder.tenant.loaded_at, moments[world.choose.integer(0, 1)])
    if any(isinstance(each, Unload) for each in holder.happenings):
        unload = next(each for each in holder.happenings if isinstance(each, Unload))
        newcomer = _other(world, len(came) + 1, part)
        # By then the holder is gone, whatever it was doing.
        loaded_at = unload.at + unload.drain_ns + (1 if world.pressing else 8) * world.stretch_ns
        tenant = msgspec.structs.replace(newcomer.tenant, loaded_at=loaded_at)
        return [_Came(tenant, [_later(each, loaded_at) for each in newcomer.happenings])]
    holder.happenings.append(Update(at, holder.tenant.replica, 0, 1))
    heirs = [each for each in others if not each.tenant.bandwidth and each.tenant.loaded_at <= at]
    if heirs:
        heirs[0].happenings.append(Update(at, heirs[0].tenant.replica, part, 1))
    return []


def _later(happening: Happening, by: Nanoseconds) -> Happening:
    return msgspec.structs.replace(happening, at=happening.at + by)


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
        tenants.append(tenant)
    return msgspec.structs.replace(scenario, tenants=tuple(tenants))
