"""ONNX models, run by onnxruntime on the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from gpu_sharing.runtimes.base import ArtefactRefused, LoadConfig, LoadedModel, Run, Tensors
from gpu_sharing.runtimes.onnx_check import read_checked
from gpu_sharing.runtimes.signature import infer
from gpu_sharing.runtimes.verification import verified
from gpu_sharing.runtimes.warmup import Ranges
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

LOG_ERRORS_ONLY = 3
LOG_FATAL_ONLY = 4


class OnnxRuntime:
    """The runtime "onnx"."""

    name = "onnx"

    def check(self, path: Path) -> None:
        """Raises ArtefactRefused unless the file is a whole ONNX model without external data or custom operators."""
        read_checked(path)

    def load(self, path: Path, config: LoadConfig) -> LoadedModel:
        """Opens a session and tries its batch axes. Raises ArtefactRefused where onnxruntime or the signature cannot serve it."""
        # The bytes that were checked are the bytes that are loaded, whatever happens to the file in between.
        data = read_checked(path)
        try:
            session = onnxruntime.InferenceSession(data, _options(config), providers=["CPUExecutionProvider"])
        except Exception as broken:  # onnxruntime has no common base for its errors
            raise ArtefactRefused(f"{path.name}: onnxruntime cannot load it: {str(broken)[:400]}") from broken
        return OnnxModel(session, config, weight_bytes=len(data))


class OnnxModel:
    """A session, run as one segment.

    unbatched_because: why requests run one at a time, where the artefact would have allowed batches; else "".
    """

    segments: tuple[str, ...] = ("graph",)

    def __init__(self, session: Any, config: LoadConfig, *, weight_bytes: Bytes) -> None:
        self._session: Any = session
        self.weight_bytes = weight_bytes
        self.ranges: Ranges = {}
        self.signature: Signature = infer(
            [_spec(tensor) for tensor in session.get_inputs()],
            [_spec(tensor) for tensor in session.get_outputs()],
            batch_axes=config.batch_axes,
            max_rows=config.max_batch_size,
        )
        # A failing run raises; a line on stderr for each would let a tenant flood the log.
        self._quiet = onnxruntime.RunOptions()
        self._quiet.log_severity_level = LOG_FATAL_ONLY
        self._strings = {spec.name for spec in self.signature.inputs if spec.datatype == "BYTES"}
        found = verified(self.signature, self._execute, config, self.ranges)
        self.signature = found.signature
        self.preferred_extent, self.unbatched_because = found.extent, found.unbatched_because

    def run(self, inputs: Tensors) -> Run:
        """One segment: the whole graph, without a boundary inside."""
        yield from ()
        return self._execute(inputs)

    def close(self) -> None:
        """Lets go of the session."""
        self._session = None

    def _execute(self, inputs: Tensors) -> dict[str, np.ndarray]:
        if self._session is None:
            raise RuntimeError("the model has been closed")
        feeds = {name: _decoded(name, value) if name in self._strings else value for name, value in inputs.items()}
        names = [spec.name for spec in self.signature.outputs]
        values = self._session.run(names, feeds, self._quiet)
        return {name: _encoded(np.asarray(value)) for name, value in zip(names, values, strict=True)}


def _options(config: LoadConfig) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = config.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = LOG_ERRORS_ONLY
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
