"""Layouts as they are prepared, knee-sizes, and which layout fits which demand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.devices.simulated import SimulatedDevice
from gpu_sharing.partitioning.choice import Part, Want, choose, fit, is_better
from gpu_sharing.partitioning.knee import IN_PROPORTION, Measured, expected_ns, knee_size, smallest_batches
from gpu_sharing.partitioning.layout import LayoutInvalid
from gpu_sharing.partitioning.partitions import MOST_LAYOUTS, parse_layouts
from gpu_sharing.partitioning.patience import Patience
from gpu_sharing.units import MS

WHOLE = [Part(0, 0, 4, 1000, 1000)]
HALVES = [Part(1, 1, 2, 500, 500), Part(2, 2, 2, 500, 500)]
measurements = st.dictionaries(st.integers(1, 16), st.integers(1, 10**9), min_size=1).map(
    lambda found: tuple(Measured(units, took) for units, took in sorted(found.items()))
)


def test_a_set_of_units_is_one_lane_in_every_layout_that_has_it() -> None:
    device = SimulatedDevice(compute_units=4)
    partitions = parse_layouts("0-3|0-1;2-3|2,3;0;1", device.units())
    assert partitions.lanes == ((0, 1, 2, 3), (0, 1), (2, 3), (0,), (1,))
    assert partitions.layouts == ((0,), (1, 2), (3, 4, 2))
    assert partitions.names == ("0-3", "0-1;2-3", "0;1;2-3")
    assert [partitions.capacity(lane) for lane in range(5)] == [1000, 500, 500, 250, 250]
    assert [partitions.memory_bytes(lane, 600) for lane in range(5)] == [600, 300, 300, 200, 200]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0-1|0-4", "layouts: core 4 is not one of 0,1,2,3"),
        ("0-1|1;1-2", "layouts: core 1 is given twice"),
        ("0;1|0;1", "layouts: the layout '0;1' is given twice"),
        ("0|", "layouts: '' is neither a core nor a range"),
        ("|".join(["0"] * 9), f"layouts: 9 layouts are given; at most {MOST_LAYOUTS}"),
    ],
)
def test_layouts_that_cannot_be_prepared_say_what_is_wrong_and_the_limit(text: str, problem: str) -> None:
    with pytest.raises(LayoutInvalid, match=problem):
        parse_layouts(text, SimulatedDevice(compute_units=4).units())


@given(
    st.lists(
        st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=4), min_size=1, max_size=4), min_size=1, max_size=4
    )
)
def test_the_lanes_of_no_layout_are_worth_more_than_the_device(layouts: list[list[list[int]]]) -> None:
    text = "|".join(";".join(",".join(map(str, lane)) for lane in layout) for layout in layouts)
    try:
        partitions = parse_layouts(text, range(8))
    except LayoutInvalid:
        return
    for layout in partitions.layouts:
        units = [unit for lane in layout for unit in partitions.lanes[lane]]
        assert len(units) == len(set(units))
        assert sum(map(partitions.capacity, layout)) <= 1000
    assert parse_layouts("|".join(partitions.names), range(8)) == partitions


def test_the_knee_size_is_the_least_units_at_which_half_the_objective_is_met() -> None:
    measured = (Measured(1, 80 * MS), Measured(2, 45 * MS), Measured(4, 30 * MS))
    assert [knee_size(measured, objective * MS, 4) for objective in (160, 159, 90, 60, 59)] == [1, 2, 2, 4, None]
    assert knee_size((), 10 * MS, 4) is None


def test_a_model_is_thought_to_fit_fewer_units_than_were_measured_only_where_it_must() -> None:
    assert [knee_size((Measured(4, 10 * MS),), objective * MS, 4) for objective in (80, 79, 40, 19)] == [1, 2, 2, None]


def test_more_units_than_were_measured_are_worth_a_try() -> None:
    assert knee_size((Measured(2, 20 * MS),), 24 * MS, 4) == 4


def test_what_was_not_measured_is_expected_between_no_speedup_and_a_linear_one() -> None:
    assert expected_ns((Measured(1, 80),), 4) == 40
    assert expected_ns((Measured(4, 40),), 1) == 80
    assert expected_ns((Measured(1, 80), Measured(4, 20)), 2) == pytest.approx(40)


@given(measurements, st.integers(1, 16), st.integers(1, 10**9))
def test_a_knee_size_meets_half_the_objective_and_one_unit_less_does_not(
    measured: tuple[Measured, ...], most: int, objective: int
) -> None:
    knee = knee_size(measured, objective, most)
    meets = [
        units for units in range(1, most + 1) if 2 * (expected_ns(measured, units, IN_PROPORTION) or 0) <= objective
    ]
    assert knee == min(meets, default=None)


def test_of_a_profile_the_smallest_batch_of_the_slowest_shape_counts() -> None:
    points = [(4, 1, 50), (1, 1, 20), (1, 1, 30), (2, 2, 25)]
    assert smallest_batches(points) == (Measured(1, 30), Measured(2, 25))


def test_a_model_that_needs_the_whole_device_gets_a_layout_that_has_it() -> None:
    tight = Want("t", "acme", objective_ns=20 * MS, measured=(Measured(2, 15 * MS), Measured(4, 9 * MS)))
    fits = [fit(WHOLE, [tight], 4), fit(HALVES, [tight], 4)]
    assert fits[1].below_knee == ("t",)
    assert choose(fits, 1, [0, 1]) == 0
    assert choose(fits, 0, [0, 1]) == 0


def test_models_that_gain_nothing_from_more_units_are_put_side_by_side_once_the_device_is_busy() -> None:
    def both(busy: float) -> list[Want]:
        flat = (Measured(2, 10 * MS), Measured(4, 10 * MS))
        return [Want(name, name, measured=flat, busy=busy, busy_units=4) for name in ("a", "b")]

    assert choose([fit(WHOLE, both(0.4), 4), fit(HALVES, both(0.4), 4)], 0, [0, 1]) == 1
    assert choose([fit(WHOLE, both(0.1), 4), fit(HALVES, both(0.1), 4)], 0, [0, 1]) == 0


def test_a_layout_that_cannot_hold_a_models_memory_or_its_tenants_share_is_not_chosen() -> None:
    for want in (Want("m", "acme", memory_bytes=600), Want("m", "acme", bandwidth=600)):
        fits = [fit(WHOLE, [want], 4), fit(HALVES, [want], 4)]
        assert fits[1].unplaced == ("m",)
        assert choose(fits, 1, [0, 1]) == 0


def test_a_wall_that_was_asked_for_needs_a_lane_of_its_own() -> None:
    wants = [Want("a", "acme", isolated=True), Want("b", "bolt")]
    assert choose([fit(WHOLE, wants, 4), fit(HALVES, wants, 4)], 0, [0, 1]) == 1


def test_a_tenant_shares_what_it_has_on_a_lane_between_its_models() -> None:
    wants = [Want("a", "acme", bandwidth=600), Want("b", "acme", bandwidth=600)]
    assert not fit(WHOLE, wants, 4).unplaced


wants = st.builds(
    Want,
    st.sampled_from("abcdefgh"),
    st.sampled_from(["acme", "bolt"]),
    st.sampled_from([0, 200, 700]),
    st.integers(0, 700),
    st.booleans(),
    st.sampled_from([None, 5 * MS, 50 * MS]),
    measurements,
    st.floats(0, 1),
    st.sampled_from([1, 2, 4]),
)


@given(st.lists(wants, max_size=6, unique_by=lambda want: want.name))
def test_two_layouts_are_never_both_better_than_the_other(demand: list[Want]) -> None:
    whole, halves = fit(WHOLE, demand, 4), fit(HALVES, demand, 4)
    assert not (is_better(whole, halves) and is_better(halves, whole))
    chosen = choose([whole, halves], 0, [0, 1])
    assert choose([whole, halves], chosen, [0, 1]) == chosen


@given(st.lists(wants, max_size=6, unique_by=lambda want: want.name))
def test_what_is_laid_out_fits(demand: list[Want]) -> None:
    found, by_name = fit(HALVES, demand, 4), {want.name: want for want in demand}
    for part in HALVES:
        here = [by_name[name] for name, lane in found.lanes.items() if lane == part.lane]
        assert sum(want.memory_bytes for want in here) <= part.memory_bytes
        shares = {want.tenant: max(each.bandwidth for each in here if each.tenant == want.tenant) for want in here}
        assert sum(shares.values()) <= part.capacity
        assert len(shares) < 2 or not any(want.isolated for want in here)
    assert found.lanes.keys() | set(found.unplaced) == by_name.keys()


def test_a_change_waits_until_it_has_been_better_for_a_while_and_the_last_is_long_ago() -> None:
    patience = Patience()

    def asked(best: int, current: int, now: float) -> bool:
        return patience.is_time(best, current, now, steady_s=5, dwell_s=60)

    assert [asked(1, 0, now) for now in (0.0, 4.0, 5.0)] == [False, False, True]
    patience.changed(5.0)
    assert [asked(0, 1, now) for now in (6.0, 30.0, 64.0, 65.0)] == [False, False, False, True]
    assert [asked(0, 1, 66.0), asked(1, 1, 67.0), asked(0, 1, 68.0), asked(0, 1, 73.0)] == [True, False, False, True]


@given(st.lists(st.tuples(st.floats(0.1, 30), st.integers(0, 2)), max_size=60))
def test_whatever_seems_better_changes_are_never_closer_than_the_dwell(steps: list[tuple[float, int]]) -> None:
    patience, now, current = Patience(), 0.0, 0
    changes: list[float] = []
    for seconds, best in steps:
        now += seconds
        if patience.is_time(best, current, now, steady_s=1, dwell_s=60):
            patience.changed(now)
            changes.append(now)
            current = best
    assert all(later - earlier >= 60 for earlier, later in itertools.pairwise(changes))
