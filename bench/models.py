"""Tiny ONNX models whose answers tell which question they belong to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper


def elementwise(path: Path, operator: str, kind: int = TensorProto.FLOAT) -> Path:
    """A model of one operator over `x` [batch, n] with output `y` of the same shape, written to `path`."""
    shape = ["batch", "n"]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"])],
        operator.lower(),
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def swelling(path: Path, times: int) -> Path:
    """A model whose output `y` is `x` [batch, n] so many times over in each row: small requests, large answers."""
    repeats = helper.make_tensor("repeats", TensorProto.INT64, [2], [1, times])
    graph = helper.make_graph(
        [helper.make_node("Tile", ["x", "repeats"], ["y"])],
        "swelling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "m"])],
        [repeats],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def perceptron(path: Path, width: int = 256, hidden: int = 1024, blocks: int = 16, seed: int = 0) -> Path:
    """`blocks` of Linear width → hidden → width with a residual, FP32, over `x` [batch, width]."""
    draw = np.random.default_rng(seed)
    nodes, weights, last = [], [], "x"
    for index in range(blocks):
        for name, shape in ((f"up{index}", (width, hidden)), (f"down{index}", (hidden, width))):
            values = (draw.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
            weights.append(onnx.numpy_helper.from_array(values, name))
        nodes += [
            helper.make_node("MatMul", [last, f"up{index}"], [f"a{index}"]),
            helper.make_node("Relu", [f"a{index}"], [f"b{index}"]),
            helper.make_node("MatMul", [f"b{index}", f"down{index}"], [f"c{index}"]),
            helper.make_node("Add", [last, f"c{index}"], [f"d{index}"]),
        ]
        last = f"d{index}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])]
    graph = helper.make_graph(nodes, "perceptron", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def exported_perceptron(path: Path, width: int = 256, hidden: int = 1024, blocks: int = 16, seed: int = 0) -> Path:
    """The same as a torch.export program of one row or more, which is cut into segments when it is loaded."""
    import torch

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = torch.nn.Linear(width, hidden), torch.nn.Linear(hidden, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(torch.relu(self.up(x)))

    torch.manual_seed(seed)
    module = torch.nn.Sequential(*(Block() for _ in range(blocks))).eval()
    batch = torch.export.Dim("batch", max=64)
    program = torch.export.export(module, (torch.zeros(2, width),), dynamic_shapes={"input": {0: batch}})
    torch.export.save(program, str(path))
    return path
