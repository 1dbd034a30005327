"""ONNX models, run by onnxruntime on the processor."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from msgspec.structs import replace

from gpu_sharing.runtimes.base import ArtefactRefused, Interrupted, LoadConfig, LoadedModel, Run, Tensors
from gpu_sharing.runtimes.onnx_check import read_checked
from gpu_sharing.runtimes.onnx_graph import Graph, Uncuttable
from gpu_sharing.runtimes.onnx_segments import (
    MEASURED_RUNS,
    Draft,
    OnnxSegment,
    build,
    open_session,
    points_by_cost,
    points_by_name,
)
from gpu_sharing.runtimes.signature import infer
from gpu_sharing.runtimes.verification import verified
from gpu_sharing.runtimes.warmup import EXTENTS_TRIED, Ranges, finish, made_up
from gpu_sharing.tensors import Signature, TensorSpec
from gpu_sharing.units import Bytes

DATATYPES: dict[str, str] = {
    "tensor(bool)": "BOOL",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
"""onnxruntime's type names. bfloat16 is missing on purpose: its Python interface cannot be fed any."""

WHOLE = "graph"
"""The segment of a model that is not cut."""

LOG_ERRORS_ONLY = 3
LOG_FATAL_ONLY = 4


class OnnxRuntime:
    """The runtime "onnx"."""

    name = "onnx"
    starts_threads = True

    def __init__(self) -> None:
        self._opening: OnnxModel | None = None

    def check(self, path: Path) -> None:
        """Raises ArtefactRefused unless the file is a whole ONNX model without external data or custom operators."""
        read_checked(path)

    def load(self, path: Path, config: LoadConfig) -> LoadedModel:
        """Opens a session, tries its batch axes, and cuts it. Raises ArtefactRefused where it cannot be served."""
        # The bytes that were checked are the bytes that are loaded, whatever happens to the file in between.
        data = read_checked(path)
        draft = _draft(data, config)
        session = draft.session if draft is not None else _session(path, data, config)
        # Known from here on, so that a first run that does not end can be interrupted.
        model = self._opening = OnnxModel(session, config, weight_bytes=len(data))
        try:
            model.settle(config)
            if draft is not None:
                model.cut(draft, data, config)
        finally:
            self._opening = None
            if draft is not None:
                draft.close()
        if len(config.segments or ()) > 1 and model.segments != config.segments:
            # Another onnxruntime optimises otherwise: what was measured then is of no use now.
            model.close()
            return self.load(path, replace(config, segments=None))
        return model

    def interrupt(self) -> None:
        """Ends what a load runs now."""
        model = self._opening
        if model is not None:
            model.interrupt()


def _draft(data: bytes, config: LoadConfig) -> Draft | None:
    """A model that can be cut; None where it is known to stay whole, or its optimised graph cannot be written down."""
    if config.segments is not None and len(config.segments) < 2:
        return None
    try:
        return Draft(data, lambda: session_options(config), measures=config.segments is None)
    except Exception:  # if it is the model's fault, opening it plainly will say so
        return None


def _session(path: Path, data: bytes, config: LoadConfig) -> Any:
    try:
        return open_session(data, session_options(config))
    except Exception as broken:  # onnxruntime has no common base for its errors
        raise ArtefactRefused(f"{path.name}: onnxruntime cannot load it: {str(broken)[:400]}") from broken


class OnnxModel:
    """An ONNX graph, whole or cut into segments of about one quantum.

    unbatched_because: why requests run one at a time, where the artefact would have allowed batches; else "".
    """

    segments: tuple[str, ...] = (WHOLE,)

    def __init__(self, session: Any, config: LoadConfig, *, weight_bytes: Bytes) -> None:
        self._session: Any = session
        self._parts: tuple[OnnxSegment, ...] = ()
        self._weighed: tuple[Bytes, Bytes] | None = None
        self._running: Any = None
        self._ran = False
        self.weight_bytes = weight_bytes
        self.ranges: Ranges = {}
        self.preferred_extent, self.unbatched_because = EXTENTS_TRIED[0], ""
        self._inputs = [_spec(tensor) for tensor in session.get_inputs()]
        self._outputs = [_spec(tensor) for tensor in session.get_outputs()]
        self._strings = {spec.name for spec in self._inputs if spec.datatype == "BYTES"}
        self.signature: Signature = self._inferred(config)

    def settle(self, config: LoadConfig) -> None:
        """Tries the batch axes. Raises ArtefactRefused where it cannot be served."""
        found = verified(self._inferred(config), self._execute, config, self.ranges)
        self.signature, self._ran = found.signature, found.ran
        self.preferred_extent, self.unbatched_because = found.extent, found.unbatched_because

    def again(self, config: LoadConfig) -> LoadedModel:
        """The same sessions for another replica."""
        other = copy.copy(self)
        other._running = None
        other.settle(config)
        return other

    def interrupt(self) -> None:
        """onnxruntime looks at this before each node, also of loops' bodies; a node that has begun still ends."""
        options = self._running
        if options is not None:
            options.terminate = True

    def cut(self, draft: Draft, data: bytes, config: LoadConfig) -> None:
        """Takes the graph apart if it is long, and if the parts compute to the bit what the whole does.

        data: the model, should the whole be needed again after it has made room for the parts.
        """
        if not self._ran:
            return
        inputs = made_up(self.signature, 1, warmup=config.warmup, extent=self.preferred_extent)
        expected = self._execute(inputs)
        try:
            graph = draft.graph()
            points = self._points(graph, draft, inputs, config)
            if not points:
                return
            self._session = None
            draft.close()
            parts = build(graph, points, lambda: session_options(config))
            self._parts, self.segments = parts.segments, tuple(part.name for part in parts.segments)
            if _same_bits(expected, self._execute(inputs)):
                self.weight_bytes = parts.weight_bytes
                return
        except Uncuttable:
            pass
        self._parts, self.segments = (), (WHOLE,)
        if self._session is None:
            self._session = open_session(data, session_options(config))

    def run(self, inputs: Tensors) -> Run:
        """One segment at each `next`."""
        values = {name: _decoded(name, value) if name in self._strings else value for name, value in inputs.items()}
        parts, session, names = self._parts, self._session, [spec.name for spec in self._outputs]
        if session is None and not parts:
            raise RuntimeError("the model has been closed")
        options = _run_options()
        if session is not None:
            with self._interruptible(options):
                values = dict(zip(names, session.run(names, values, options), strict=True))
        for index, part in enumerate(parts):
            with self._interruptible(options):
                part.run(values, options)
            if index + 1 < len(parts):
                yield
        return {name: _encoded(np.asarray(values[name])) for name in names}

    @contextlib.contextmanager
    def _interruptible(self, options: Any) -> Iterator[None]:
        self._running = options
        try:
            yield
        except Exception as broken:
            if options.terminate:
                raise Interrupted("stopped, since it did not return in time") from broken
            raise
        finally:
            self._running = None

    def activation_bytes(self, inputs: Tensors) -> Bytes:
        """By the bytes of the inputs, in proportion to the run that was measured; 0 where none was."""
        if self._weighed is None:
            return 0
        measured_bytes, peak_bytes = self._weighed
        return -(-peak_bytes * _bytes_of(inputs) // max(measured_bytes, 1))

    def close(self) -> None:
        """Lets go of its sessions; a run in flight still ends."""
        self._session, self._parts = None, ()

    def _execute(self, inputs: Tensors) -> dict[str, np.ndarray]:
        return finish(self.run(inputs))

    def _points(self, graph: Graph, draft: Draft, inputs: Tensors, config: LoadConfig) -> tuple[int, ...]:
        if config.segments is not None:
            return points_by_name(graph, config.segments)
        for _ in range(MEASURED_RUNS):
            self._execute(inputs)
        costs = draft.costs()
        self._weighed = (_bytes_of(inputs), graph.peak_bytes(costs.output_bytes))
        return points_by_cost(graph, costs, threads=config.threads)

    def _inferred(self, config: LoadConfig) -> Signature:
        return infer(self._inputs, self._outputs, batch_axes=config.batch_axes, max_rows=config.max_batch_size)


def _run_options() -> Any:
    options = onnxruntime.RunOptions()
    # A failing run raises; a line on stderr for each would let a tenant flood the log.
    options.log_severity_level = LOG_FATAL_ONLY
    return options


def _bytes_of(tensors: Tensors) -> Bytes:
    return sum(value.nbytes for value in tensors.values())


def _same_bits(one: Tensors, other: Tensors) -> bool:
    return all(
        value.shape == other[name].shape
        and (
            value.tolist() == other[name].tolist()
            if value.dtype == object
            else value.tobytes() == other[name].tobytes()
        )
        for name, value in one.items()
    )


def session_options(config: LoadConfig) -> Any:
    """How sessions are opened."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = config.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = LOG_ERRORS_ONLY
    # Weights in the pool of activations would make it grow by powers of two, far beyond them.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    # A pool that spins between runs takes the cores of other tenants' lanes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _spec(tensor: Any) -> TensorSpec:
    if tensor.type not in DATATYPES:
        hint = "; export classifiers with zipmap=False" if tensor.type.startswith(("seq", "map")) else ""
        raise ArtefactRefused(f"tensor {tensor.name!r}: type {tensor.type} cannot be served{hint}")
    shape = tuple(extent if isinstance(extent, int) and extent >= 0 else None for extent in tensor.shape)
    symbols = tuple(extent if isinstance(extent, str) else "" for extent in tensor.shape)
    return TensorSpec(name=tensor.name, datatype=DATATYPES[tensor.type], shape=shape, symbols=symbols)


def _decoded(name: str, value: np.ndarray) -> np.ndarray:
    texts = np.empty(value.size, dtype=object)
    for index, element in enumerate(value.ravel()):
        try:
            texts[index] = element.decode() if isinstance(element, bytes) else str(element)
        except UnicodeDecodeError as wrong:
            raise ValueError(f"input {name!r}: element {index} is not UTF-8: {wrong.reason}") from wrong
    return texts.reshape(value.shape)


def _encoded(value: np.ndarray) -> np.ndarray:
    if value.dtype.kind not in "OUS":
        return value
    raw = np.empty(value.size, dtype=object)
    raw[:] = [element.encode() if isinstance(element, str) else element for element in value.ravel()]
    return raw.reshape(value.shape)
