"""Finds the runtime for an artefact's format; torch and onnxruntime are imported only when asked for."""

from __future__ import annotations

from gpu_sharing.runtimes.base import ArtefactRefused, Runtime

RUNTIMES: tuple[str, ...] = ("onnx", "torch_export")
"""The formats that can be served."""


def runtime_for(name: str) -> Runtime:
    """The runtime of that name. Raises ArtefactRefused, naming the allowed ones, for any other."""
    if name == "onnx":
        from gpu_sharing.runtimes.onnx import OnnxRuntime

        return OnnxRuntime()
    if name == "torch_export":
        from gpu_sharing.runtimes.torch_export import TorchExportRuntime

        return TorchExportRuntime()
    raise ArtefactRefused(f"format: {name!r} is not one of {', '.join(RUNTIMES)}")
