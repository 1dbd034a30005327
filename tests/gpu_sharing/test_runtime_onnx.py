"""The ONNX runtime: real models, strings, types, and batch axes that only a run can tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from artefact_samples import linear_onnx, onnx_bytes, written
from onnx import TensorProto, helper

from gpu_sharing.runtimes.base import ArtefactRefused, LoadConfig, LoadedModel
from gpu_sharing.runtimes.onnx import OnnxModel, OnnxRuntime
from gpu_sharing.runtimes.warmup import finish
from gpu_sharing.tensors import WarmupTensor

CONFIG = LoadConfig(threads=1, compute_units=1)


def package_file(package: str, pattern: str) -> Path:
    module = pytest.importorskip(package)
    (found,) = Path(module.__file__).parent.glob(pattern)
    return found


def load(folder: Path, data: bytes, config: LoadConfig = CONFIG) -> LoadedModel:
    return OnnxRuntime().load(written(folder, "m.onnx", data), config)


def axes(model: LoadedModel) -> dict[str, int | None]:
    return {spec.name: spec.batch_axis for spec in (*model.signature.inputs, *model.signature.outputs)}


def test_an_output_whose_symbol_differs_is_found_by_running(tmp_path: Path) -> None:
    model = load(tmp_path, linear_onnx("n", "m"))
    assert axes(model) == {"x": 0, "y": 0}
    assert model.signature.max_batch_size > 1


def test_dimensions_without_names_are_batched_along_the_first_axis(tmp_path: Path) -> None:
    assert axes(load(tmp_path, linear_onnx(None, None))) == {"x": 0, "y": 0}


def test_a_model_of_a_fixed_shape_takes_one_request_at_a_time(tmp_path: Path) -> None:
    data = onnx_bytes(
        [helper.make_node("Relu", ["x"], ["y"])], [("x", TensorProto.FLOAT, [1, 4])], [("y", TensorProto.FLOAT, [1, 4])]
    )
    model = load(tmp_path, data)
    assert model.signature.max_batch_size == 0
    assert axes(model) == {"x": None, "y": None}


def test_a_model_that_sums_over_the_batch_is_not_batched_and_says_why(tmp_path: Path) -> None:
    total = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)
    data = onnx_bytes([total], [("x", TensorProto.FLOAT, ["n", 4])], [("y", TensorProto.FLOAT, [])])
    model = load(tmp_path, data)
    assert isinstance(model, OnnxModel)
    assert model.signature.max_batch_size == 0
    assert "'y': no axis follows the rows" in model.unbatched_because


def test_a_model_whose_rows_influence_one_another_is_not_batched(tmp_path: Path) -> None:
    softmax = helper.make_node("Softmax", ["x"], ["y"], axis=0)
    data = onnx_bytes([softmax], [("x", TensorProto.FLOAT, ["n", 4])], [("y", TensorProto.FLOAT, ["n", 4])])
    model = load(tmp_path, data)
    assert isinstance(model, OnnxModel)
    assert model.signature.max_batch_size == 0
    assert "a row's result depends on the other rows" in model.unbatched_because


def test_a_model_with_two_axes_that_follow_the_rows_is_not_batched(tmp_path: Path) -> None:
    nodes = [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    model = load(
        tmp_path, onnx_bytes(nodes, [("x", TensorProto.FLOAT, ["n", 4])], [("y", TensorProto.FLOAT, ["a", "b"])])
    )
    assert isinstance(model, OnnxModel)
    assert model.signature.max_batch_size == 0
    assert "axes [0, 1] all follow" in model.unbatched_because


def test_strings_go_in_and_out_as_bytes(tmp_path: Path) -> None:
    same = helper.make_node("Identity", ["s"], ["t"])
    model = load(
        tmp_path, onnx_bytes([same], [("s", TensorProto.STRING, ["n", 2])], [("t", TensorProto.STRING, ["n", 2])])
    )
    assert model.signature.inputs[0].datatype == "BYTES"
    texts = np.array([["grüße".encode(), b""]], dtype=object)
    out = finish(model.run({"s": texts}))["t"]
    assert out.tolist() == texts.tolist()
    with pytest.raises(ValueError, match="input 's': element 1 is not UTF-8"):
        finish(model.run({"s": np.array([[b"ok", b"\xff"]], dtype=object)}))


def test_half_precision_is_served(tmp_path: Path) -> None:
    model = load(
        tmp_path,
        onnx_bytes(
            [helper.make_node("Relu", ["x"], ["y"])],
            [("x", TensorProto.FLOAT16, ["n", 4])],
            [("y", TensorProto.FLOAT16, ["n", 4])],
        ),
    )
    assert model.signature.inputs[0].datatype == "FP16"
    out = finish(model.run({"x": np.full((2, 4), -1, np.float16)}))["y"]
    assert out.dtype == np.float16
    assert not out.any()


def test_bfloat16_inputs_are_refused_by_name(tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    data = onnx_bytes([cast], [("x", TensorProto.BFLOAT16, ["n"])], [("y", TensorProto.FLOAT, ["n"])])
    with pytest.raises(ArtefactRefused, match=r"tensor 'x': type tensor\(bfloat16\) cannot be served"):
        load(tmp_path, data)


def test_a_model_that_rejects_the_made_up_input_is_served_all_the_same(tmp_path: Path) -> None:
    # Rows of 7 only, which the signature does not tell.
    shape = onnx.numpy_helper.from_array(np.array([-1, 7], np.int64), "shape")
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    data = onnx_bytes(nodes, [("x", TensorProto.FLOAT, ["n", "k"])], [("y", TensorProto.FLOAT, ["n", "k"])], [shape])
    model = load(tmp_path, data)
    assert axes(model) == {"x": 0, "y": 0}
    assert finish(model.run({"x": np.ones((2, 7), np.float32)}))["y"].shape == (2, 7)


SILERO_AXES = {"input": 0, "state": 1, "output": 0, "stateN": 1}
SILERO_WARMUP = (WarmupTensor("input", (1, 512)), WarmupTensor("sr", (), np.int64(16_000).tobytes()))


def test_silero_vad_batches_along_the_axes_that_the_operator_named() -> None:
    path = package_file("silero_vad", "data/silero_vad.onnx")
    config = LoadConfig(threads=1, compute_units=1, batch_axes=SILERO_AXES, warmup=SILERO_WARMUP)
    OnnxRuntime().check(path)
    model = OnnxRuntime().load(path, config)
    assert axes(model) == {**SILERO_AXES, "sr": None}
    assert model.signature.max_batch_size > 1
    chance = np.random.default_rng(1)
    speech = chance.standard_normal((3, 512)).astype(np.float32)
    state = chance.standard_normal((2, 3, 128)).astype(np.float32)
    rate = np.array(16_000)
    together = finish(model.run({"input": speech, "state": state, "sr": rate}))
    for row in range(3):
        alone = finish(model.run({"input": speech[row : row + 1], "state": state[:, row : row + 1], "sr": rate}))
        np.testing.assert_allclose(together["output"][row : row + 1], alone["output"], atol=1e-5)
        np.testing.assert_allclose(together["stateN"][:, row : row + 1], alone["stateN"], atol=1e-5)


def test_silero_vad_without_a_word_from_the_operator_takes_one_request_at_a_time() -> None:
    model = OnnxRuntime().load(package_file("silero_vad", "data/silero_vad.onnx"), CONFIG)
    assert model.signature.max_batch_size == 0


def test_silero_vad_with_named_symbols_needs_no_word_from_the_operator() -> None:
    model = OnnxRuntime().load(package_file("silero_vad", "data/silero_vad_op18_ifless.onnx"), CONFIG)
    assert axes(model) == {**SILERO_AXES, "sr": None}


def test_magika_batches_although_its_symbols_differ() -> None:
    path = package_file("magika", "models/*/model.onnx")
    OnnxRuntime().check(path)
    model = OnnxRuntime().load(path, CONFIG)
    assert axes(model) == {"bytes": 0, "target_label": 0}
    content = np.random.default_rng(2).integers(0, 256, (2, 2048)).astype(np.int32)
    together = finish(model.run({"bytes": content}))["target_label"]
    np.testing.assert_allclose(together[1:], finish(model.run({"bytes": content[1:]}))["target_label"], atol=1e-5)
