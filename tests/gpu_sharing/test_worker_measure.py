"""Measuring a file without any service: what the walls of a worker let through, and what goes wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import onnx
import pytest
from artefact_samples import onnx_bytes
from onnx import TensorProto, helper

from gpu_sharing.tensors import WarmupTensor
from gpu_sharing.worker.measure import Measurement, Task


def relu(path: Path, op: str = "Relu") -> Path:
    shape = ["batch", "n"]
    path.write_bytes(
        onnx_bytes(
            [helper.make_node(op, ["x"], ["y"])], [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, shape)]
        )
    )
    return path


def measured(task: Task) -> Measurement:
    text = msgspec.json.encode(task).decode()
    done = subprocess.run(
        [sys.executable, "-m", "gpu_sharing.worker.measure", text],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=Measurement)


def test_a_file_is_measured_on_one_unit_at_each_shape_it_is_to_be_warmed_up_with(tmp_path: Path) -> None:
    warmup = (WarmupTensor("x", (1, 3)), WarmupTensor("x", (1, 300), b"\0\0\0\0" * 300))
    task = Task(str(relu(tmp_path / "a.onnx")), "onnx", "sha256:a", 1, max_batch_size=4, warmup=warmup)
    found = measured(task)
    assert found.profile is not None, found.problem
    assert found.profile.digest == "sha256:a"
    assert [(point.shape_bucket, point.rows) for point in found.profile.points] == [
        (shape, rows) for shape in ("3", "300") for rows in (1, 2, 4)
    ]
    assert {point.compute_units for point in found.profile.points} == {1}
    assert all(point.p99_ns >= point.p50_ns > 0 for point in found.profile.points)
    assert all(point.activation_bytes > 0 for point in found.profile.points)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"compute_units": 0}, "compute_units: must be 1 to"),
        ({"compute_units": 100_000}, "and is 100000"),
        ({"path": "/nowhere.onnx"}, "nowhere.onnx"),
        ({"limit_s": 0.01}, "not measured within 0.01 s"),
    ],
)
def test_what_cannot_be_measured_is_told_why(tmp_path: Path, change: dict[str, object], says: str) -> None:
    task = Task(str(relu(tmp_path / "a.onnx")), "onnx", "sha256:a", 1)
    found = measured(msgspec.structs.replace(task, **change))
    assert found.profile is None
    assert says in found.problem


def test_a_refused_artefact_is_told_in_the_workers_words(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    model = onnx.load(relu(path))
    model.graph.node[0].domain = "nobodys"
    path.write_bytes(model.SerializeToString())
    found = measured(Task(str(path), "onnx", "sha256:a", 1))
    assert found.profile is None
    assert "nobodys" in found.problem
