"""ONNX models on one lane of a GPU, by onnxruntime's CUDA provider on the lane's own stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime

from gpu_sharing.runtimes.base import ArtefactRefused, LoadConfig, LoadedModel
from gpu_sharing.runtimes.onnx import OnnxModel, OnnxRuntime, session_options
from gpu_sharing.runtimes.onnx_check import read_checked
from gpu_sharing.units import Bytes

CUDA = "CUDAExecutionProvider"


def provider_options(stream: int, limit_bytes: Bytes, *, ordinal: int = 0) -> dict[str, str]:
    """Of the CUDA provider: everything on the lane's stream, no more memory than this, growing by what is asked for.

    stream: its address. ValueError for the default stream, whose kernels would run on every SM, and for no memory.
    """
    if stream == 0:
        raise ValueError("stream: 0 is the default stream; a lane has one of its own")
    if limit_bytes <= 0:
        raise ValueError(f"limit_bytes: must be positive, is {limit_bytes}")
    return {
        "device_id": str(ordinal),
        "user_compute_stream": str(stream),
        "gpu_mem_limit": str(limit_bytes),
        # By powers of two a pool would take up to twice what a tenant needs.
        "arena_extend_strategy": "kSameAsRequested",
        # Searching tries every kernel at the first run of each shape, beside everybody else's work.
        "cudnn_conv_algo_search": "HEURISTIC",
        "do_copy_in_default_stream": "1",
        "use_tf32": "0",
    }


class OnnxCudaRuntime(OnnxRuntime):
    """The runtime "onnx" on a lane. A model stays whole: each run is one segment, and is over when it returns.

    A model's provider takes no more memory than is reserved for the model. Replicas of one artefact share one session, and run one
    after another: its limit is the first one's.
    """

    starts_threads = False

    def __init__(self, stream: int, limit_bytes: Bytes, *, ordinal: int = 0) -> None:
        """stream: see `provider_options`. limit_bytes: where a load says nothing of what is reserved for it."""
        super().__init__()
        self._stream, self._limit_bytes, self._ordinal = stream, limit_bytes, ordinal

    def load(self, path: Path, config: LoadConfig) -> LoadedModel:
        """Opens a session and tries its batch axes. Raises ArtefactRefused where it cannot be served."""
        if CUDA not in onnxruntime.get_available_providers():
            raise ArtefactRefused(
                f"format: onnx is not served on this device: onnxruntime {onnxruntime.__version__} is built without CUDA "
                "(onnxruntime-gpu has it)"
            )
        data = read_checked(path)
        model = self._opening = OnnxModel(self._session(path, data, config), config, weight_bytes=len(data))
        try:
            model.settle(config)
        finally:
            self._opening = None
        return model

    def _session(self, path: Path, data: bytes, config: LoadConfig) -> Any:
        limit_bytes = self._limit_bytes if config.memory_bytes is None else config.memory_bytes
        options = provider_options(self._stream, limit_bytes, ordinal=self._ordinal)
        providers = [(CUDA, options), "CPUExecutionProvider"]
        try:
            session = onnxruntime.InferenceSession(data, session_options(config), providers=providers)
        except Exception as broken:  # onnxruntime has no common base for its errors
            raise ArtefactRefused(f"{path.name}: onnxruntime cannot load it: {str(broken)[:400]}") from broken
        if CUDA not in session.get_providers():
            # Without the provider's libraries onnxruntime goes on without it, and says so on stderr alone.
            raise ArtefactRefused(
                f"{path.name}: onnxruntime could not start its CUDA provider, and would use the processor"
            )
        return session
