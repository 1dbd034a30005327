"""Workloads that try to break the promise, from choices that somebody else makes. PURE."""

from __future__ import annotations

import msgspec
import numpy as np

from gpu_sharing.simulation.choices import FULL, Came, Chance, Choices, World
from gpu_sharing.simulation.conforming import conforming
from gpu_sharing.simulation.others import antagonist, moved, other
from gpu_sharing.simulation.promise import bound
from gpu_sharing.simulation.scenario import Scenario, Update
from gpu_sharing.units import MS

__all__ = ["Chance", "Choices", "promise_workload"]


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
    world = World(choose, chance, stretch_ns, slice_ns, end, begins, pressing, frame)
    came = _beside_an_antagonist(world) if pressing and choose.integer(0, 2) == 2 else _reserved(world)
    for number in range(choose.integer(1 if contended else 0, 3)):
        came.append(other(world, len(came) + 1, 0, lane=1 if contended and number == 0 else 0))
    came += moved(world, came)
    tenants = tuple(each.tenant for each in came)
    happenings = tuple(happening for each in came for happening in each.happenings)
    return _with_objectives(msgspec.structs.replace(frame, tenants=tenants, happenings=happenings), choose)


def _reserved(world: World) -> list[Came]:
    """Tenants whose reservations add up to the whole lane, or less."""
    choose = world.choose
    parts = [choose.integer(1, 10) for _ in range(choose.integer(1, 5))]
    total = FULL if world.pressing or choose.integer(0, 2) else choose.integer(200, FULL)
    came = []
    for replica, part in enumerate(parts, start=1):
        make = conforming if replica == 1 or choose.integer(0, 4) else other
        came.append(make(world, replica, max(1, total * part // sum(parts))))
    return came


def _beside_an_antagonist(world: World) -> list[Came]:
    """Tenants that ask for all they have reserved at once, beside one that tries to have more than its own part just then.

    It saves its reservation up and floods; or floods with work that takes longer than estimated; or buys far ahead, and hands
    its reservation to somebody else who floods.
    """
    choose = world.choose
    begins = world.begins or 1
    part = 100 * choose.integer(2, 7)
    came = [conforming(world, 1, (FULL - part) // 2), conforming(world, 2, FULL - part - (FULL - part) // 2)]
    starts = (begins - 1, 0)[choose.integer(0, 1)]
    came.append(antagonist(world, 3, part, starts))
    if choose.integer(0, 1):
        at = max(starts, begins - 1)
        heir = antagonist(world, 4, 0, at)
        heir.happenings.append(Update(at, 4, part, 1))
        came[2].happenings.append(Update(at, 3, 0, 1))
        came.append(heir)
    return came


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
