"""Hostile and broken ONNX files: each is refused by name."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from artefact_samples import linear_onnx, onnx_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from gpu_sharing.runtimes.base import ArtefactRefused
from gpu_sharing.runtimes.onnx_check import check_bytes

X = ("x", TensorProto.FLOAT, ["batch", 4])
Y = ("y", TensorProto.FLOAT, ["batch", 4])


def refused(data: bytes, message: str) -> None:
    with pytest.raises(ArtefactRefused, match=message):
        check_bytes(data, "m.onnx")


def external(name: str = "w") -> Any:
    tensor = onnx.numpy_helper.from_array(np.ones(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def test_a_pickle_posing_as_a_model_is_called_a_pickle() -> None:
    for protocol in range(6):
        refused(pickle.dumps({"a": [1]}, protocol=protocol), "this is a Python pickle, not an ONNX model")


def test_a_checkpoint_posing_as_a_model_is_called_a_zip(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    refused((tmp_path / "a.pt").read_bytes(), "this is a zip archive")


def test_an_initialiser_that_lies_in_another_file_is_refused() -> None:
    add = helper.make_node("Add", ["x", "w"], ["y"])
    refused(onnx_bytes([add], [X], [Y], [external()]), r"graph\.initializer: tensor 'w' lies outside.*/etc/passwd")


def test_an_attribute_that_lies_in_another_file_is_refused() -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], value=external("c"), name="const"),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    refused(onnx_bytes(nodes, [X], [Y]), r"graph\.const\.value: tensor 'c' lies outside")


def test_a_tensor_deep_in_a_branch_that_lies_in_another_file_is_refused() -> None:
    body = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=external("c")), helper.make_node("Add", ["x", "c"], ["r"])],
        "branch",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
    )
    condition = helper.make_tensor_value_info("p", TensorProto.BOOL, [])
    node = helper.make_node("If", ["p"], ["y"], name="if", then_branch=body, else_branch=body)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info(*X), condition], [helper.make_tensor_value_info(*Y)]
    )
    refused(
        helper.make_model(graph).SerializeToString(), "then_branch.*tensor 'c' lies outside|else_branch.*tensor 'c'"
    )


def test_a_sparse_initialiser_that_lies_in_another_file_is_refused() -> None:
    model = onnx.ModelProto.FromString(linear_onnx())
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(external("s"))
    refused(model.SerializeToString(), r"graph\.sparse_initializer: tensor 's' lies outside")


def test_a_custom_operator_is_refused() -> None:
    node = helper.make_node("Run", ["x"], ["y"], domain="evil.ops", name="n")
    refused(
        onnx_bytes([node], [X], [Y], opsets=[("", 17), ("evil.ops", 1)]),
        r"node 'n': operator evil\.ops\.Run is a custom one",
    )


def test_a_function_that_the_model_itself_defines_is_no_custom_operator() -> None:
    model = onnx.ModelProto.FromString(
        onnx_bytes([helper.make_node("Twice", ["x"], ["y"], domain="mine")], [X], [Y], opsets=[("", 17), ("mine", 1)])
    )
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(helper.make_function("mine", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    check_bytes(model.SerializeToString(), "m.onnx")


def test_a_custom_operator_inside_a_function_is_refused() -> None:
    model = onnx.ModelProto.FromString(
        onnx_bytes([helper.make_node("F", ["x"], ["y"], domain="mine")], [X], [Y], opsets=[("", 17), ("mine", 1)])
    )
    body = [helper.make_node("Run", ["a"], ["b"], domain="evil.ops")]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("evil.ops", 1)]
    model.functions.append(helper.make_function("mine", "F", ["a"], ["b"], body, imports))
    refused(model.SerializeToString(), r"evil\.ops\.Run is a custom one")


def test_an_operator_that_loads_a_compiled_file_is_refused() -> None:
    node = helper.make_node(
        "EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="/tmp/evil.so", embed_mode=0
    )
    refused(onnx_bytes([node], [X], [Y], opsets=[("", 17), ("com.microsoft", 1)]), "EPContext may load code or files")


def test_a_graph_that_does_not_hang_together_is_refused() -> None:
    refused(onnx_bytes([helper.make_node("Relu", ["nowhere"], ["y"])], [X], [Y]), r"m\.onnx: ")


@pytest.mark.parametrize("data", [b"", b"\x00" * 64, b"hello world", b"\x08\x07", b"<html></html>"])
def test_garbage_is_refused(data: bytes) -> None:
    refused(data, r"m\.onnx: ")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_file_with_flipped_bits_is_refused_or_sound_but_never_breaks_the_check(data: st.DataObject) -> None:
    broken = bytearray(linear_onnx())
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(ArtefactRefused):
        check_bytes(bytes(broken), "m.onnx")
