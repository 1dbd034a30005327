"""Tenants whose arrivals keep to a contract, as closely as they can. PURE."""

from __future__ import annotations

import math

import msgspec

from gpu_sharing.simulation import arrivals
from gpu_sharing.simulation.choices import FULL, Came, World, cancelled, model_of
from gpu_sharing.simulation.models import EXACT, Bounded, SimulatedModel
from gpu_sharing.simulation.promise import stretch
from gpu_sharing.simulation.scenario import Arrive, Contract, Happening, Tenant
from gpu_sharing.units import SECOND, Millidevices, Nanoseconds


def conforming(world: World, replica: int, bandwidth: Millidevices) -> Came:
    """Somebody with the promise, whose objective is still to be set."""
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
    model = model_of(world, max(1000, int(burst_ns * bandwidth / FULL / requests / most)), rows, most_rows)
    contract = Contract(model.cost(rows) * requests, max(1, math.floor(bandwidth / most)))
    tenant = msgspec.structs.replace(
        blank,
        model=msgspec.structs.replace(model, memory_share=memory_share),
        weight=choose.integer(1, 4),
        contract=contract,
    )
    return Came(tenant, _arrivals(world, tenant, contract, rows))


def _arrivals(world: World, tenant: Tenant, contract: Contract, rows: int) -> list[Happening]:
    choose = world.choose
    start = choose.integer(0, 20) * world.stretch_ns // 20 if world.begins is None else world.begins
    bucket = arrivals.TokenBucket(contract.sigma_ns, contract.rho)
    most = min(60, 1 + (contract.sigma_ns + contract.rho * world.end // FULL) // tenant.model.cost(rows))
    mixed = not world.pressing and choose.integer(0, 1) == 1
    sizes = [int(size) for size in world.chance.integers(1, rows + 1, most)] if mixed else [rows] * most
    costs = [tenant.model.cost(size) for size in sizes]
    style = choose.integer(0, 1 if world.pressing else 2)
    if style == 0:
        moments = list(arrivals.greedy(bucket, costs, start))
    elif style == 1:
        moments = _bursts(bucket, costs, contract, start)
    else:
        rate = 2.0 * contract.rho / FULL * SECOND / tenant.model.cost(rows)
        came = arrivals.poisson(world.chance, rate, start, start + world.end)
        moments = [moment for moment, _ in arrivals.thinned(bucket, came, costs)]
    cancels = choose.integer(0, 5) == 5
    longer = choose.integer(0, 3) == 3
    return [
        Arrive(moment, tenant.replica, size, cancelled(world, often=cancels), _longer(world, often=longer))
        for moment, size in zip(moments, sizes, strict=False)
    ]


def _bursts(
    bucket: arrivals.TokenBucket, costs: list[Nanoseconds], contract: Contract, start: Nanoseconds
) -> list[Nanoseconds]:
    """Rests long enough to have all of sigma again, then asks for it at once, and so on."""
    rest = contract.sigma_ns * FULL // contract.rho + 1
    moments, spent = list[Nanoseconds](), 0
    for cost in costs:
        if spent + cost > contract.sigma_ns:
            start, spent = start + rest, 0
        bucket.take(start, cost)
        moments.append(start)
        spent += cost
    return moments


def _longer(world: World, *, often: bool) -> Nanoseconds:
    return int(world.chance.integers(0, 2 * world.stretch_ns)) if often and world.chance.random() < 0.5 else 0
