"""The promise made to a tenant within its reservation: who has it, what it is, whether it was kept. PURE.

A tenant whose arrivals conform to (σ, ρ), ρ ≤ its reservation, and whose objective is at least σ / reservation plus two
longest slices of its lane plus the estimate's error is neither refused nor late, whatever the others do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from gpu_sharing.simulation.arrivals import TokenBucket
from gpu_sharing.simulation.calls import Answer
from gpu_sharing.simulation.run import Outcome, is_met
from gpu_sharing.simulation.scenario import Arrive, Clients, Contract, Scenario, Tenant, Unload, Update
from gpu_sharing.units import Nanoseconds

_FULL = 1000


class Kept(NamedTuple):
    """How a tenant with the promise fared. bound: the least objective for which it is made; all in nanoseconds.

    worst: the longest time to an answer; of a request with a longer objective, less by as much. filled: the largest part of σ that was asked for within no time, 0 to 1.
    broken: answers that were refusals or late.
    """

    replica: int
    objective: Nanoseconds
    bound: Nanoseconds
    worst: Nanoseconds
    filled: float
    broken: tuple[Answer, ...]

    @property
    def is_near(self) -> bool:
        """Its objective is within 10 % of the bound, and so was its burst of σ."""
        return self.objective <= 1.1 * self.bound and self.filled >= 0.9

    @property
    def is_pressed(self) -> bool:
        """An answer came within 10 % of its objective."""
        return self.worst >= 0.9 * self.objective


def stretch(scenario: Scenario, tenant: Tenant) -> float:
    """How long one of its segments may take at most, over the estimate: the estimate's error, and contention's."""
    others = scenario.lanes - 1
    share = tenant.model.memory_share
    # Every other lane asks for the whole memory at worst.
    contention = 1.0 - share + share * max(1.0, share + others) if scenario.memory_shared and others else 1.0
    return tenant.error.most * contention


def longest_slice(scenario: Scenario, lane: int) -> Nanoseconds:
    """That anyone may run on the lane."""
    rows = _most_rows(scenario)
    return max(
        math.ceil(tenant.model.longest_slice(rows[tenant.replica]) * stretch(scenario, tenant)) + 1
        for tenant in scenario.tenants
        if tenant.lane == lane
    )


def bound(scenario: Scenario, tenant: Tenant, contract: Contract) -> Nanoseconds:
    """The least objective for which the promise is made. ValueError for a tenant without a reservation."""
    if tenant.bandwidth < 1:
        raise ValueError(f"replica {tenant.replica} has no reservation")
    burst = math.ceil(contract.sigma_ns * stretch(scenario, tenant)) * _FULL
    return -(-burst // tenant.bandwidth) + (1 + scenario.ahead) * longest_slice(scenario, tenant.lane)


def conforms(tenant: Tenant, contract: Contract, arrivals: Iterable[Arrive]) -> bool:
    """Whether these arrivals keep to the contract. A cancelled request counts: it may have run."""
    bucket = TokenBucket(contract.sigma_ns, contract.rho)
    return all(bucket.take(each.at, tenant.model.cost(each.rows)) for each in arrivals)


def promised(scenario: Scenario) -> list[Tenant]:
    """Those of its tenants to whom the promise is made. Whoever leaves has none, nor one whose callers keep to no contract."""
    unbound = {each.replica for each in scenario.happenings if isinstance(each, Clients | Unload | Update)}
    found = []
    for tenant in scenario.tenants:
        contract = tenant.contract
        if (
            tenant.replica in unbound
            or contract is None
            or tenant.objective_ns is None
            or tenant.faults is not None
            or tenant.bandwidth < 1
        ):
            continue
        within = contract.rho * stretch(scenario, tenant) <= tenant.bandwidth
        roomy = tenant.objective_ns >= bound(scenario, tenant, contract)
        patient = tenant.deadline_ns is None or tenant.deadline_ns >= tenant.objective_ns
        if within and roomy and patient and conforms(tenant, contract, _arrivals(scenario, tenant.replica)):
            found.append(tenant)
    return found


def kept(outcome: Outcome) -> list[Kept]:
    """How everyone fared to whom the promise was made."""
    scenario = outcome.scenario
    return [_fared(outcome, tenant, tenant.contract) for tenant in promised(scenario) if tenant.contract is not None]


def _fared(outcome: Outcome, tenant: Tenant, contract: Contract) -> Kept:
    counted = [answer for answer in outcome.of(tenant.replica) if answer.reason != "CANCELLED"]
    objective = tenant.objective_ns or 0
    # By how far each answer came before its objective, taken from the shortest objective there is.
    worst = max((answer.moment - (answer.request.objective or 0) + objective for answer in counted), default=0)
    broken = tuple(answer for answer in counted if not is_met(answer))
    least = bound(outcome.scenario, tenant, contract)
    filled = _filled(tenant, contract, _arrivals(outcome.scenario, tenant.replica))
    return Kept(tenant.replica, objective, least, worst, filled, broken)


def _filled(tenant: Tenant, contract: Contract, arrivals: Iterable[Arrive]) -> float:
    asked: dict[Nanoseconds, Nanoseconds] = {}
    for each in arrivals:
        asked[each.at] = asked.get(each.at, 0) + tenant.model.cost(each.rows)
    return max(asked.values(), default=0) / contract.sigma_ns


def _arrivals(scenario: Scenario, replica: int) -> list[Arrive]:
    found = [each for each in scenario.happenings if isinstance(each, Arrive) and each.replica == replica]
    return sorted(found, key=lambda each: each.at)


def _most_rows(scenario: Scenario) -> dict[int, int]:
    most = {tenant.replica: tenant.model.most_rows for tenant in scenario.tenants}
    for each in scenario.happenings:
        if isinstance(each, Arrive):
            most[each.replica] = max(most[each.replica], each.rows)
    return most
