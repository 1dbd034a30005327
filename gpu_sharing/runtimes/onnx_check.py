"""Checks an ONNX file before onnxruntime sees it: it is one, is whole, points at no other file and calls no unknown code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from gpu_sharing.runtimes.base import ArtefactRefused
from gpu_sharing.units import Bytes, GiB

MAX_FILE_BYTES: Bytes = 2 * GiB - 1
"""Protocol buffers end here."""

MAX_NODES = 200_000
MAX_GRAPH_DEPTH = 16

DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"))
"""Whose operators onnxruntime brings along itself. Anything else would need a library that a tenant supplies."""

FORBIDDEN_OPERATORS = frozenset(("EPContext", "PyOp", "PythonOp", "PythonOpGrad", "ATen", "ExternalStream"))
"""Operators of com.microsoft that load a file or call back into Python."""


def read_checked(path: Path) -> bytes:
    """The file's bytes, checked. Raises ArtefactRefused naming the member at fault."""
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ArtefactRefused(f"{path.name}: {size} bytes; an ONNX file may have at most {MAX_FILE_BYTES}")
    data = path.read_bytes()
    check_bytes(data, path.name)
    return data


def check_bytes(data: bytes, name: str) -> None:
    """Raises ArtefactRefused unless `data` is one whole ONNX model that stands alone."""
    posing = _other_format(data)
    if posing:
        raise ArtefactRefused(f"{name}: this is {posing}, not an ONNX model")
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as broken:  # protobuf's DecodeError, or a RecursionError
        raise ArtefactRefused(f"{name}: not an ONNX model, or cut short: {broken}") from broken
    if not model.ir_version or not model.HasField("graph") or not model.graph.output:
        raise ArtefactRefused(f"{name}: not an ONNX model: it has no IR version or no graph")
    _check_parts(model)
    try:
        # Given the message, the checker would serialise it again.
        onnx.checker.check_model(data, full_check=False)
    except Exception as broken:  # the checker raises several kinds, some from its C++ side
        raise ArtefactRefused(f"{name}: {str(broken).strip().splitlines()[0][:400]}") from broken


def _other_format(data: bytes) -> str:
    if not data:
        return "an empty file"
    if data[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "a zip archive (torch.save and torch.export write those)"
    binary_pickle = data[:1] == b"\x80" and data[1:2] in b"\x02\x03\x04\x05"
    text_pickle = data[:1] in (b"c", b"(", b"]", b"}") and data.rstrip().endswith(b".")
    if binary_pickle or text_pickle:
        return "a Python pickle"
    if data[4:8] == b"ORTM":
        return "an onnxruntime ORT-format model"
    return ""


def _check_parts(model: Any) -> None:
    local = {(function.domain, function.name) for function in model.functions}
    bodies = [function.node for function in model.functions]
    nodes = 0
    for where, part in _walk(model.graph, bodies):
        if isinstance(part, onnx.TensorProto):
            _check_tensor(where, part)
        else:
            nodes += 1
            _check_node(where, part, local)
    if nodes > MAX_NODES:
        raise ArtefactRefused(f"graph: {nodes} nodes; at most {MAX_NODES} are allowed")


def _check_tensor(where: str, tensor: Any) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        keys = {entry.key: entry.value for entry in tensor.external_data}
        file = keys.get("location", "another file")
        raise ArtefactRefused(
            f"{where}: tensor {tensor.name!r} lies outside the model, in {file!r}; save the model with its data inside"
        )


def _check_node(where: str, node: Any, local: set[tuple[str, str]]) -> None:
    if (node.domain, node.op_type) in local:
        return
    if node.domain not in DOMAINS:
        raise ArtefactRefused(
            f"{where}: node {node.name!r}: operator {node.domain}.{node.op_type} is a custom one; "
            f"allowed domains: ai.onnx, ai.onnx.ml, com.microsoft"
        )
    if node.op_type in FORBIDDEN_OPERATORS and node.domain.startswith("com.microsoft"):
        raise ArtefactRefused(f"{where}: node {node.name!r}: operator {node.op_type} may load code or files")


def _walk(graph: Any, bodies: list[Any]) -> Iterator[tuple[str, Any]]:
    """Every node and every tensor of a model, wherever they hide, with the name of the place."""
    waiting: list[tuple[str, int, Any, Any]] = [("graph", 0, graph, graph.node)]
    waiting += [(f"function {index}", 0, None, nodes) for index, nodes in enumerate(bodies)]
    while waiting:
        where, depth, holder, nodes = waiting.pop()
        if depth > MAX_GRAPH_DEPTH:
            raise ArtefactRefused(f"{where}: graphs nested deeper than {MAX_GRAPH_DEPTH}")
        if holder is not None:
            yield from ((f"{where}.initializer", tensor) for tensor in holder.initializer)
            for sparse in holder.sparse_initializer:
                yield from ((f"{where}.sparse_initializer", tensor) for tensor in (sparse.values, sparse.indices))
        for node in nodes:
            yield where, node
            for attribute in node.attribute:
                at = f"{where}.{node.name or node.op_type}.{attribute.name}"
                yield from ((at, tensor) for tensor in _tensors(attribute))
                inner = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
                waiting += [(at, depth + 1, graph, graph.node) for graph in inner]


def _tensors(attribute: Any) -> Iterator[Any]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    sparse = [*attribute.sparse_tensors, *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else [])]
    for one in sparse:
        yield one.values
        yield one.indices
