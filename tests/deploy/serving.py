"""A tenant, a model and a few requests: what shows that a mesh serves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import grpc
import numpy as np

from services._proto.inference import grpc_service_pb2 as pb
from services._proto.inference import grpc_service_pb2_grpc as stubs
from tests.mesh.tiny import echo

MODEL, TENANT = "echo", "search"


def apportion(environment: Mapping[str, str], folder: Path, *arguments: str) -> str:
    """Runs the command line against a mesh; its output."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("APPORTION_")}
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments, "--data", str(folder)],
        env={**own, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"
    return done.stdout


def served(
    environment: Mapping[str, str],
    frontend: str,
    folder: Path,
    requests: int = 20,
    open_channel: Callable[[str], grpc.Channel] = grpc.insecure_channel,
) -> str:
    """Creates the tenant, pushes the model, asks it; the tenant's key. environment: where registry and scheduler are."""
    made = apportion(environment, folder, "tenant", "create", TENANT, "--reserve", "0.25", "--json")
    key: str = json.loads(made)["api_key"]
    model = echo(folder / "echo.onnx", "float32")
    apportion(environment, folder, "model", "push", MODEL, str(model), "--tenant", TENANT, "--slo-ms", "500")
    ask(frontend, key, requests, open_channel)
    return key


def ask(
    frontend: str, key: str, requests: int = 20, open_channel: Callable[[str], grpc.Channel] = grpc.insecure_channel
) -> None:
    """Asks the model and looks at its answers."""
    given = np.arange(8, dtype=np.float32).reshape(1, 8)
    request = pb.ModelInferRequest(model_name=MODEL, raw_input_contents=[given.tobytes()])
    request.inputs.add(name="in_float32", datatype="FP32", shape=[1, 8])
    with open_channel(frontend) as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        for _ in range(requests):
            answer = stub.ModelInfer(request, timeout=10, metadata=(("authorization", f"Bearer {key}"),))
            assert answer.raw_output_contents == [given.tobytes()]
