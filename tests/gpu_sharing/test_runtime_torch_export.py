"""The torch_export runtime: transformers, types, nested interfaces, and extents that only the range tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from artefact_samples import exported, with_model_json, written

from gpu_sharing.runtimes.base import ArtefactRefused, LoadConfig
from gpu_sharing.runtimes.profile import measure
from gpu_sharing.runtimes.stopwatch import Stopwatch
from gpu_sharing.runtimes.torch_export import TorchExportModel, TorchExportRuntime
from gpu_sharing.runtimes.warmup import finish

CONFIG = LoadConfig(threads=1, compute_units=1)
Dim = torch.export.Dim


def load(folder: Path, data: bytes, config: LoadConfig = CONFIG) -> TorchExportModel:
    path = written(folder, "m.pt2", data)
    TorchExportRuntime().check(path)
    model = TorchExportRuntime().load(path, config)
    assert isinstance(model, TorchExportModel)
    return model


class Applies(torch.nn.Module):
    """A module of one function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def applying(function: Any, x: torch.Tensor, **dims: Any) -> bytes:
    return exported(Applies(function), (x,), {"x": dict(dims.get("dims", {0: Dim("batch", max=16)}))})


@pytest.fixture(scope="module")
def bert() -> bytes:
    transformers = pytest.importorskip("transformers")
    shape = transformers.BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip

    class Embeds(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.model = transformers.BertModel(shape, add_pooling_layer=False)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return {"embedding": torch.nn.functional.normalize(mean, dim=1)}

    ids = torch.ones(2, 16, dtype=torch.long)
    both = {0: Dim("batch", max=32), 1: Dim("tokens", max=64)}
    return exported(Embeds(), (ids, ids), (both, both))


def test_a_transformer_is_served_and_batches_give_what_single_requests_give(tmp_path: Path, bert: bytes) -> None:
    model = load(tmp_path, bert)
    assert [(spec.name, spec.datatype, spec.batch_axis) for spec in model.signature.inputs] == [
        ("input_ids", "INT64", 0),
        ("attention_mask", "INT64", 0),
    ]
    assert [(spec.name, spec.shape, spec.batch_axis) for spec in model.signature.outputs] == [
        ("embedding", (None, 32), 0)
    ]
    assert model.signature.max_batch_size == 32
    chance = np.random.default_rng(3)
    ids = chance.integers(1, 100, (4, 23))
    mask = (np.arange(23) < chance.integers(5, 23, (4, 1))).astype(np.int64)
    together = finish(model.run({"input_ids": ids, "attention_mask": mask}))["embedding"]
    for row in range(4):
        only = slice(row, row + 1)
        alone = finish(model.run({"input_ids": ids[only], "attention_mask": mask[only]}))["embedding"]
        np.testing.assert_allclose(together[only], alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_what_is_served_equals_what_torch_computes(tmp_path: Path, bert: bytes) -> None:
    model = load(tmp_path, bert)
    ids = np.random.default_rng(4).integers(1, 100, (3, 9))
    mask = np.ones_like(ids)
    reference = torch.export.load(tmp_path / "m.pt2").module()
    with torch.inference_mode():
        expected = reference(torch.from_numpy(ids), torch.from_numpy(mask))["embedding"].numpy()
    np.testing.assert_allclose(
        finish(model.run({"input_ids": ids, "attention_mask": mask}))["embedding"], expected, atol=1e-6
    )


def test_a_transformer_is_profiled_at_sixteen_tokens(tmp_path: Path, bert: bytes) -> None:
    model = load(tmp_path, bert)
    ticks = iter(range(0, 10**12, 10**7))
    stopwatch = Stopwatch(lambda: next(ticks))
    profile, _ = measure(model, CONFIG, digest="d", device_kind="cpu", stopwatch=stopwatch, on_stage=lambda stage: None)
    assert profile.points[0].shape_bucket == "16,16"


def test_a_range_moves_the_extent_of_the_warm_up(tmp_path: Path) -> None:
    data = applying(
        lambda x: x * 2, torch.ones(2, 100), dims={0: Dim("batch", max=8), 1: Dim("width", min=64, max=128)}
    )
    model = load(tmp_path, data)
    assert model.signature.max_batch_size == 8
    assert (64, 128) in model.ranges.values()
    assert not model.unbatched_because


@pytest.mark.parametrize(
    ("dtype", "datatype", "kind"),
    [
        (torch.float16, "FP16", np.float16),
        (torch.bfloat16, "BF16", np.uint16),
        (torch.float64, "FP64", np.float64),
        (torch.int8, "INT8", np.int8),
        (torch.uint8, "UINT8", np.uint8),
        (torch.bool, "BOOL", np.bool_),
    ],
)
def test_types_survive_the_way_in_and_out(tmp_path: Path, dtype: torch.dtype, datatype: str, kind: Any) -> None:
    model = load(tmp_path, applying(lambda x: torch.cat([x, x], dim=1), torch.ones(2, 3).to(dtype)))
    assert model.signature.inputs[0].datatype == datatype
    # 0x3FC0 is 1.5 in bfloat16.
    x = np.array([[1, 0, 1]]).astype(kind) if datatype != "BF16" else np.array([[0x3FC0, 0, 0x3FC0]], np.uint16)
    out = finish(model.run({"x": x}))["output_0"]
    assert out.dtype == kind
    np.testing.assert_array_equal(out, np.concatenate([x, x], axis=1))


def test_complex_tensors_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ArtefactRefused, match=r"tensor 'output_0': type torch.complex64"):
        load(tmp_path, applying(lambda x: torch.fft.fft(x), torch.ones(2, 4)))


def test_outputs_are_named_by_their_keys_or_places(tmp_path: Path) -> None:
    def nested(x: torch.Tensor) -> Any:
        return {"a": x + 1, "b": {"c": x + 2, "d": (x + 3, x + 4)}, "none": None}

    model = load(tmp_path, applying(nested, torch.ones(2, 3)))
    assert [spec.name for spec in model.signature.outputs] == ["a", "b_c", "b_d_2", "b_d_3"]
    out = finish(model.run({"x": np.zeros((1, 3), np.float32)}))
    assert [int(out[name][0, 0]) for name in ("a", "b_c", "b_d_2", "b_d_3")] == [1, 2, 3, 4]


def test_constant_and_keyword_inputs_are_filled_in(tmp_path: Path) -> None:
    class Mixed(torch.nn.Module):
        def forward(self, x: torch.Tensor, factor: int, *, extra: Any = None, y: torch.Tensor) -> torch.Tensor:
            return x * factor + y

    program = torch.export.export(
        Mixed(), (torch.ones(2, 3), 5), {"y": torch.ones(2, 3)},
        dynamic_shapes={"x": {0: Dim("n", max=9)}, "factor": None, "y": {0: Dim("n", max=9)}},
    )  # fmt: skip
    torch.export.save(program, tmp_path / "m.pt2")
    model = load(tmp_path, (tmp_path / "m.pt2").read_bytes())
    assert [spec.name for spec in model.signature.inputs] == ["x", "y"]
    ones = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(finish(model.run({"x": ones, "y": ones}))["output_0"], ones * 6)


def test_a_model_whose_rows_influence_one_another_is_not_batched(tmp_path: Path) -> None:
    model = load(tmp_path, applying(lambda x: x - x.mean(0, keepdim=True), torch.ones(2, 3)))
    assert model.signature.max_batch_size == 0
    assert "depends on the other rows" in model.unbatched_because


def test_a_program_of_fixed_shape_takes_one_request_at_a_time(tmp_path: Path) -> None:
    model = load(tmp_path, exported(Applies(lambda x: x + 1), (torch.ones(1, 3),)))
    assert model.signature.max_batch_size == 0
    assert model.signature.inputs[0].shape == (1, 3)


def test_a_program_that_writes_into_its_input_gets_a_copy(tmp_path: Path) -> None:
    def in_place(x: torch.Tensor) -> torch.Tensor:
        x.view(-1).add_(1)
        return x * 2

    model = load(tmp_path, applying(in_place, torch.ones(2, 3)))
    shared = np.ones((2, 3), np.float32)
    shared.setflags(write=False)
    np.testing.assert_array_equal(finish(model.run({"x": shared}))["output_0"], np.full((2, 3), 4))
    np.testing.assert_array_equal(shared, np.ones((2, 3)))


def test_the_threads_of_the_lane_are_the_threads_of_torch(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        load(tmp_path, applying(lambda x: x + 1, torch.ones(2, 3)), LoadConfig(threads=2, compute_units=2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_program_from_another_major_schema_is_refused_with_torchs_reason(tmp_path: Path) -> None:
    data = applying(lambda x: x + 1, torch.ones(2, 3))
    path = with_model_json(data, tmp_path / "m.pt2", lambda document: document["schema_version"].update(major=99))
    with pytest.raises(ArtefactRefused, match=r"cannot load it: .*schema version"):
        TorchExportRuntime().load(path, CONFIG)
