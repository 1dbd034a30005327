from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from worker_models import doubling

from gpu_sharing.runtimes.base import ArtefactRefused, LoadConfig
from gpu_sharing.runtimes.onnx_cuda import CUDA, OnnxCudaRuntime, provider_options
from gpu_sharing.runtimes.warmup import finish
from gpu_sharing.worker.cuda_seats import runtime_on_cuda

CONFIG = LoadConfig(threads=1, compute_units=1)


def test_the_provider_gets_the_lanes_stream_and_a_limit_as_text() -> None:
    options = provider_options(0x7F12, 1 << 30, ordinal=2)
    assert options["user_compute_stream"] == str(0x7F12)
    assert (options["gpu_mem_limit"], options["device_id"]) == (str(1 << 30), "2")
    assert all(isinstance(value, str) for value in options.values())


def test_the_default_stream_and_no_memory_are_refused() -> None:
    with pytest.raises(ValueError, match="stream: 0 is the default stream"):
        provider_options(0, 1)
    with pytest.raises(ValueError, match="limit_bytes: must be positive"):
        provider_options(1, 0)


def runtime() -> OnnxCudaRuntime:
    return OnnxCudaRuntime(1, 1 << 30)


def test_an_onnxruntime_without_cuda_is_told_before_anything_is_opened(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ArtefactRefused, match="is built without CUDA \\(onnxruntime-gpu has it\\)"):
        runtime().load(doubling(tmp_path / "m.onnx"), CONFIG)


class Session:
    """onnxruntime's, on the processor, with what it was opened with."""

    falls_back = False

    def __init__(self, data: bytes, options: Any, providers: list[Any]) -> None:
        self.given = providers
        self.real = REAL(data, options, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"] if self.falls_back else [CUDA, "CPUExecutionProvider"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


REAL = onnxruntime.InferenceSession


def test_a_model_runs_whole_on_the_provider(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    model = runtime().load(doubling(tmp_path / "m.onnx"), CONFIG)
    assert model.segments == ("graph",)
    x = np.ones((2, 4), np.float32)
    assert (finish(model.run({"x": x}))["y"] == 2).all()
    assert model._session.given[0][0] == CUDA
    options = model._session.given[0][1]
    assert (options["user_compute_stream"], options["gpu_mem_limit"]) == ("1", str(1 << 30))


def test_a_model_may_take_what_is_reserved_for_it_and_no_more(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    config = LoadConfig(threads=1, compute_units=1, memory_bytes=300 << 20)
    model = runtime().load(doubling(tmp_path / "m.onnx"), config)
    assert model._session.given[0][1]["gpu_mem_limit"] == str(300 << 20)


def test_a_provider_that_did_not_start_is_not_passed_off_as_one(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(Session, "falls_back", True)
    with pytest.raises(ArtefactRefused, match="could not start its CUDA provider"):
        runtime().load(doubling(tmp_path / "m.onnx"), CONFIG)


def test_formats_that_are_not_there_are_named() -> None:
    with pytest.raises(ArtefactRefused, match="'savedmodel' is not one of onnx, torch_export"):
        runtime_on_cuda("savedmodel", None, 1, 1)  # type: ignore[arg-type]
    assert isinstance(runtime_on_cuda("onnx", None, 1, 1), OnnxCudaRuntime)  # type: ignore[arg-type]
