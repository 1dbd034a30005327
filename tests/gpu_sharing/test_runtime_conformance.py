"""What every runtime must do, whatever the artefact."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from artefact_samples import WIDTH, linear_onnx, linear_pt2, linear_python, written

from gpu_sharing.runtimes.base import ArtefactRefused, LoadConfig, LoadedModel, Runtime
from gpu_sharing.runtimes.registry import RUNTIMES, runtime_for
from gpu_sharing.runtimes.warmup import finish
from gpu_sharing.tensors import WarmupTensor

SAMPLES = {
    "onnx": ("model.onnx", linear_onnx),
    "torch_export": ("model.pt2", linear_pt2),
    "python": ("model.py", linear_python),
}
CUT_SAMPLES = {**SAMPLES, "python": ("model.py", functools.partial(linear_python, yields=True))}
APPROVED = {f"sha256:{hashlib.sha256(linear_python(yields=each)).hexdigest()}" for each in (False, True)}
CONFIG = LoadConfig(threads=1, compute_units=1)


@pytest.fixture(params=[*RUNTIMES, *(f"{name}, cut" for name in RUNTIMES)])
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """Each as it is, which leaves models as small as these whole, and each cutting wherever it can; code yields where it likes."""
    name, _, cut = request.param.partition(", ")
    if cut:
        for module in ("onnx_segments", "torch_segments"):
            points = lambda costs, alive, **rest: tuple(range(1, len(costs)))
            monkeypatch.setattr(f"gpu_sharing.runtimes.{module}.cut_points", points)
    return runtime_for(name, approved=APPROVED)


def test_a_model_is_cut_where_it_is_long(runtime: Runtime, model: LoadedModel, request: pytest.FixtureRequest) -> None:
    assert (len(model.segments) > 1) == ("cut" in request.node.callspec.id)


@pytest.fixture
def artefact(runtime: Runtime, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    samples = CUT_SAMPLES if "cut" in request.node.callspec.id else SAMPLES
    name, make = samples[runtime.name]
    return written(tmp_path, name, make())


@pytest.fixture
def model(runtime: Runtime, artefact: Path) -> Iterator[LoadedModel]:
    loaded = runtime.load(artefact, CONFIG)
    yield loaded
    loaded.close()


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, WIDTH)).astype(np.float32)


def test_a_sound_artefact_passes_the_check(runtime: Runtime, artefact: Path) -> None:
    runtime.check(artefact)


def test_the_batch_axis_of_every_tensor_is_named(model: LoadedModel) -> None:
    (taken,), (given,) = model.signature.inputs, model.signature.outputs
    assert (taken.name, taken.datatype, taken.shape, taken.batch_axis) == ("x", "FP32", (None, WIDTH), 0)
    assert (given.name, given.datatype, given.batch_axis) == ("y", "FP32", 0)
    assert model.signature.max_batch_size > 1


def test_a_batch_gives_each_row_what_it_gets_alone(model: LoadedModel) -> None:
    x = rows(5)
    together = finish(model.run({"x": x}))["y"]
    alone = [finish(model.run({"x": x[row : row + 1]}))["y"] for row in range(5)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-6)
    assert np.ptp(together) > 0


def test_a_run_is_a_generator_that_has_done_nothing_yet(model: LoadedModel) -> None:
    run = model.run({"x": rows(1)})
    assert inspect.isgenerator(run)
    run.close()


def test_inputs_may_be_read_only_views(model: LoadedModel) -> None:
    x = np.frombuffer(rows(2).tobytes(), dtype=np.float32).reshape(2, WIDTH)
    before = x.copy()
    finish(model.run({"x": x}))
    np.testing.assert_array_equal(x, before)


def test_closing_twice_is_the_same_as_once(model: LoadedModel) -> None:
    model.close()
    model.close()
    with pytest.raises(RuntimeError, match="closed"):
        finish(model.run({"x": rows(1)}))


def test_a_model_once_more_has_its_own_signature_and_outlives_the_first(model: LoadedModel) -> None:
    other = model.again(LoadConfig(threads=1, compute_units=1, max_batch_size=2))
    assert other.signature.max_batch_size == 2
    assert model.signature.max_batch_size > 2
    assert (other.segments, other.weight_bytes) == (model.segments, model.weight_bytes)
    x = {"x": rows(2)}
    expected = finish(model.run(x))["y"].tobytes()
    model.close()
    assert finish(other.run(x))["y"].tobytes() == expected
    other.close()
    with pytest.raises(RuntimeError, match="closed"):
        finish(other.run(x))


def test_a_model_once_more_is_refused_where_its_axes_cannot_be(model: LoadedModel) -> None:
    with pytest.raises(ArtefactRefused, match="no tensor is named 'z'"):
        model.again(LoadConfig(threads=1, compute_units=1, batch_axes={"z": 0}))


def test_activations_are_at_least_what_goes_in_and_comes_out_and_grow_with_the_rows(model: LoadedModel) -> None:
    one, four = (model.activation_bytes({"x": rows(count)}) for count in (1, 4))
    assert 0 < one < four


def test_a_second_load_with_what_the_first_found_is_the_same(
    runtime: Runtime, artefact: Path, model: LoadedModel
) -> None:
    known = LoadConfig(threads=1, compute_units=1, signature=model.signature, segments=model.segments)
    second = runtime.load(artefact, known)
    assert (second.signature, second.segments) == (model.signature, model.segments)


def test_weights_are_counted(model: LoadedModel) -> None:
    assert model.weight_bytes >= WIDTH * 3 * 4


def test_the_operators_limit_of_rows_is_kept(runtime: Runtime, artefact: Path) -> None:
    loaded = runtime.load(artefact, LoadConfig(threads=1, compute_units=1, max_batch_size=2))
    assert loaded.signature.max_batch_size == 2


def test_a_limit_of_zero_rows_turns_batching_off(runtime: Runtime, artefact: Path) -> None:
    loaded = runtime.load(artefact, LoadConfig(threads=1, compute_units=1, max_batch_size=0))
    assert loaded.signature.max_batch_size == 0
    assert loaded.signature.inputs[0].batch_axis is None


@pytest.mark.parametrize(
    ("axes", "message"),
    [({"z": 0}, "no tensor is named 'z'; the model has x, y"), ({"x": 1}, "axis 1 cannot vary; allowed: 0, -1")],
)
def test_batch_axes_that_cannot_be_are_refused_with_the_allowed_ones(
    runtime: Runtime, artefact: Path, axes: dict[str, int], message: str
) -> None:
    with pytest.raises(ArtefactRefused, match=message):
        runtime.load(artefact, LoadConfig(threads=1, compute_units=1, batch_axes=axes))


@pytest.mark.parametrize(
    ("warmup", "message"),
    [
        (WarmupTensor("z", (1, WIDTH)), "no input is named 'z'; the model takes x"),
        (WarmupTensor("x", (WIDTH,)), "does not fit"),
        (WarmupTensor("x", (1, WIDTH), b"123"), "3 bytes where its shape holds 16"),
        (WarmupTensor("x", (1, WIDTH + 1)), "the model rejects it"),
    ],
)
def test_a_warm_up_that_the_operator_gave_must_fit(
    runtime: Runtime, artefact: Path, warmup: WarmupTensor, message: str
) -> None:
    with pytest.raises(ArtefactRefused, match=message):
        runtime.load(artefact, LoadConfig(threads=1, compute_units=1, warmup=(warmup,)))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04K\x01.", b"\x00" * 4096, b"PK\x03\x04 and no more"])
def test_a_file_of_another_kind_is_refused(runtime: Runtime, tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path, "wrong.bin", content)
    with pytest.raises(ArtefactRefused, match=r"wrong\.bin: "):
        runtime.check(path)
    with pytest.raises(ArtefactRefused):
        runtime.load(path, CONFIG)


def test_the_other_runtimes_artefacts_are_refused(runtime: Runtime, tmp_path: Path) -> None:
    for other in set(RUNTIMES) - {runtime.name}:
        name, make = SAMPLES[other]
        with pytest.raises(ArtefactRefused, match=name):
            runtime.check(written(tmp_path, name, make()))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_short_is_refused(runtime: Runtime, artefact: Path, share: float) -> None:
    data = artefact.read_bytes()
    artefact.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ArtefactRefused, match=artefact.name):
        runtime.check(artefact)


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ArtefactRefused, match="'tensorrt' is not one of onnx, torch_export, python"):
        runtime_for("tensorrt")
