"""The first profile: bounded in time, growing until batches are long, and never a reason to refuse a sound model."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from gpu_sharing.runtimes.base import ArtefactRefused, LoadConfig, Run, Tensors
from gpu_sharing.runtimes.profile import BUDGET_NS, LEAST_RUNS, measure, shape_bucket
from gpu_sharing.runtimes.stopwatch import Stopwatch
from gpu_sharing.runtimes.warmup import requests
from gpu_sharing.tensors import Signature, TensorSpec, WarmupTensor
from gpu_sharing.units import MS

SIGNATURE = Signature(
    inputs=(
        TensorSpec("ids", "INT64", (None, None), ("b", "t"), batch_axis=0),
        TensorSpec("rate", "INT64", ()),
    ),
    outputs=(TensorSpec("y", "FP32", (None, 2), ("b", ""), batch_axis=0),),
    max_batch_size=32,
)


@dataclass
class SlowModel:
    """Takes `row_ns` for each row of a virtual clock, in `segments` equal parts."""

    row_ns: int
    signature: Signature = SIGNATURE
    weight_bytes: int = 1000
    segments: tuple[str, ...] = ("first", "second")
    fails_above: int | None = None
    now: int = 0
    rows_seen: list[int] = field(default_factory=list)

    def clock(self) -> int:
        return self.now

    def run(self, inputs: Tensors) -> Run:
        rows = inputs["ids"].shape[0]
        if self.fails_above is not None and rows > self.fails_above:
            raise ValueError(f"{rows} rows are too many")
        self.rows_seen.append(rows)
        for index in range(len(self.segments)):
            self.now += rows * self.row_ns // len(self.segments)
            if index + 1 < len(self.segments):
                yield
        return {"y": np.zeros((rows, 2), np.float32)}

    def activation_bytes(self, inputs: Tensors) -> int:
        return 0

    def close(self) -> None:
        pass


def profiled(model: SlowModel, **config: object):
    stages: list[str] = []
    settings = LoadConfig(threads=1, compute_units=3, **config)  # type: ignore[arg-type]
    profile, memory = measure(
        model, settings, digest="d", device_kind="cpu", stopwatch=Stopwatch(model.clock), on_stage=stages.append
    )
    return profile, memory, stages


def test_points_grow_by_twos_up_to_the_largest_batch() -> None:
    profile, memory, stages = profiled(SlowModel(row_ns=MS // 10))
    assert [point.rows for point in profile.points] == [1, 2, 4, 8, 16, 32]
    assert [point.p50_ns for point in profile.points] == [rows * MS // 10 for rows in (1, 2, 4, 8, 16, 32)]
    assert {point.compute_units for point in profile.points} == {3}
    assert stages == ["warming up", "profiling"]
    assert memory == max(point.activation_bytes for point in profile.points) > 0


def test_a_largest_batch_that_is_no_power_of_two_is_measured_too() -> None:
    signature = Signature(SIGNATURE.inputs, SIGNATURE.outputs, max_batch_size=6)
    profile, _, _ = profiled(SlowModel(row_ns=MS // 10, signature=signature))
    assert [point.rows for point in profile.points] == [1, 2, 4, 6]


def test_growing_stops_at_a_batch_that_is_long() -> None:
    profile, _, _ = profiled(SlowModel(row_ns=20 * MS))
    assert [point.rows for point in profile.points] == [1, 2, 4]


def test_a_slow_model_still_gets_three_runs_of_one_row() -> None:
    model = SlowModel(row_ns=900 * MS)
    profile, _, _ = profiled(model)
    assert [(point.rows, point.runs) for point in profile.points] == [(1, LEAST_RUNS)]


def test_profiling_is_bounded_in_time() -> None:
    model = SlowModel(row_ns=3 * MS)
    profiled(model)
    assert model.now < BUDGET_NS + 500 * MS


def test_each_segment_has_its_cost() -> None:
    profile, _, _ = profiled(SlowModel(row_ns=2 * MS))
    assert [(cost.name, cost.p50_ns) for cost in profile.segments] == [("first", MS), ("second", MS)]


def test_each_point_has_the_cost_of_each_segment_at_its_rows() -> None:
    profile, _, _ = profiled(SlowModel(row_ns=MS // 10))
    assert [point.segments_ns for point in profile.points] == [(rows * MS // 20,) * 2 for rows in (1, 2, 4, 8, 16, 32)]


def test_a_thread_that_was_kept_from_its_core_is_measured_by_its_time_on_it() -> None:
    model = SlowModel(row_ns=MS)
    reads = iter(range(10**9))

    def wall() -> int:
        # Every fifth reading, something else has the core for 50 ms.
        return model.now + next(reads) // 5 * 50 * MS

    stopwatch = Stopwatch(wall, model.clock)
    given = {"digest": "d", "device_kind": "cpu", "on_stage": lambda stage: None}
    profile, _ = measure(model, LoadConfig(threads=1, compute_units=1), stopwatch=stopwatch, **given)
    assert profile.points[0].p50_ns == profile.points[0].p99_ns == MS


def test_runs_of_many_threads_that_were_interrupted_are_left_out_while_enough_others_remain() -> None:
    model = SlowModel(row_ns=MS, segments=("only",))
    interruptions, started = 0, 0
    run = model.run

    def disturbed(inputs: Tensors) -> Run:
        nonlocal interruptions, started
        started += 1
        if started % 2:
            interruptions += 1
            model.now += 70 * MS
        return (yield from run(inputs))

    model.run = disturbed  # type: ignore[method-assign]
    stopwatch = Stopwatch(model.clock, None, lambda: interruptions)
    given = {"digest": "d", "device_kind": "cpu", "on_stage": lambda stage: None}
    profile, _ = measure(model, LoadConfig(threads=2, compute_units=2), stopwatch=stopwatch, **given)
    assert profile.points[0].runs >= LEAST_RUNS
    assert profile.points[0].p99_ns == MS


def test_a_batch_that_the_model_rejects_ends_the_growth() -> None:
    profile, _, _ = profiled(SlowModel(row_ns=MS // 10, fails_above=4))
    assert [point.rows for point in profile.points] == [1, 2, 4]


def test_a_model_that_rejects_the_made_up_input_gets_an_empty_profile() -> None:
    profile, memory, _ = profiled(SlowModel(row_ns=MS, fails_above=0))
    assert (profile.points, profile.weight_bytes, memory) == ((), 1000, 0)


def test_a_model_that_rejects_the_operators_input_is_refused() -> None:
    with pytest.raises(ArtefactRefused, match="warmup: the model rejects it: 1 rows are too many"):
        profiled(SlowModel(row_ns=MS, fails_above=0), warmup=(WarmupTensor("ids", (1, 5)),))


def test_each_warm_up_request_is_measured_at_its_shape() -> None:
    warmup = (WarmupTensor("ids", (1, 5)), WarmupTensor("rate", (), b"\1" * 8), WarmupTensor("ids", (1, 77)))
    model = SlowModel(row_ns=10 * MS)
    profile, _, _ = profiled(model, warmup=warmup)
    assert [(point.shape_bucket, point.rows) for point in profile.points] == [
        (shape, rows) for shape in ("5,scalar", "77,scalar") for rows in (1, 2, 4, 8)
    ]
    assert model.now < BUDGET_NS + 2 * 500 * MS


def test_warm_up_requests_share_what_is_named_less_often() -> None:
    short, rate, long = WarmupTensor("ids", (1, 5)), WarmupTensor("rate", ()), WarmupTensor("ids", (1, 77))
    assert requests((short, rate, long)) == [(short, rate), (long, rate)]
    assert requests(()) == [()]


def test_the_bucket_is_the_shapes_without_the_batch_axis() -> None:
    assert shape_bucket(SIGNATURE, {"ids": (8, 384), "rate": ()}) == "384,scalar"
    profile, _, _ = profiled(SlowModel(row_ns=MS), warmup=(WarmupTensor("ids", (1, 77)),))
    assert {point.shape_bucket for point in profile.points} == {"77,scalar"}
