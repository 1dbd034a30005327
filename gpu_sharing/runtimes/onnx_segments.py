"""An ONNX model as segments: onnxruntime optimises the whole graph, each part of the result is a session of its own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime

from gpu_sharing.runtimes.cutting import MAX_SEGMENTS, cut_points, points_of
from gpu_sharing.runtimes.onnx_graph import Graph, Part, Uncuttable, with_named_nodes
from gpu_sharing.units import US, Bytes, Nanoseconds

MEASURED_RUNS = 5
"""Of which the shortest counts: what a node costs when nothing else disturbs it."""

MAX_THREADS = 64
"""Each session has threads of its own, apart from the lane's. A model gets no more segments than this many allow."""

Options = Callable[[], Any]
"""Makes session options for the lane's threads."""


@dataclass(frozen=True)
class OnnxSegment:
    """One part of a graph, and the session that runs it; see `Part`."""

    name: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    drops: frozenset[str]
    session: Any

    def run(self, values: dict[str, np.ndarray], options: Any) -> None:
        """Runs over the values alive, which it updates."""
        # onnxruntime's own values would save nothing: arrays go in and come out without a copy, and faster.
        given = self.session.run(self.gives, {name: values[name] for name in self.takes}, options)
        for name in self.drops:
            del values[name]
        values.update(zip(self.gives, given, strict=True))


class Cut(NamedTuple):
    """A model in segments. weight_bytes: of all of them, a weight that two segments need counted for each."""

    segments: tuple[OnnxSegment, ...]
    weight_bytes: Bytes


class Costs(NamedTuple):
    """What a run of one row showed, by node: its time, and the bytes of its outputs."""

    took: dict[str, Nanoseconds]
    output_bytes: dict[str, Bytes]


class Draft:
    """A model whose whole graph is ready to run, and which can still be taken apart.

    session: of the whole graph, as onnxruntime optimised it. Cutting comes after that: fused operators stay whole, and the
    parts run the very kernels that the whole runs.
    """

    def __init__(self, data: bytes, options: Options, *, measures: bool) -> None:
        """measures: whether `costs` will be asked for. Whatever onnxruntime raises, where it cannot load the model."""
        self._folder = tempfile.TemporaryDirectory(prefix="apportion-")
        self._options = options
        self._measures = measures
        given = options()
        given.optimized_model_filepath = str(self._dump)
        if measures:
            given.enable_profiling = True
            given.profile_file_prefix = str(Path(self._folder.name) / "nodes")
            data = with_named_nodes(data)
        self.session: Any = open_session(data, given)

    @property
    def _dump(self) -> Path:
        return Path(self._folder.name) / "optimised.onnx"

    def graph(self) -> Graph:
        """The optimised graph. Raises Uncuttable where it cannot be read or taken apart."""
        try:
            return Graph(onnx.load(self._dump, load_external_data=False))
        except Uncuttable:
            raise
        except Exception as broken:  # too large for protocol buffers, or never written
            raise Uncuttable(f"the optimised graph cannot be read: {broken}") from broken

    def costs(self) -> Costs:
        """The least that each node took in the last MEASURED_RUNS runs of the session. Ends the measuring: once."""
        self._measures = False
        took: dict[str, Nanoseconds] = {}
        output_bytes: dict[str, Bytes] = {}
        for name, event in _last_runs(json.loads(Path(self.session.end_profiling()).read_text())):
            took[name] = min(int(event["dur"]) * US, took.get(name, int(event["dur"]) * US))
            output_bytes[name] = int(event["args"].get("output_size", 0))
        return Costs(took, output_bytes)

    def close(self) -> None:
        """Lets go of the whole session and of what was written."""
        if self._measures:
            self.session.end_profiling()
        self.session = None
        self._folder.cleanup()


def points_by_cost(graph: Graph, costs: Costs, *, threads: int) -> tuple[int, ...]:
    """Where to cut the graph into segments of about one quantum; () where it stays whole."""
    most = max(2, min(MAX_SEGMENTS, MAX_THREADS // max(threads - 1, 1)))
    took = [costs.took.get(node.name, 0) for node in graph.nodes]
    return cut_points(took, graph.alive(), most=most)


def points_by_name(graph: Graph, names: Sequence[str]) -> tuple[int, ...]:
    """Where segments of these names begin; () where they are not of this graph."""
    return points_of(names, graph.names) or ()


def build(graph: Graph, points: Sequence[int], options: Options) -> Cut:
    """A session for each part of the graph. Raises Uncuttable."""
    types: dict[str, Any] = {name: spec.type for name, spec in graph.inputs.items()}
    segments = []
    weight_bytes = 0
    for part in graph.parts(points):
        segments.append(_segment(graph, part, types, options))
        weight_bytes += sum(graph.weights[name].ByteSize() for name in part.weights)
    return Cut(tuple(segments), weight_bytes)


def open_session(data: bytes, options: Any) -> Any:
    """A session on the processor."""
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _last_runs(events: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What the profiler noted of each node, by its name, in the last runs."""
    runs = [int(event["ts"]) for event in events if event.get("name") == "model_run"]
    since = sorted(runs)[-MEASURED_RUNS:]
    for event in events:
        name, kernel, _ = event.get("name", "").rpartition("_kernel_time")
        if kernel and since and int(event["ts"]) >= since[0]:
            yield name, event


def _segment(graph: Graph, part: Part, types: dict[str, Any], options: Options) -> OnnxSegment:
    missing = [name for name in part.takes if name not in types]
    if missing:
        raise Uncuttable(f"the value {missing[0]!r} that crosses a boundary is not a tensor of numbers")
    given = options()
    given.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # A pool of its own for each segment would keep the peak of each, although they run one after the other.
    given.enable_cpu_mem_arena = False
    try:
        session = open_session(graph.model_of(part, types), given)
    except Exception as broken:  # onnxruntime has no common base for its errors
        raise Uncuttable(f"{part.name}: {str(broken)[:300]}") from broken
    for output in session.get_outputs():
        kind = onnx_type(output.type, output.shape)
        if kind is not None:
            types[output.name] = kind
    return OnnxSegment(part.name, part.takes, part.gives, part.drops, session)


def onnx_type(text: str, shape: Sequence[int | str | None]) -> Any:
    """What onnxruntime calls a type, "tensor(float)" and a shape, as ONNX writes it; None for what arrays cannot carry."""
    element = _ELEMENTS.get(text.removeprefix("tensor(").removesuffix(")")) if text.startswith("tensor(") else None
    if element is None:
        return None
    extents = [extent if isinstance(extent, int) and extent >= 0 else None for extent in shape]
    return onnx.helper.make_tensor_type_proto(element, extents)


_ELEMENTS = {
    "bool": onnx.TensorProto.BOOL,
    "int8": onnx.TensorProto.INT8,
    "int16": onnx.TensorProto.INT16,
    "int32": onnx.TensorProto.INT32,
    "int64": onnx.TensorProto.INT64,
    "uint8": onnx.TensorProto.UINT8,
    "uint16": onnx.TensorProto.UINT16,
    "uint32": onnx.TensorProto.UINT32,
    "uint64": onnx.TensorProto.UINT64,
    "float16": onnx.TensorProto.FLOAT16,
    "float": onnx.TensorProto.FLOAT,
    "double": onnx.TensorProto.DOUBLE,
}
