"""The smallest scenario that still shows what a large one showed. PURE."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec

from gpu_sharing.simulation.models import EXACT
from gpu_sharing.simulation.scenario import Arrive, Happening, Scenario, Tenant

Part = TypeVar("Part")


def minimise(scenario: Scenario, shows: Callable[[Scenario], bool]) -> Scenario:
    """Takes away what can be taken away while `shows` holds. ValueError where it does not hold to begin with."""
    if not shows(scenario):
        raise ValueError("the scenario does not show it")
    while True:
        smaller = next((each for each in _smaller(scenario) if shows(each)), None)
        if smaller is None:
            return scenario
        scenario = smaller


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    for tenant in scenario.tenants:
        yield _without(scenario, tenant.replica)
    for happenings in _fewer(scenario.happenings):
        yield msgspec.structs.replace(scenario, happenings=happenings)
    for index, tenant in enumerate(scenario.tenants):
        for simpler in _simpler(tenant):
            tenants = (*scenario.tenants[:index], simpler, *scenario.tenants[index + 1 :])
            yield msgspec.structs.replace(scenario, tenants=tenants)
    for index, happening in enumerate(scenario.happenings):
        if isinstance(happening, Arrive) and happening.cancelled_after is not None:
            stays = msgspec.structs.replace(happening, cancelled_after=None)
            happenings = (*scenario.happenings[:index], stays, *scenario.happenings[index + 1 :])
            yield msgspec.structs.replace(scenario, happenings=happenings)


def _without(scenario: Scenario, replica: int) -> Scenario:
    tenants = tuple(each for each in scenario.tenants if each.replica != replica)
    happenings: tuple[Happening, ...] = tuple(each for each in scenario.happenings if each.replica != replica)
    return msgspec.structs.replace(scenario, tenants=tenants, happenings=happenings)


def _fewer(parts: Sequence[Part]) -> Iterator[tuple[Part, ...]]:
    """Without a half, a quarter, … one of its parts."""
    size = len(parts) // 2
    while size:
        for start in range(0, len(parts), size):
            yield (*parts[:start], *parts[start + size :])
        size //= 2


def _simpler(tenant: Tenant) -> Iterator[Tenant]:
    if tenant.error != EXACT:
        yield msgspec.structs.replace(tenant, error=EXACT)
    if tenant.faults is not None:
        yield msgspec.structs.replace(tenant, faults=None)
    if tenant.weight != 1:
        yield msgspec.structs.replace(tenant, weight=1)
    if tenant.loaded_at:
        yield msgspec.structs.replace(tenant, loaded_at=0)
