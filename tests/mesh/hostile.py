"""Artefacts that are broken, or would run code where they are loaded carelessly."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from tests.gpu_sharing.artefact_samples import linear_onnx, linear_pt2, onnx_bytes, rezipped, with_model_json
from tests.mesh.pushing import ONNX, PT2

X = ("x", TensorProto.FLOAT, ["batch", 4])
Y = ("y", TensorProto.FLOAT, ["batch", 4])
SAMPLE_INPUTS = "data/sample_inputs/model.pt"


class RunsCode:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self._marker}",)


@dataclass(frozen=True)
class Hostile:
    """One bad artefact. bytes_of: given a folder to work in, and the file that hostile code is to touch. says: what is wrong,
    with the member where there are members."""

    what: str
    format: Any
    bytes_of: Callable[[Path, Path], bytes]
    says: str


def saved(value: object) -> bytes:
    """What torch.save writes."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def with_hostile_inputs(folder: Path, marker: Path) -> bytes:
    """A program whose sample inputs are a pickle that runs code."""
    hostile = saved(((RunsCode(marker),), {}))
    edit = lambda member, data: hostile if member == SAMPLE_INPUTS else data
    return rezipped(linear_pt2(), folder / "inputs.pt2", edit).read_bytes()


def with_hostile_expression(folder: Path, marker: Path) -> bytes:
    """A program with code where the extent of an axis should be."""

    def change(document: dict[str, Any]) -> None:
        values = document["graph_module"]["graph"]["tensor_values"].values()
        size = next(size for meta in values for size in meta["sizes"] if "as_expr" in size)
        size["as_expr"]["expr_str"] = f"__import__('os').system('touch {marker}')"

    return with_model_json(linear_pt2(), folder / "expression.pt2", change).read_bytes()


def with_outside_data(_folder: Path, _marker: Path) -> bytes:
    """A model that wants its weights from another file of the machine that loads it."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [4, 4], bytes(64), raw=True)
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.append(onnx.StringStringEntryProto(key="location", value="/etc/passwd"))
    return onnx_bytes([helper.make_node("MatMul", ["x", "w"], ["y"])], [X], [Y], [weights])


def with_unknown_operator(_folder: Path, _marker: Path) -> bytes:
    """A model with an operator that nobody has."""
    return onnx_bytes([helper.make_node("Bogus", ["x"], ["y"])], [X], [Y])


HOSTILE = [
    Hostile("a model cut short", ONNX, lambda _f, _m: linear_onnx()[:-40], "not an ONNX model, or cut short"),
    Hostile("a program cut short", PT2, lambda _f, _m: linear_pt2()[:-100], "not a whole zip archive"),
    Hostile("nothing but an ONNX name", ONNX, lambda _f, _m: b"\x08", "not an ONNX model"),
    Hostile("a pickle posing as a program", PT2, lambda _f, m: pickle.dumps(RunsCode(m)), "this is a Python pickle"),
    Hostile("a pickle posing as a model", ONNX, lambda _f, m: pickle.dumps(RunsCode(m)), "not an ONNX model"),
    Hostile("a checkpoint posing as a program", PT2, lambda _f, m: saved(RunsCode(m)), "data.pkl"),
    Hostile("a program posing as a model", ONNX, lambda _f, _m: linear_pt2(), "not an ONNX model"),
    Hostile("sample inputs that run code", PT2, with_hostile_inputs, SAMPLE_INPUTS),
    Hostile("code in an expression", PT2, with_hostile_expression, "as_expr.expr_str"),
    Hostile("weights in a file outside", ONNX, with_outside_data, "tensor 'w' lies outside the model"),
    Hostile("an operator that nobody has", ONNX, with_unknown_operator, "Bogus"),
]
