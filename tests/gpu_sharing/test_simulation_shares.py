"""How a saturated simulated device is divided, and what becomes of its callers. Each run ends with the audits of `Run.finish`."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from gpu_sharing.simulation import arrivals
from gpu_sharing.simulation.models import EXACT, AnyError, Lognormal, Segment, SimulatedModel
from gpu_sharing.simulation.run import Outcome, is_met, simulate
from gpu_sharing.simulation.scenario import Arrive, Clients, Contract, Scenario, Tenant, Unload
from gpu_sharing.units import MS, SECOND, US

MODEL = SimulatedModel((Segment(MS),) * 5)
WEIGHTS = {1: 4, 2: 2, 3: 1, 4: 1}
RESERVED = 100
LEAVES = 20 * SECOND
END = 30 * SECOND
AUDIT_EVERY = 1000


@functools.cache
def saturated(leaves: int, objective_ns: int | None, *, max_batch_size: int = 0, callers: int = 60) -> Outcome:
    """Equal reservations, weights 4:2:1:1, everyone always waiting; tenant 1 is unloaded at `leaves`."""
    model = SimulatedModel(MODEL.segments, max_batch_size)
    tenants = tuple(Tenant(each, model, RESERVED, weight, objective_ns) for each, weight in WEIGHTS.items())
    clients = tuple(Clients(0, each, callers, leaves if each == 1 else END, think_ns=MS) for each in WEIGHTS)
    return simulate(Scenario(tenants, (*clients, Unload(leaves, 1, drain_ns=0))), audit_every=AUDIT_EVERY)


def used(outcome: Outcome, replica: int, start: int, end: int) -> int:
    """Device time of a replica between two moments."""
    return sum(
        max(0, min(ran.ended, end) - max(ran.started, start)) for ran in outcome.slices if ran.replica == replica
    )


def surplus_shares(outcome: Outcome, replicas: list[int], start: int, end: int) -> dict[int, float]:
    """Of what these replicas used beyond their reservations, the part of each."""
    reserved = (end - start) * RESERVED // 1000
    beyond = {replica: used(outcome, replica, start, end) - reserved for replica in replicas}
    return {replica: part / sum(beyond.values()) for replica, part in beyond.items()}


def test_what_nobody_reserved_goes_to_the_saturated_by_weight() -> None:
    outcome = saturated(END, 2 * SECOND)
    assert sum(used(outcome, each, 0, END) for each in WEIGHTS) >= 0.999 * END
    for replica, share in surplus_shares(outcome, list(WEIGHTS), 0, END).items():
        assert share == pytest.approx(WEIGHTS[replica] / 8, rel=0.03), replica


def test_who_has_bought_all_that_waits_ahead_of_its_pace_has_its_weight_of_the_surplus_all_the_same() -> None:
    # 24 requests of 5 ms are within a tenth of the lane for 5 s: all that waits is guaranteed.
    outcome = saturated(END, 5 * SECOND, callers=24)
    assert all(answer.reason != "OVERLOADED" for answer in outcome.answers)
    for replica, share in surplus_shares(outcome, list(WEIGHTS), SECOND, END).items():
        assert share == pytest.approx(WEIGHTS[replica] / 8, rel=0.03), replica


def test_class_batch_uses_no_reservation_and_is_divided_by_weight_alone() -> None:
    outcome = saturated(END, None)
    total = sum(used(outcome, each, 0, END) for each in WEIGHTS)
    assert total >= 0.999 * END
    for replica, weight in WEIGHTS.items():
        assert used(outcome, replica, 0, END) / total == pytest.approx(weight / 8, rel=0.03), replica


def test_when_one_leaves_its_part_goes_to_the_others_in_proportion_within_a_second() -> None:
    outcome = saturated(LEAVES, 2 * SECOND)
    rest = [2, 3, 4]
    assert used(outcome, 1, LEAVES + SECOND, END) == 0
    for second in range(1, 10):
        start = LEAVES + second * SECOND
        shares = surplus_shares(outcome, rest, start, start + SECOND)
        for replica, share in shares.items():
            # One batch of 5 ms is 0.5 % of a second.
            assert share == pytest.approx(WEIGHTS[replica] / 4, abs=0.02), (second, replica)
    for replica, share in surplus_shares(outcome, rest, LEAVES + SECOND, END).items():
        assert share == pytest.approx(WEIGHTS[replica] / 4, rel=0.03), replica


def loaded(load: float, seed: int = 1) -> Outcome:
    """Four tenants who offer `load` lanes together for 10 s: one within its reservation, three beyond theirs."""
    draw = np.random.Generator(np.random.PCG64(seed))
    cost = MODEL.cost(1)
    contract = Contract(4 * cost, 250)
    bucket = arrivals.TokenBucket(contract.sigma_ns, contract.rho)
    offered = arrivals.poisson(draw, SECOND / cost * min(0.25, load / 4), 0, 10 * SECOND)
    within = [moment for moment, _ in arrivals.thinned(bucket, offered, [cost] * len(offered))]
    happenings = [Arrive(moment, 1) for moment in within]
    for replica in (2, 3, 4):
        rate = SECOND / cost * (load - min(0.25, load / 4)) / 3
        happenings += [Arrive(moment, replica) for moment in arrivals.poisson(draw, rate, 0, 10 * SECOND)]
    objective_ns = 4 * cost * 4 + 2 * MS
    tenants = (
        Tenant(1, MODEL, 250, objective_ns=objective_ns, contract=contract),
        *(Tenant(each, MODEL, 150, objective_ns=objective_ns) for each in (2, 3, 4)),
    )
    return simulate(Scenario(tenants, tuple(happenings)), audit_every=AUDIT_EVERY)


def goodput(outcome: Outcome) -> int:
    return sum(is_met(answer) for answer in outcome.answers)


def test_at_twice_the_load_goodput_stays_within_5_percent_of_its_peak_and_nothing_guaranteed_is_late() -> None:
    peak = max(goodput(loaded(load)) for load in (0.8, 0.9, 1.0, 1.1, 1.3))
    overloaded = loaded(2.0)
    assert goodput(overloaded) >= 0.95 * peak
    assert overloaded.attainment(1) == 1.0


@pytest.mark.parametrize("seconds", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_an_urgent_request_within_its_reservation_waits_for_a_boundary_for_at_most_two_slices(seconds: int) -> None:
    draw = np.random.Generator(np.random.PCG64(2))
    long = SimulatedModel((Segment(MS),) * 20, 8)
    quick = SimulatedModel((Segment(MS // 5),))
    bucket = arrivals.TokenBucket(quick.cost(1), 200)
    moments = arrivals.thinned(bucket, arrivals.poisson(draw, 300, 0, seconds * SECOND), [quick.cost(1)] * 3000)
    tenants = (
        Tenant(1, quick, 200, objective_ns=4 * MS, contract=Contract(quick.cost(1), 200)),
        *(Tenant(each, long, 200, objective_ns=200 * MS) for each in (2, 3, 4)),
        Tenant(5, long),
    )
    floods = tuple(Clients(0, each, 20, seconds * SECOND, think_ns=MS) for each in (2, 3, 4, 5))
    outcome = simulate(
        Scenario(tenants, (*(Arrive(moment, 1) for moment, _ in moments), *floods)), audit_every=AUDIT_EVERY
    )
    waits = [answer.started - answer.request.arrived for answer in outcome.of(1) if answer.started is not None]
    assert len(waits) == len(outcome.of(1)) > 100 * seconds
    assert np.quantile(waits, 0.99) <= 2 * MS
    assert outcome.attainment(1) == 1.0


def flooded(seed: int, *, error: AnyError = EXACT, boundary_ns: int = 0) -> Outcome:
    """20 s of twice the load: two tenants within their reservations, by Poisson, and one without any who sends the rest."""
    draw = np.random.Generator(np.random.PCG64(seed))
    search, voice = SimulatedModel((Segment(3 * MS // 2),) * 8, 8), SimulatedModel((Segment(MS // 2),), 8)
    files = SimulatedModel((Segment(9 * MS),) * 4)
    tenants = (
        Tenant(1, search, 350, objective_ns=250 * MS, error=error),
        Tenant(2, voice, 150, objective_ns=150 * MS, error=error),
        Tenant(3, files, objective_ns=400 * MS, deadline_ns=2 * SECOND, error=error),
    )
    rates = {1: 22.5, 2: 60.0, 3: 1.7 * SECOND / files.cost(1)}
    happenings = [
        Arrive(moment, replica)
        for replica, rate in rates.items()
        for moment in arrivals.poisson(draw, rate, 0, 20 * SECOND)
    ]
    return simulate(Scenario(tenants, tuple(happenings), boundary_ns=boundary_ns), audit_every=AUDIT_EVERY)


@pytest.mark.parametrize(
    ("error", "boundary_ns"), [(EXACT, 0), (Lognormal(0.2), 0), (EXACT, US * 300)], ids=["exact", "astray", "overhead"]
)
def test_surplus_that_is_admitted_at_twice_the_load_is_in_time_beside_guaranteed_neighbours_who_come_at_random(
    error: AnyError, boundary_ns: int
) -> None:
    learnt, busy, admitted, met = 4 * SECOND, 0, 0, 0
    for seed in range(3):
        outcome = flooded(seed, error=error, boundary_ns=boundary_ns)
        assert min(outcome.attainment(1), outcome.attainment(2)) >= 0.995
        # What is refused is refused at once; everything else was admitted, and counts, revoked or not.
        kept = [each for each in outcome.of(3) if each.reason == "OK" or each.moment > each.request.arrived]
        kept = [each for each in kept if each.request.arrived >= learnt]
        admitted += len(kept)
        met += sum(map(is_met, kept))
        busy += sum(used(outcome, each, learnt, 20 * SECOND) for each in (1, 2, 3))
    assert met / admitted >= 0.95
    # Nothing is lost by it: whenever the lane is free, somebody waits.
    boundaries = 1.0 if boundary_ns == 0 else 0.8
    assert busy >= 0.99 * boundaries * 3 * (20 * SECOND - learnt)
