"""The scenarios of `python -m bench.gpu`: what their judges make of samples, and that the simulator runs them all."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import __main__ as command
from bench.gpu import batching, isolation, memory, switching, weights
from bench.gpu.bed import Bed, simulated_model
from bench.gpu.figures import Batches, Findings, median, quantile, summary_us
from gpu_sharing.devices.simulated import SimulatedDevice
from gpu_sharing.measurements import ProfilePoint
from gpu_sharing.simulation.models import Segment, SimulatedModel
from gpu_sharing.units import MS, SECOND, MiB

SMALL = SimulatedModel((Segment(MS),) * 2, 1)
LARGE = SimulatedModel((Segment(2 * MS),) * 8, 1)


def isolated(met: int) -> isolation.Samples:
    alone = isolation.Part([2 * MS] * 100, 100, 100, 0)
    beside = isolation.Part([3 * MS] * 100, 1000, met, 50)
    rounds = [isolation.Round(alone, beside, alone, isolation.Part([90 * MS], 100, 0, 50))] * 5
    return isolation.Samples(rounds, 20 * MS, 0, (SMALL, LARGE), [], SECOND)


def test_a_small_model_that_is_late_more_often_than_it_may_be_is_told_to_be() -> None:
    assert all(isolation.judge(isolated(met=995)).holds.values())
    assert not any(isolation.judge(isolated(met=994)).holds.values())


def test_the_ratio_of_a_round_is_taken_over_what_was_before_and_after_it() -> None:
    figures = isolation.judge(isolated(met=1000)).figures
    assert figures["p99_beside_over_alone"] == {"median": 1.5, "interval": [1.5, 1.5], "coverage": 0.9375, "rounds": 5}
    assert figures["met_in_arrival_order"] == 0.0


def test_a_part_of_the_device_that_is_off_by_more_than_it_may_be_does_not_hold() -> None:
    fair, unfair = {1: 400, 2: 200, 3: 100, 4: 100}, {1: 400, 2: 200, 3: 110, 4: 90}
    others = {2: 50, 3: 25, 4: 25}
    judged = [
        weights.judge(weights.Samples([weights.Round(part, others, part)], 0, SMALL, SECOND)) for part in (fair, unfair)
    ]
    assert [list(each.holds.values()) for each in judged] == [[True, True], [False, True]]
    assert weights.off(unfair) == pytest.approx(0.1)


def test_only_who_has_nobody_but_a_running_slice_before_it_waits_for_a_boundary() -> None:
    ends = [10, 20, 30, 40, 50]
    # In the middle of a slice; behind another urgent one; and on an idle lane.
    assert switching.waits_of([(15, 20, 30), (25, 30, 40), (60, 60, 70)], ends) == [5]


def test_waits_for_a_boundary_beyond_two_slices_do_not_hold() -> None:
    part = switching.Part(1000, 100, 10, [4 * MS + 1])
    samples = switching.Samples([switching.Round(part, part, part)], 10, 2 * MS, (SMALL, LARGE), SECOND, [])
    assert list(switching.judge(samples).holds.values()) == [False]


@pytest.mark.parametrize(
    ("grown", "holds", "told"),
    [(5 * MiB, [True, True], []), (90 * MiB, [True, False], []), (None, [True], ["growth of memory by a load"])],
)
def test_memory_that_is_not_the_processs_is_not_measured(grown: int | None, holds: list[bool], told: list[str]) -> None:
    other = memory.Loaded(SECOND, 101 * MiB, None if grown is None else 100 * MiB)
    same = memory.Loaded(SECOND, 101 * MiB, grown)
    found = memory.judge(memory.Samples([memory.Round(other, same, other)], 100 * MiB, 101 * MiB, "cuda"))
    assert list(found.holds.values()) == holds
    assert list(found.not_measured) == told


def test_without_samples_every_scenario_says_what_it_has_not_measured() -> None:
    nothing = isolation.Part([], 0, 0, 0)
    found = [
        isolation.judge(isolated(0)._replace(rounds=[isolation.Round(nothing, nothing, nothing, nothing)])),
        weights.judge(weights.Samples([], 0, SMALL, SECOND)),
        switching.judge(switching.Samples([], 0, MS, (SMALL, LARGE), SECOND, [])),
        batching.judge(batching.Samples([], 0, {}, SECOND)),
        memory.judge(memory.Samples([], 0, 0, "cpu")),
    ]
    assert all(each.not_measured and not any(each.holds.values()) for each in found)


def test_the_simulator_keeps_the_small_models_objective_and_divides_by_weights() -> None:
    span = 2 * SECOND
    moments = [[at * MS for at in range(5, 2000, 25)]]
    kept = isolation.simulate(isolation.Samples([], 30 * MS, 20_000, (SMALL, LARGE), moments, span))
    divided = weights.simulate(weights.Samples([weights.Round({}, {}, {})], 20_000, SMALL, span))
    cut = switching.simulate(switching.Samples([], 20_000, 2 * MS, (SMALL, LARGE), span, moments))
    for found in (isolation.judge(kept), weights.judge(divided), switching.judge(cut)):
        assert found.holds
        assert all(found.holds.values()), found


def test_batches_make_more_of_a_simulated_device_whose_rows_cost_little() -> None:
    models = {1: SimulatedModel((Segment(MS, MS // 10),), 1), 2: SimulatedModel((Segment(MS, MS // 10),), 16)}
    found = batching.judge(batching.simulate(batching.Samples([], 0, models, SECOND)))
    assert found.figures["16 callers"]["throughput_over_unbatched"]["median"] > 4
    assert found.figures["1 callers"]["requests_a_batch"]["median"] == 1


def test_a_simulated_model_costs_at_each_number_of_rows_what_was_measured() -> None:
    points = [
        ProfilePoint(rows, "", 1, 0, 0, 9, segments_ns=(1000 + 10 * rows, 500 + 20 * rows)) for rows in (1, 2, 4, 8)
    ]
    model = simulated_model(points, 8)
    assert [model.cost(rows) for rows in (1, 8)] == [1530, 1740]


def test_figures_are_by_nearest_rank() -> None:
    assert (quantile(range(1, 101), 0.99), quantile([5], 0.5)) == (99, 5)
    assert median([3.0, 1.0, 2.0])["interval"] == [1.0, 3.0]
    assert summary_us([]) == {"count": 0}
    assert Batches(wall_ns=1000, device_ns=900, batches=2, slices=12).boundary_ns == 10
    with pytest.raises(ValueError, match="no samples"):
        quantile([], 0.5)


class Broken:
    async def measure(self, bed: Bed) -> Any:
        raise RuntimeError("the device fell off")

    def simulate(self, samples: Any) -> Any:
        return samples

    def judge(self, samples: Any) -> Findings:
        return Findings({}, {}, {})


def test_a_scenario_that_breaks_is_told_as_not_measured(tmp_path: Path) -> None:
    bed = Bed(SimulatedDevice(), tmp_path, 1, 0.1)
    told = asyncio.run(command.run("broken", Broken(), bed))
    assert told["failed"]
    assert told["not_measured"] == {"broken": "RuntimeError: the device fell off"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_scenario_runs_on_the_device_that_is_here(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    status = asyncio.run(command.main(["--rounds", "1", "--seconds", "0.5", "--out", str(out)]))
    told = json.loads(out.read_text())
    assert status == 0
    assert list(told["scenarios"]) == list(command.SCENARIOS)
    assert all(each["figures"] for each in told["scenarios"].values())
    assert told["environment"]["backend"]
