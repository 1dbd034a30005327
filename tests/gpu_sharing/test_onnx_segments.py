"""ONNX graphs in segments: to the bit what the whole graph gives, cut again by name, and whole where they cannot be cut."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import onnx
import pytest
from artefact_samples import onnx_bytes, written
from msgspec.structs import replace
from onnx import TensorProto, helper

from gpu_sharing.runtimes import cutting, onnx_segments
from gpu_sharing.runtimes.base import LoadConfig, Run
from gpu_sharing.runtimes.cutting import points_of, segment_name
from gpu_sharing.runtimes.onnx import WHOLE, OnnxModel, OnnxRuntime
from gpu_sharing.runtimes.onnx_graph import Graph, Uncuttable, with_named_nodes
from gpu_sharing.runtimes.warmup import finish

CONFIG = LoadConfig(threads=1, compute_units=1)
WIDTH = 8
FLOAT = TensorProto.FLOAT


def deep(blocks: int = 6, *, extra: tuple = (), outputs: tuple[str, ...] = ("y",)) -> bytes:
    """`blocks` of MatMul, Relu and a residual from the very first value, which stays alive throughout."""
    chance = np.random.default_rng(3)
    nodes, weights, last = [helper.make_node("Mul", ["x", "x"], ["first"])], [], "first"
    for index in range(blocks):
        values = (chance.standard_normal((WIDTH, WIDTH)) / 3).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(values, f"w{index}"))
        nodes += [
            helper.make_node("MatMul", [last, f"w{index}"], [f"a{index}"]),
            helper.make_node("Sigmoid", [f"a{index}"], [f"b{index}"]),
            helper.make_node("Add", [f"b{index}", "first"], [f"c{index}"]),
        ]
        last = f"c{index}"
    nodes += [helper.make_node("Identity", [last], ["y"]), *extra]
    shapes = [(name, FLOAT, ["n", WIDTH]) for name in outputs]
    return onnx_bytes(nodes, [("x", FLOAT, ["n", WIDTH])], shapes, weights)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operator counts as long, so that a small model is cut as a large one would be."""
    points = lambda costs, alive, **rest: tuple(range(3, len(costs), 3))
    monkeypatch.setattr(onnx_segments, "cut_points", points)


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was measured."""
    seen: list[str] = []
    costs = onnx_segments.Draft.costs
    monkeypatch.setattr(onnx_segments.Draft, "costs", lambda draft: seen.append("nodes") or costs(draft))
    return seen


def load(folder: Path, data: bytes, config: LoadConfig = CONFIG) -> OnnxModel:
    model = OnnxRuntime().load(written(folder, "m.onnx", data), config)
    assert isinstance(model, OnnxModel)
    return model


def rows(count: int, seed: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)}


def bits(outputs: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in outputs.items()}


def stops(run: Run) -> int:
    count = 0
    while next(run, "ended") is None:
        count += 1
    return count


def test_a_cut_graph_gives_the_bits_of_the_whole_one(tmp_path: Path, eager: None) -> None:
    cut = load(tmp_path, deep())
    whole = load(tmp_path, deep(), replace(CONFIG, segments=(WHOLE,)))
    assert len(cut.segments) > 2
    assert whole.segments == (WHOLE,)
    for count in (1, 5):
        assert bits(finish(cut.run(rows(count)))) == bits(finish(whole.run(rows(count))))
    assert stops(cut.run(rows(2))) == len(cut.segments) - 1
    assert stops(whole.run(rows(2))) == 0


def test_runs_of_a_cut_graph_may_be_in_flight_together(tmp_path: Path, eager: None) -> None:
    model = load(tmp_path, deep())
    alone = [bits(finish(model.run(rows(2, seed)))) for seed in (1, 2)]
    one, other = (model.run(rows(2, seed)) for seed in (1, 2))
    for _ in range(len(model.segments) - 1):
        next(one)
        next(other)
    held = inspect.getgeneratorlocals(one)["values"]
    assert "first" in held
    assert len(held) == 2, "values that nobody needs any more are still held"
    assert [bits(finish(one)), bits(finish(other))] == alone


def test_a_second_load_measures_nothing_and_cuts_in_the_same_places(
    tmp_path: Path, eager: None, measurements: list[str]
) -> None:
    first = load(tmp_path, deep())
    assert measurements == ["nodes"]
    second = load(tmp_path, deep(), replace(CONFIG, segments=first.segments, signature=first.signature))
    assert second.segments == first.segments
    assert second.signature == first.signature
    assert measurements == ["nodes"]
    assert bits(finish(first.run(rows(3)))) == bits(finish(second.run(rows(3))))


def test_segments_of_another_graph_are_measured_anew(tmp_path: Path, eager: None, measurements: list[str]) -> None:
    first = load(tmp_path, deep())
    second = load(tmp_path, deep(), replace(CONFIG, segments=("0 Mul..7 Conv", "8 Add..12 Add")))
    assert second.segments == first.segments
    assert measurements == ["nodes"] * 2


def test_a_model_of_microseconds_stays_whole(tmp_path: Path) -> None:
    model = load(tmp_path, deep())
    assert model.segments == (WHOLE,)
    assert model.activation_bytes(rows(2)) == 2 * model.activation_bytes(rows(1)) > 0


def test_a_model_that_gives_other_bits_each_time_stays_whole(tmp_path: Path, eager: None) -> None:
    noise = helper.make_node("RandomNormalLike", ["y"], ["z"])
    model = load(tmp_path, deep(extra=(noise,), outputs=("y", "z")))
    assert model.segments == (WHOLE,)
    assert set(finish(model.run(rows(2)))) == {"y", "z"}


def test_text_may_enter_and_leave_a_cut_graph_but_not_cross_a_boundary(tmp_path: Path, eager: None) -> None:
    texts = [helper.make_node("Identity", ["s"], ["t"])]
    chain = [helper.make_node("Neg", ["x" if index == 0 else f"h{index}"], [f"h{index + 1}"]) for index in range(8)]
    ends = [("t", TensorProto.STRING, ["n"]), ("h8", FLOAT, ["n"])]
    starts = [("s", TensorProto.STRING, ["n"]), ("x", FLOAT, ["n"])]
    model = load(tmp_path, onnx_bytes([*texts, *chain], starts, ends))
    given = finish(model.run({"s": np.array([b"a"], object), "x": np.ones(1, np.float32)}))
    assert (given["t"].tolist(), given["h8"].tolist()) == ([b"a"], [1.0])


def test_a_subgraph_sees_the_values_around_it(tmp_path: Path, eager: None) -> None:
    inner = helper.make_graph(
        [helper.make_node("Add", ["c0", "w1"], ["then_y"])],
        "then",
        [],
        [helper.make_tensor_value_info("then_y", FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["first"], ["else_y"])],
        "else",
        [],
        [helper.make_tensor_value_info("else_y", FLOAT, None)],
    )
    total = helper.make_node("ReduceSum", ["y"], ["sum"], keepdims=0)
    decide = helper.make_node("Cast", ["sum"], ["decision"], to=TensorProto.BOOL)
    branch = helper.make_node("If", ["decision"], ["z"], then_branch=inner, else_branch=other)
    data = deep(extra=(total, decide, branch), outputs=("y", "z"))
    cut = load(tmp_path, data, replace(CONFIG, max_batch_size=0))
    whole = load(tmp_path, data, replace(CONFIG, max_batch_size=0, segments=(WHOLE,)))
    assert len(cut.segments) > 1
    for values in (rows(1), {"x": np.zeros((1, WIDTH), np.float32)}):
        assert bits(finish(cut.run(values))) == bits(finish(whole.run(values)))


def test_an_output_that_is_an_input_keeps_the_graph_whole() -> None:
    data = onnx_bytes([helper.make_node("Neg", ["x"], ["y"])], [("x", FLOAT, ["n"])], [("y", FLOAT, ["n"])])
    model = onnx.ModelProto.FromString(data)
    model.graph.output.append(model.graph.input[0])
    with pytest.raises(Uncuttable):
        Graph(model)


def test_every_node_gets_a_name_of_its_own() -> None:
    model = onnx.ModelProto.FromString(with_named_nodes(deep()))
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    named = model.SerializeToString()
    assert with_named_nodes(named) is named


def test_the_most_bytes_alive_are_found_by_when_values_leave() -> None:
    graph = Graph(onnx.ModelProto.FromString(with_named_nodes(deep(2))))
    # first stays until the last Add; beside it there are never more than two others.
    assert graph.peak_bytes({node.name: 10 for node in graph.nodes}) == 30


@pytest.mark.parametrize(
    ("names", "points"),
    [
        (("a..b", "c..d"), (2,)),
        (("a..d",), ()),
        (("a..b", "c..c"), None),
        (("a..c", "c..d"), None),
        (("b..d",), None),
        (("a..b", "x..d"), None),
        ((), None),
        (("graph",), None),
    ],
)
def test_segments_are_found_again_by_their_names(names: tuple[str, ...], points: tuple[int, ...] | None) -> None:
    assert segment_name("a", "b") == "a..b"
    assert points_of(names, ["a", "b", "c", "d"]) == points


def test_a_limit_of_segments_makes_them_longer() -> None:
    points = cutting.cut_points([100] * 40, [1] * 40, quantum=100, most=4)
    assert 3 <= len(points) + 1 <= 5
