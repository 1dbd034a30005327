"""Cutting: where segments begin, and that a cut program computes to the bit what the whole one does."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from artefact_samples import exported, written
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gpu_sharing.runtimes import torch_segments, verification
from gpu_sharing.runtimes.base import LoadConfig
from gpu_sharing.runtimes.cutting import MAX_SEGMENTS, SLACK, cut_points
from gpu_sharing.runtimes.torch_export import TorchExportModel, TorchExportRuntime
from gpu_sharing.runtimes.torch_segments import _compiled, cut, run_all, whole
from gpu_sharing.runtimes.warmup import finish
from gpu_sharing.units import MS

COSTS = st.lists(st.integers(0, 300), min_size=1, max_size=80)


def parts(costs: list[int], points: tuple[int, ...]) -> list[list[int]]:
    edges = [0, *points, len(costs)]
    return [costs[begin:end] for begin, end in itertools.pairwise(edges)]


def test_a_model_shorter_than_two_quanta_stays_whole() -> None:
    assert cut_points([50, 60, 80], [0, 1, 1], quantum=100) == ()


def test_segments_hold_about_one_quantum() -> None:
    assert cut_points([50] * 8, [0] + [1] * 7, quantum=100) == (2, 4, 6)


def test_near_the_quantum_the_boundary_with_the_fewest_values_is_taken() -> None:
    assert cut_points([25] * 12, [0, 1, 1, 3, 3, 1, 3, 3, 3, 1, 3, 3], quantum=100) == (5, 9)


def test_an_operator_longer_than_the_quantum_stands_alone() -> None:
    points = cut_points([100, 500, 100, 100], [0, 1, 1, 1], quantum=100)
    assert [500] in parts([100, 500, 100, 100], points)


@given(COSTS, st.data())
def test_every_operator_lies_in_one_segment_and_none_is_longer_than_it_must_be(
    costs: list[int], data: st.DataObject
) -> None:
    alive = data.draw(st.lists(st.integers(0, 9), min_size=len(costs), max_size=len(costs)))
    points = cut_points(costs, alive, quantum=100)
    assert list(points) == sorted(set(points))
    assert all(0 < point < len(costs) for point in points)
    quantum = max(100, sum(costs) // MAX_SEGMENTS)
    if points:
        assert all(sum(part) <= quantum * (1 + SLACK) + max(part) for part in parts(costs, points))


class Branches(torch.nn.Module):
    """Values that stay alive over many operators, several outputs, and a shape that is computed on the way."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(6))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first, hidden = x * 2, x
        for layer in self.layers:
            hidden = torch.relu(layer(hidden)) + first
        return hidden, first, hidden.reshape(-1, x.shape[1] * 8).sum(1), x


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dims = {"x": {0: torch.export.Dim("batch", max=16), 1: torch.export.Dim("tokens", max=32)}}
    data = exported(Branches(), (torch.ones(2, 4, 8),), dims)
    return written(tmp_path_factory.mktemp("cut"), "m.pt2", data)


@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_a_program_cut_anywhere_computes_the_same_bits(program: Path, every: int) -> None:
    module = torch.export.load(program).module(check_guards=False)
    operators = [node for node in module.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    segments = _compiled(module, range(every, len(operators), every))
    assert len(segments) > 1
    x = torch.randn(3, 5, 8)
    with torch.inference_mode():
        expected = run_all(whole(module), {"x": x})
        alive = {"x": x}
        given = run_all(segments, alive)
    assert all(torch.equal(one, other) for one, other in zip(expected, given, strict=True))
    assert len(alive) <= 3, "values that nobody needs any more are still held"


def test_measuring_cuts_nothing_from_a_model_of_microseconds(program: Path) -> None:
    module = torch.export.load(program).module(check_guards=False)
    assert len(cut(module, [torch.ones(1, 2, 8)])) == 1


def test_a_run_stops_at_every_boundary_and_other_runs_may_go_between(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = range(4, 16, 4)
    monkeypatch.setattr(
        "gpu_sharing.runtimes.torch_export.cut", lambda module, arguments, settles: _compiled(module, points)
    )
    model = TorchExportRuntime().load(program, LoadConfig(threads=1, compute_units=1))
    assert isinstance(model, TorchExportModel)
    assert len(model.segments) == len(points) + 1
    x, y = np.random.default_rng(5).standard_normal((2, 1, 3, 8)).astype(np.float32)
    alone = [finish(model.run({"x": each})) for each in (x, y)]
    runs = [model.run({"x": each}) for each in (x, y)]
    results: list[dict[str, np.ndarray]] = [{}, {}]
    stops = 0
    for _ in range(len(model.segments)):
        for index, run in enumerate(runs):
            try:
                next(run)
                stops += 1
                assert not torch.is_inference_mode_enabled()
            except StopIteration as ended:
                results[index] = ended.value
    assert stops == 2 * len(points)
    for one, other in zip(alone, results, strict=True):
        assert {name: value.tobytes() for name, value in one.items()} == {n: v.tobytes() for n, v in other.items()}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 33, 8), "input 'x': axis 1 is 33; the model takes 1 to 32"),
        ((1, 4, 9), "input 'x': axis 2 is 9; the model takes 8"),
        ((4, 8), "input 'x': 2 dimensions where the model takes 3"),
    ],
)
def test_an_extent_that_the_program_was_not_exported_for_is_an_error(
    program: Path, shape: tuple[int, ...], message: str
) -> None:
    model = TorchExportRuntime().load(program, LoadConfig(threads=1, compute_units=1))
    with pytest.raises(ValueError, match=message):
        finish(model.run({"x": np.ones(shape, np.float32)}))


def test_activations_grow_with_the_rows_and_leave_out_the_weights(program: Path) -> None:
    model = TorchExportRuntime().load(program, LoadConfig(threads=1, compute_units=1))
    assert isinstance(model, TorchExportModel)
    one, two = (model.activation_bytes({"x": np.ones((rows, 32, 8), np.float32)}) for rows in (1, 2))
    assert one >= 3 * 32 * 8 * 4
    assert two == 2 * one


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many operators each measurement was of. Every one of them counts as long."""
    seen: list[int] = []
    monkeypatch.setattr(
        torch_segments,
        "_measured",
        lambda module, operators, arguments, settles: seen.append(len(operators)) or [MS] * len(operators),
    )
    return seen


def test_a_second_load_measures_nothing_and_cuts_in_the_same_places(program: Path, measured: list[int]) -> None:
    config = LoadConfig(threads=1, compute_units=1)
    first = TorchExportRuntime().load(program, config)
    assert (len(measured), len(first.segments) > 2) == (1, True)
    again = replace(config, segments=first.segments, signature=first.signature)
    second = TorchExportRuntime().load(program, again)
    assert (len(measured), second.segments, second.signature) == (1, first.segments, first.signature)
    x = {"x": np.ones((2, 3, 8), np.float32)}
    one, other = finish(first.run(x)), finish(second.run(x))
    assert {name: value.tobytes() for name, value in one.items()} == {n: v.tobytes() for n, v in other.items()}


def test_segments_of_another_program_are_measured_anew(program: Path, measured: list[int]) -> None:
    config = LoadConfig(threads=1, compute_units=1, segments=("relu..relu_1", "add..add_5"))
    assert len(TorchExportRuntime().load(program, config).segments) > 2
    assert len(measured) == 1


def test_a_signature_that_was_settled_before_is_not_tried_again(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = LoadConfig(threads=1, compute_units=1)
    settled = TorchExportRuntime().load(program, config).signature
    monkeypatch.setattr(verification, "verify", lambda *given, **rest: pytest.fail("tried again"))
    again = TorchExportRuntime().load(program, replace(config, signature=settled))
    assert again.signature == settled
    other = replace(settled, inputs=(replace(settled.inputs[0], name="z"),))
    with pytest.raises(pytest.fail.Exception):
        TorchExportRuntime().load(program, replace(config, signature=other))
