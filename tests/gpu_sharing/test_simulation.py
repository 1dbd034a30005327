"""Devices and lanes in virtual time. Every run here ends with the audits of `Run.finish`: each call answered exactly once,
the books of arbiter, lanes, device and ledger agree, and no device time is lost."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gpu_sharing.arbiter import Arbiter
from gpu_sharing.devices.simulated import SimulatedDevice
from gpu_sharing.memory.ledger import LedgerFull
from gpu_sharing.simulation import arrivals
from gpu_sharing.simulation.contention import Pairwise, SharedMemory
from gpu_sharing.simulation.device import SimulatedLanes
from gpu_sharing.simulation.faults import Fault, FaultPlan, FaultRates
from gpu_sharing.simulation.kernel import Kernel, Trace
from gpu_sharing.simulation.models import Bounded, Lognormal, Segment, SimulatedModel
from gpu_sharing.simulation.run import Run, simulate
from gpu_sharing.simulation.scenario import Arrive, Scenario, Tenant, Unload
from gpu_sharing.units import MS, SECOND, US

MODEL = SimulatedModel((Segment(MS),) * 3)


def chance(seed: int = 1) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def came(replica: int, *moments: int) -> tuple[Arrive, ...]:
    return tuple(Arrive(moment, replica) for moment in moments)


# The clock.


def test_what_falls_on_one_moment_happens_in_the_order_in_which_it_was_asked_for() -> None:
    kernel, seen = Kernel(), []
    kernel.at(5, lambda: seen.append("a"))
    kernel.at(3, lambda: kernel.after(2, lambda: seen.append("c")))
    kernel.at(5, lambda: seen.append("b"))
    kernel.run()
    assert seen == ["a", "b", "c"]
    assert kernel.now == 5


def test_a_cancelled_timer_does_not_happen_and_the_past_cannot_be_asked_for() -> None:
    kernel, seen = Kernel(10), []
    kernel.after(1, lambda: seen.append(1)).cancel()
    kernel.run(until=20)
    assert (seen, kernel.now, kernel.happened) == ([], 20, 0)
    with pytest.raises(ValueError, match="before now"):
        kernel.at(19, lambda: None)


def test_a_trace_tells_two_runs_apart() -> None:
    one, other = Trace(), Trace(keep=True)
    one.write(1, "a", 2)
    other.write(1, "a", 2)
    assert one.digest() == other.digest()
    other.write(2, "b")
    assert one.digest() != other.digest()
    assert other.lines == ["1 a 2", "2 b"]


# The device.


def ends(device: SimulatedLanes, kernel: Kernel, *begun: tuple[int, int, int, float]) -> dict[int, int]:
    """When each of (lane, at, cost, memory share) ends."""
    ended: dict[int, int] = {}

    def begin(lane: int, cost: int, share: float) -> None:
        device.begin(lane, cost, share, lambda took: ended.setdefault(lane, kernel.now))

    for lane, at, cost, share in begun:
        kernel.at(at, lambda lane=lane, cost=cost, share=share: begin(lane, cost, share))
    kernel.run()
    return ended


def test_lanes_that_ask_for_more_memory_bandwidth_than_there_is_slow_each_other_down_for_as_long_as_both_run() -> None:
    kernel = Kernel()
    device = SimulatedLanes(kernel, (1, 1), contention=SharedMemory())
    # Together they ask for 2: twice as slow, until lane 1 is done at 200; lane 0 has then done 100 of its 150.
    assert ends(device, kernel, (0, 0, 150, 1.0), (1, 0, 100, 1.0)) == {1: 200, 0: 250}
    assert device.busy_ns == [250, 200]


def test_segments_that_fit_into_the_memory_bandwidth_together_do_not_notice_each_other() -> None:
    kernel = Kernel()
    device = SimulatedLanes(kernel, (1, 1), contention=SharedMemory())
    assert ends(device, kernel, (0, 0, 100, 0.5), (1, 0, 100, 0.5)) == {0: 100, 1: 100}


def test_a_neighbour_that_comes_halfway_slows_the_other_half() -> None:
    kernel = Kernel()
    device = SimulatedLanes(kernel, (1, 1), contention=Pairwise({(0, 1): 500}))
    assert ends(device, kernel, (0, 0, 100, 0.0), (1, 50, 1000, 0.0)) == {0: 125, 1: 1050}


def test_a_lane_runs_one_segment_at_a_time() -> None:
    device = SimulatedLanes(Kernel())
    device.begin(0, 1, 0.0, lambda took: None)
    with pytest.raises(ValueError, match="busy"):
        device.begin(0, 1, 0.0, lambda took: None)


def test_a_simulated_device_hands_out_its_own_units_only() -> None:
    device = SimulatedDevice("h", compute_units=3, memory_bytes=5)
    device.occupy([2, 0])
    assert (device.occupied, list(device.units()), device.backend) == ((0, 2), [0, 1, 2], "simulated")
    with pytest.raises(ValueError, match="3"):
        device.occupy([3])
    with pytest.raises(ValueError, match="compute_units"):
        SimulatedDevice(compute_units=0)


# Runs.


def busy_scenario(seed: int) -> Scenario:
    draw = chance(seed)
    tenants = (
        Tenant(1, MODEL, 500, objective_ns=20 * MS, deadline_ns=40 * MS, error=Lognormal(0.2)),
        Tenant(2, MODEL, 100, objective_ns=50 * MS, error=Bounded(0.5, 1.5), lane=1),
        Tenant(3, SimulatedModel((Segment(2 * MS, US),) * 5, 8, memory_share=0.7), faults=FaultRates(0.05, 0.05)),
    )
    moments = [
        *(Arrive(at, 1) for at in arrivals.poisson(draw, 80, 0, SECOND)),
        *(Arrive(at, 2, cancelled_after=5 * MS) for at in arrivals.gamma(draw, 50, 3.0, 0, SECOND)),
        *(Arrive(at, 3, rows=3) for at in arrivals.on_off(draw, 300, 50 * MS, 50 * MS, 0, SECOND)),
        Unload(800 * MS, 2, 10 * MS),
    ]
    return Scenario(tenants, tuple(moments), lanes=2, memory_shared=True, seed=seed, boundary_ns=20 * US)


def test_two_runs_of_one_seed_are_the_same_to_the_byte_and_two_seeds_are_not() -> None:
    first, again = (simulate(busy_scenario(3), keep_trace=True) for _ in range(2))
    assert first.lines == again.lines
    assert first.digest == again.digest
    assert simulate(busy_scenario(4)).digest != first.digest
    assert first.overdue == 0


def test_a_lone_request_takes_its_segments_and_nothing_else() -> None:
    outcome = simulate(Scenario((Tenant(1, MODEL),), came(1, 7)))
    assert [(answer.reason, answer.moment) for answer in outcome.answers] == [("OK", 7 + 3 * MS)]
    assert [(ran.started, ran.ended) for ran in outcome.slices] == [
        (7, 7 + MS),
        (7 + MS, 7 + 2 * MS),
        (7 + 2 * MS, 7 + 3 * MS),
    ]


def test_requests_of_one_moment_ride_in_one_batch() -> None:
    model = SimulatedModel((Segment(MS, MS),), max_batch_size=4)
    outcome = simulate(Scenario((Tenant(1, model),), came(1, 0, 0, 0)))
    assert [answer.moment for answer in outcome.answers] == [4 * MS] * 3


def test_an_urgent_request_waits_for_one_slice_of_a_long_batch() -> None:
    tenants = (Tenant(1, MODEL), Tenant(2, SimulatedModel((Segment(10 * US),)), objective_ns=MS))
    outcome = simulate(Scenario(tenants, came(1, 0) + came(2, 1500 * US)))
    (urgent,) = outcome.of(2)
    assert urgent.moment == 2 * MS + 10 * US
    assert outcome.attainment(2) == 1.0


def test_a_segment_that_raises_costs_its_own_calls_and_nobody_else() -> None:
    kernel_faults = {(1, 1): Fault.RAISES}
    scenario = Scenario((Tenant(1, MODEL), Tenant(2, MODEL)), came(1, 0) + came(2, 0))
    run = Run(scenario, chance())
    run.lanes[0]._faults = FaultPlan(nth=kernel_faults)
    outcome = run.finish()
    assert [(answer.reason, answer.message) for answer in outcome.of(1)] == [("MODEL_FAILED", Fault.RAISES.value)]
    assert [answer.reason for answer in outcome.of(2)] == ["OK"]
    assert outcome.used_ns == {1: 2 * MS, 2: 3 * MS}


def test_after_a_segment_that_never_returns_the_lane_goes_on_and_the_others_are_run_again() -> None:
    tenants = (
        Tenant(1, MODEL, faults=FaultRates(hangs=1.0)),
        Tenant(2, MODEL, objective_ns=100 * MS, deadline_ns=100 * MS),
        Tenant(3, MODEL, objective_ns=9 * MS, deadline_ns=9 * MS),
    )
    happenings = came(1, 0) + came(2, 1, 2) + came(3, 3)
    outcome = simulate(Scenario(tenants, happenings, watchdog_ns=10 * MS))
    assert outcome.replaced == 1
    assert [(answer.reason, answer.message) for answer in outcome.of(1)] == [("MODEL_FAILED", Fault.HANGS.value)]
    assert [answer.reason for answer in outcome.of(2)] == ["OK", "OK"]
    assert [answer.reason for answer in outcome.of(3)] == ["DEADLINE_EXCEEDED"]
    assert outcome.used_ns[1] == 10 * MS


def test_a_model_that_does_not_fit_is_refused_with_what_is_missing_and_the_others_keep_their_memory() -> None:
    large = SimulatedModel((Segment(MS),), weight_bytes=80)
    scenario = Scenario((Tenant(1, large), Tenant(2, large, loaded_at=1)), (), memory_bytes=100)
    run = Run(scenario, chance())
    with pytest.raises(LedgerFull, match="needs 80 bytes; 20 of 100 are free"):
        run.finish()
    assert run.device.ledger.used_bytes == 80
    run.device.ledger.check_invariants()


def test_what_an_unloaded_model_held_can_be_used_by_another_one() -> None:
    large = SimulatedModel((Segment(MS),) * 5, weight_bytes=80)
    tenants = (Tenant(1, large), Tenant(2, large, loaded_at=10 * MS))
    outcome = simulate(Scenario(tenants, (*came(1, 0), Unload(MS, 1, 5 * MS), *came(2, 10 * MS)), memory_bytes=100))
    assert [answer.reason for answer in outcome.answers] == ["OK", "OK"]


def test_a_drain_that_ends_in_the_middle_of_a_slice_does_not_ask_to_be_told_of_it_again_and_again() -> None:
    slow = SimulatedModel((Segment(20 * MS),) * 2)
    outcome = simulate(Scenario((Tenant(1, slow),), (*came(1, 0), Unload(MS, 1, 5 * MS))))
    assert outcome.overdue == 0
    assert [answer.reason for answer in outcome.answers] == ["MODEL_NOT_READY"]


class Forgetful(Arbiter):
    """Loses the first call that it is told of."""

    def handle(self, event, now):
        actions = super().handle(event, now)
        return [action for action in actions if getattr(action, "calls", None) != (0,)]


def test_a_call_that_is_never_answered_is_noticed() -> None:
    with pytest.raises(AssertionError, match="2 calls, answered"):
        simulate(Scenario((Tenant(1, MODEL),), came(1, 0, 1)), lambda lane: Forgetful(lane=lane))


# Arrivals.


def test_a_greedy_stream_conforms_and_could_not_come_earlier() -> None:
    costs = [3 * MS] * 10
    moments = list(arrivals.greedy(arrivals.TokenBucket(7 * MS, 250), costs, start=5))
    assert moments[:2] == [5, 5]
    assert moments[2] == 5 + 8 * MS
    assert {later - earlier for earlier, later in itertools.pairwise(moments[2:])} == {12 * MS}
    for index in range(2, 10):
        early = [*moments[:index], moments[index] - 1]
        bucket = arrivals.TokenBucket(7 * MS, 250, start=5)
        assert [bucket.take(moment, 3 * MS) for moment in early] == [True] * index + [False]


def test_a_bucket_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="sigma_ns and rho"):
        arrivals.TokenBucket(0, 10)
    with pytest.raises(ValueError, match="more than the bucket holds"):
        arrivals.TokenBucket(5, 10).conforms_from(6)


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_gamma_arrivals_have_the_rate_and_the_variation_asked_for(cv: float) -> None:
    moments = arrivals.gamma(chance(), 1000, cv, 0, 100 * SECOND)
    gaps = np.diff(moments)
    assert len(moments) == pytest.approx(100_000, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)
    assert moments == sorted(moments)


def test_on_and_off_arrivals_leave_gaps_and_bursts_come_together() -> None:
    moments = arrivals.on_off(chance(), 1000, 100 * MS, 100 * MS, 0, 20 * SECOND)
    assert len(moments) == pytest.approx(10_000, rel=0.25)
    assert max(np.diff(moments)) > 50 * MS
    assert arrivals.bursts(2, 10, 0, 30) == [0, 0, 10, 10, 20, 20]
    late = arrivals.bursts(2, 10, 0, 30, jitter_ns=4, chance=chance())
    assert all(0 <= b - a <= 4 for a, b in zip([0, 0, 10, 10, 20, 20], late, strict=True))
