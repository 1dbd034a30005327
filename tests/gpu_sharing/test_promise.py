"""The promise: within its reservation, neither refused nor late, whatever the others do."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gpu_sharing.simulation.minimise import minimise
from gpu_sharing.simulation.models import EXACT, Bounded, Segment, SimulatedModel
from gpu_sharing.simulation.promise import Kept, bound, conforms, kept, longest_slice, promised
from gpu_sharing.simulation.run import simulate
from gpu_sharing.simulation.scenario import Arrive, Contract, Scenario, Tenant, dumps, loads
from gpu_sharing.simulation.workloads import Chance, promise_workload
from gpu_sharing.units import MS

FOUND = sorted((Path(__file__).parent / "scenarios_found").glob("*.txt"))
CRASHES = sorted((Path(__file__).parent / "scenarios_found" / "crashes").glob("*.txt"))


class Drawn:
    """Choices that Hypothesis makes, and takes back as far as it can once something breaks."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def integer(self, least: int, most: int) -> int:
        return self._data.draw(st.integers(least, most))


def seeded(seed: int) -> Scenario:
    return promise_workload(Chance(np.random.Generator(np.random.PCG64(seed))))


def broken(scenario: Scenario) -> list[Kept]:
    return [each for each in kept(simulate(scenario)) if each.broken]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_tenant_within_its_reservation_is_neither_refused_nor_late_whatever_the_others_do(
    data: st.DataObject,
) -> None:
    scenario = promise_workload(Drawn(data))
    assert not broken(scenario), dumps(scenario)


def tried(seeds: range) -> tuple[int, int, list[int]]:
    """How many workloads were within 10 % of the bound, how many of them pressed somebody that far, and which broke the promise."""
    near, pressed, wrong = 0, 0, []
    for seed in seeds:
        fared = kept(simulate(seeded(seed)))
        near += any(each.is_near for each in fared)
        pressed += any(each.is_near and each.is_pressed for each in fared)
        wrong += [seed] if any(each.broken for each in fared) else []
    return near, pressed, wrong


@pytest.mark.slow
def test_workloads_drawn_by_chance_break_nothing_and_many_are_at_the_bound() -> None:
    near, pressed, wrong = tried(range(150))
    assert not wrong
    assert near >= 75
    assert pressed >= 10


def two_ahead(scenario: Scenario) -> Scenario:
    """The same on a lane that has two slices out, with objectives that are later by what that adds to the bound."""

    def later(tenant: Tenant, moment: int | None) -> int | None:
        return None if moment is None else moment + longest_slice(scenario, tenant.lane)

    tenants = tuple(
        msgspec.structs.replace(
            each, objective_ns=later(each, each.objective_ns), deadline_ns=later(each, each.deadline_ns)
        )
        for each in scenario.tenants
    )
    return msgspec.structs.replace(scenario, tenants=tenants, ahead=2)


def test_with_two_slices_out_the_promise_holds_with_a_slice_more() -> None:
    fared = [each for seed in range(40, 85) for each in kept(simulate(two_ahead(seeded(seed))))]
    assert not [each for each in fared if each.broken]
    assert len(fared) >= 80
    assert sum(each.is_near for each in fared) >= 20


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(10_000, 20_000, 1000))
def test_ten_thousand_workloads_break_nothing(first: int) -> None:
    near, pressed, wrong = tried(range(first, first + 1000))
    assert not wrong
    assert near >= 500
    assert pressed >= 100


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_what_once_broke_the_promise_does_not_break_it_again(path: Path) -> None:
    scenario = loads(path.read_text())
    assert promised(scenario), "nobody has the promise here: the scenario shows nothing"
    assert not broken(scenario)


@pytest.mark.parametrize("path", CRASHES, ids=lambda path: path.stem)
def test_what_once_stopped_the_arbiter_is_run_to_its_end(path: Path) -> None:
    simulate(loads(path.read_text()))


MODEL = SimulatedModel((Segment(MS),) * 2)
FLOOD = SimulatedModel((Segment(3 * MS),) * 5)


def pair(objective_ns: int, *arrivals: Arrive, error: Bounded = EXACT) -> Scenario:
    """A tenant with half the lane and bursts of two requests, beside another one's flood."""
    contract = Contract(sigma_ns=4 * MS, rho=400)
    victim = Tenant(1, MODEL, 500, objective_ns=objective_ns, contract=contract, error=error)
    flood = tuple(Arrive(0, 2) for _ in range(20))
    return Scenario((victim, Tenant(2, FLOOD, objective_ns=MS)), (*arrivals, *flood))


def test_the_bound_is_the_burst_at_the_reservation_and_two_longest_slices() -> None:
    scenario = pair(100 * MS)
    tenant = scenario.tenants[0]
    assert bound(scenario, tenant, tenant.contract) == pytest.approx((4 / 0.5 + 2 * 3) * MS, abs=10)


def test_an_estimates_error_is_in_the_bound() -> None:
    scenario = pair(100 * MS, error=Bounded(1.0, 1.25))
    tenant = scenario.tenants[0]
    assert bound(scenario, tenant, tenant.contract) == pytest.approx((5 / 0.5 + 2 * 3) * MS, abs=10)


def test_nobody_is_promised_less_than_the_bound_or_for_more_than_the_contract() -> None:
    two = (Arrive(0, 1), Arrive(0, 1))
    assert [tenant.replica for tenant in promised(pair(15 * MS, *two))] == [1]
    assert not promised(pair(13 * MS, *two))
    assert not promised(pair(15 * MS, *two, Arrive(MS, 1)))
    assert not promised(pair(15 * MS, *two, error=Bounded(1.0, 1.3)))


def test_arrivals_conform_exactly_until_one_comes_a_nanosecond_too_early() -> None:
    tenant = Tenant(1, MODEL, 500)
    contract = Contract(sigma_ns=4 * MS, rho=400)
    two = [Arrive(0, 1), Arrive(0, 1)]
    assert conforms(tenant, contract, [*two, Arrive(5 * MS, 1)])
    assert not conforms(tenant, contract, [*two, Arrive(5 * MS - 1, 1)])


def test_a_scenario_is_the_same_after_it_was_written_down() -> None:
    scenario = seeded(5)
    assert simulate(loads(dumps(scenario, why="it\nhad a reason"))).digest == simulate(scenario).digest


def test_a_scenario_is_made_as_small_as_what_it_shows_allows() -> None:
    scenario = seeded(7)
    some = scenario.tenants[-1].replica
    small = minimise(scenario, lambda each: any(came.replica == some for came in each.happenings))
    assert (len(small.happenings), len(small.tenants)) == (1, 1)


@example(0)
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_a_workload_runs_the_same_way_every_time(seed: int) -> None:
    assert simulate(seeded(seed)).digest == simulate(seeded(seed)).digest
