"""Models unloaded and loaded again, by clients and by the command, while processes die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from services._proto.inference import grpc_service_pb2 as pb
from tests.gpu_sharing.artefact_samples import linear_onnx
from tests.mesh.calling import Caller
from tests.mesh.running import RunningMesh

TENANT = "loading"
TRITON = Path(__file__).with_name("triton_loading.py")
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loading") / "linear.onnx"
    path.write_bytes(linear_onnx())
    return path


@pytest.fixture(scope="module")
def loading_mesh(mesh_of_two: RunningMesh, artefact: Path) -> RunningMesh:
    """With a tenant whose model is `linear`."""
    mesh_of_two.create_tenant(TENANT)
    mesh_of_two.push("linear", artefact, tenant=TENANT)
    return mesh_of_two


def until(holds: Callable[[], bool], timeout_s: float = 40.0) -> None:
    ends = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < ends, "it never came true"
        time.sleep(0.1)


def held(mesh: RunningMesh) -> list[Any]:
    """The tenant's replicas that executors hold, as the scheduler knows them."""
    replicas = (each for executor in mesh.fleet()["executors"] for each in executor["report"]["replicas"])
    return [each for each in replicas if each["key"]["tenant"] == TENANT]


def states(caller: Caller) -> list[tuple[str, str]]:
    told = caller.stub.RepositoryIndex(pb.RepositoryIndexRequest(), metadata=caller.metadata, timeout=20)
    return [(each.state, each.reason) for each in told.models]


def test_tritonclient_loads_and_unloads_unmodified(loading_mesh: RunningMesh) -> None:
    command = [sys.executable, str(TRITON), loading_mesh.addresses["frontend"], loading_mesh.keys[TENANT]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.split() == ["sync", "refusals", "aio"]


@pytest.mark.slow
def test_what_was_unloaded_stays_so_over_deaths_and_a_push_until_it_is_loaded(
    loading_mesh: RunningMesh, artefact: Path
) -> None:
    mesh, whose = loading_mesh, ("--tenant", TENANT)
    mesh.command("model", "unload", "linear", *whose)
    assert held(mesh) == []
    for service in ("scheduler", "registry", "executor"):
        before = mesh.pids()[service]
        os.kill(before, signal.SIGKILL)
        until(lambda service=service, before=before: mesh.pids()[service] != before)  # type: ignore[misc]
    until(
        lambda: (
            mesh.apportion("status", "--json").returncode == 0 and any(e["attached"] for e in mesh.fleet()["executors"])
        )
    )
    pushed = mesh.apportion("model", "push", "linear", str(artefact), *whose)
    assert pushed.returncode == 0, pushed.stderr
    assert f"apportion model load linear --tenant {TENANT}" in pushed.stderr
    with Caller(mesh, TENANT) as caller:
        until(lambda: states(caller) == [("UNAVAILABLE", "unloaded")])
        assert held(mesh) == []
        with pytest.raises(grpc.RpcError, match="is unloaded: by request"):
            caller.infer("linear", x=ROWS)
        mesh.command("model", "load", "linear", *whose)
        until(lambda: states(caller) == [("READY", "")])
        assert caller.infer("linear", x=ROWS)["y"].shape == (2, 3)
    # The version that was pushed meanwhile is the one that is loaded.
    assert [each["version"] for each in held(mesh)] == ["2"]
