"""Tenants that keep to no contract, and try to have more than their part. PURE."""

from __future__ import annotations

import msgspec

from gpu_sharing.simulation import arrivals
from gpu_sharing.simulation.choices import FULL, Came, World, cancelled, model_of
from gpu_sharing.simulation.faults import FaultRates
from gpu_sharing.simulation.models import EXACT, Bounded, Lognormal, Segment, SimulatedModel
from gpu_sharing.simulation.scenario import Arrive, Happening, Tenant, Unload, Update
from gpu_sharing.units import SECOND, Millidevices, Nanoseconds


def other(world: World, replica: int, bandwidth: Millidevices, *, lane: int = 0) -> Came:
    """Somebody without the promise."""
    choose, pressing = world.choose, world.pressing
    most_rows = (1, 0, 4, 16)[choose.integer(0, 1 if pressing else 3)]
    slices = choose.integer(1, 8)
    cost_ns = world.slice_ns * slices * choose.integer(1, 1 if pressing else 3)
    model = model_of(world, cost_ns, 1, most_rows, slices)
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
        error=errors[choose.integer(0, 5) // 5 if pressing else choose.integer(0, 3)],
        faults=FaultRates(raises=0.05, out_of_memory=0.05) if choose.integer(0, 3) == 3 else None,
        lane=lane,
        loaded_at=0 if choose.integer(0, 2) else world.end // 3,
    )
    return Came(tenant, _flooded(world, tenant, cost_ns))


def _flooded(world: World, tenant: Tenant, cost_ns: Nanoseconds) -> list[Happening]:
    choose = world.choose
    cancels = choose.integer(0, 2) == 2
    happenings: list[Happening] = []
    for moment in _flood(world, cost_ns):
        if moment >= tenant.loaded_at or choose.integer(0, 1):
            happenings.append(Arrive(moment, tenant.replica, 1, cancelled(world, often=cancels)))
    if choose.integer(0, 3) == 3:
        at = tenant.loaded_at + world.end // choose.integer(1, 4)
        happenings.append(Unload(at, tenant.replica, drain_ns=world.stretch_ns * choose.integer(0, 2)))
    return happenings


def _flood(world: World, cost_ns: Nanoseconds) -> list[Nanoseconds]:
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


def antagonist(world: World, replica: int, bandwidth: Millidevices, starts: Nanoseconds) -> Came:
    """Somebody who asks for more than its part, all at `starts`, in time or long before that."""
    choose = world.choose
    slices = choose.integer(1, 4)
    cost_ns = world.slice_ns * slices
    # Twice as long as estimated, a slice is still no longer than a usual one.
    model = SimulatedModel((Segment(world.slice_ns // 2),) * (2 * slices))
    error = (EXACT, Bounded(1.5, 2.0))[choose.integer(0, 1)]
    objective_ns = world.stretch_ns * choose.integer(2, 30)
    tenant = Tenant(replica, model, bandwidth, choose.integer(1, 4), objective_ns, error=error)
    work_ns = (bandwidth or FULL) * (3 * world.stretch_ns + (world.begins or 0) - starts) // FULL
    return Came(tenant, [Arrive(starts, replica) for _ in range(min(150, 1 + work_ns // cost_ns))])


def moved(world: World, came: list[Came]) -> list[Came]:
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
        newcomer = other(world, len(came) + 1, part)
        # By then the holder is gone, whatever it was doing.
        loaded_at = unload.at + unload.drain_ns + (1 if world.pressing else 8) * world.stretch_ns
        tenant = msgspec.structs.replace(newcomer.tenant, loaded_at=loaded_at)
        return [Came(tenant, [_later(each, loaded_at) for each in newcomer.happenings])]
    holder.happenings.append(Update(at, holder.tenant.replica, 0, 1))
    heirs = [each for each in others if not each.tenant.bandwidth and each.tenant.loaded_at <= at]
    if heirs:
        heirs[0].happenings.append(Update(at, heirs[0].tenant.replica, part, 1))
    return []


def _later(happening: Happening, by: Nanoseconds) -> Happening:
    return msgspec.structs.replace(happening, at=happening.at + by)
