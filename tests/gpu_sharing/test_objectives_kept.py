"""What a tenant is told it can be promised, the arbiter keeps, in the simulator, against neighbours that fill the lane."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_sharing.simulation import promise
from gpu_sharing.simulation.models import Segment, SimulatedModel
from gpu_sharing.simulation.run import simulate
from gpu_sharing.simulation.scenario import Arrive, Clients, Contract, Scenario, Tenant, dumps
from gpu_sharing.units import MS, SECOND
from services.common.objectives import Answer, Ask, Lane, Point, answer

QUANTUM_NS = 5 * MS
ROUNDING_NS = 2
"""The simulator's judge rounds each slice up by one."""


def told(model: SimulatedModel, reservation: int, burst: int) -> Answer:
    """What its tenant is told of the model; the simulator knows no way there and back."""
    points = [Point(p.rows, "", 1, p.p50_ns, p.p99_ns, max(p.segments_ns)) for p in model.points()]
    return answer(points, Lane("simulated", 1, 1000, QUANTUM_NS), Ask(reservation, burst=burst, way_ns=0))


def workload(model: SimulatedModel, reservation: int, burst: int, objective_ns: int, seconds: int = 1) -> Scenario:
    """Bursts as often as the reservation holds them, beside one who has the rest reserved and one who floods."""
    least = told(model, reservation, burst)
    sigma = burst * model.cost(1)
    every = -(-burst * SECOND * 1000 // int(least.most_rate * 1000))
    arrivals = [Arrive(at, 1) for at in range(1, seconds * SECOND, every) for _ in range(burst)]
    other = SimulatedModel((Segment(QUANTUM_NS),) * 4)
    victim = Tenant(1, model, reservation, objective_ns=objective_ns, contract=Contract(sigma, reservation))
    neighbour = Tenant(2, other, 1000 - reservation, objective_ns=40 * MS)
    flood = Tenant(3, other, weight=100, objective_ns=200 * MS)
    clients = [Clients(1, each, 4, seconds * SECOND, think_ns=MS) for each in (2, 3)]
    return Scenario((victim, neighbour, flood), (*arrivals, *clients))


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    costs=st.lists(st.integers(MS // 2, QUANTUM_NS), min_size=1, max_size=5),
    reservation=st.integers(50, 900),
    burst=st.integers(1, 4),
)
def test_at_the_least_objective_that_was_told_nobody_is_refused_or_late(
    costs: list[int], reservation: int, burst: int
) -> None:
    model = SimulatedModel(tuple(map(Segment, costs)))
    least = told(model, reservation, burst)
    assert least.least_ns is not None
    scenario = workload(model, reservation, burst, least.least_ns + ROUNDING_NS)
    (fared,) = [each for each in promise.kept(simulate(scenario)) if each.replica == 1]
    assert not fared.broken, dumps(scenario)
    assert least.least_ns <= fared.bound <= least.least_ns + ROUNDING_NS, "what is told is what the simulator judges by"


def test_far_below_the_least_objective_somebody_is() -> None:
    model = SimulatedModel((Segment(4 * MS),) * 3)
    least = told(model, 200, 2)
    assert least.least_ns is not None
    outcome = simulate(workload(model, 200, 2, least.least_ns // 4))
    assert outcome.attainment(1) < 1.0
