"""Finds the runtime for an artefact's format; torch and onnxruntime are imported only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from gpu_sharing.runtimes.base import ArtefactRefused, Runtime

if TYPE_CHECKING:
    from gpu_sharing.runtimes.python_place import Place

RUNTIMES: tuple[str, ...] = ("onnx", "torch_export", "python")
"""The formats that can be served; "python" for approved artefacts alone."""


def runtime_for(name: str, *, approved: Collection[str] = (), place_for: Callable[..., Place] | None = None) -> Runtime:
    """The runtime of that name. Raises ArtefactRefused, naming the allowed ones, for any other.

    approved: digests of Python code that may run. place_for: where that computes; None: on the processor.
    """
    if name == "onnx":
        from gpu_sharing.runtimes.onnx import OnnxRuntime

        return OnnxRuntime()
    if name == "torch_export":
        from gpu_sharing.runtimes.torch_export import TorchExportRuntime

        return TorchExportRuntime()
    if name == "python":
        from gpu_sharing.runtimes.python_code import PythonRuntime

        return PythonRuntime(approved) if place_for is None else PythonRuntime(approved, place_for)
    raise ArtefactRefused(f"format: {name!r} is not one of {', '.join(RUNTIMES)}")
