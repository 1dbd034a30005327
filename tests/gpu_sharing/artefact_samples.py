"""Small models, and ways to spoil them, for the tests of runtimes and artefact checks."""

from __future__ import annotations

import functools
import json
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

WIDTH = 4
OUT = 3


def onnx_bytes(
    nodes: Sequence[Any],
    inputs: Sequence[tuple[str, int, Sequence[int | str | None]]],
    outputs: Sequence[tuple[str, int, Sequence[int | str | None]]],
    initializers: Sequence[Any] = (),
    opsets: Sequence[tuple[str, int]] = (("", 17),),
) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "sample",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        initializer=list(initializers),
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets]
    return helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString()


def linear_onnx(batch_in: str | None = "batch", batch_out: str | None = "batch") -> bytes:
    """y = relu(x @ w), x: [batch, 4], y: [batch, 3]."""
    weights = np.random.default_rng(7).standard_normal((WIDTH, OUT)).astype(np.float32)
    return onnx_bytes(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        [("x", TensorProto.FLOAT, [batch_in, WIDTH])],
        [("y", TensorProto.FLOAT, [batch_out, OUT])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )


@functools.cache
def linear_pt2() -> bytes:
    """The same shape of model, saved by torch.export: x: [batch ≤ 16, 4] -> {"y": [batch, 3]}."""
    import torch

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(7)
            self.layer = torch.nn.Linear(WIDTH, OUT)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": torch.relu(self.layer(x))}

    return exported(Linear(), (torch.ones(2, WIDTH),), {"x": {0: torch.export.Dim("batch", max=16)}})


def linear_python(*, yields: bool = False) -> bytes:
    """The same shape of model as an operator's code. yields: after the product."""
    boundary = "yield" if yields else "pass"
    return f"""
INPUTS = [{{"name": "x", "datatype": "FP32", "shape": ["batch", {WIDTH}]}}]
OUTPUTS = [{{"name": "y", "datatype": "FP32", "shape": ["batch", {OUT}]}}]


class Model:
    def __init__(self, place, files):
        chance = place.xp.random.default_rng(7)
        self.xp = place.xp
        self.weights = place.pool.empty(({WIDTH}, {OUT}), "float32")
        self.weights[...] = chance.standard_normal(({WIDTH}, {OUT}))

    def run(self, inputs):
        product = inputs["x"] @ self.weights
        {boundary}
        return {{"y": self.xp.maximum(product, 0)}}
""".encode()


def exported(module: Any, arguments: tuple[Any, ...], dynamic: Any = None) -> bytes:
    """What torch.export.save writes for the module."""
    import torch

    program = torch.export.export(module.eval(), arguments, dynamic_shapes=dynamic)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        torch.export.save(program, path)
        return path.read_bytes()


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def rezipped(data: bytes, target: Path, edit: Callable[[str, bytes], bytes | None], **extra: bytes) -> Path:
    """A copy of a zip with members changed by `edit` (None drops one) and `extra` ones added below the root."""
    source = written(target.parent, f"{target.name}.source", data)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].split("/")[0]
        for info in old.infolist():
            changed = edit(info.filename.removeprefix(f"{root}/"), old.read(info))
            if changed is not None:
                new.writestr(info.filename, changed)
        for name, content in extra.items():
            new.writestr(f"{root}/{name}", content)
    source.unlink()
    return target


def with_model_json(data: bytes, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a .pt2 whose model.json has been changed in place by `change`."""

    def edit(member: str, content: bytes) -> bytes:
        if member != "models/model.json":
            return content
        document = json.loads(content)
        change(document)
        return json.dumps(document).encode()

    return rezipped(data, target, edit)
