"""CUDA shared memory through the whole mesh, as tritonclient uses it: real processes, files in place of a GPU's memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu_sharing.artefact_samples import linear_onnx
from tests.mesh.running import running

SCRIPT = Path(__file__).with_name("triton_regions.py")


@pytest.mark.slow
def test_tritonclient_keeps_tensors_in_regions_through_every_process_also_when_worker_and_executor_are_killed(
    tmp_path: Path,
) -> None:
    model = tmp_path / "linear.onnx"
    model.write_bytes(linear_onnx())
    with running(tmp_path / "mesh", environment={"APPORTION_EXECUTOR_CUDA_SHARED_MEMORY": "host"}) as mesh:
        for tenant in ("acme", "other"):
            mesh.create_tenant(tenant)
            mesh.push("linear", model, tenant=tenant, options=("--max-batch", "8"))
        killed = [str(each) for each in (mesh.workers()[0].pid, mesh.pids()["executor"])]
        command = [
            sys.executable,
            str(SCRIPT),
            mesh.addresses["frontend"],
            mesh.keys["acme"],
            mesh.keys["other"],
            "host",
        ]
        done = subprocess.run([*command, *killed], capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr + done.stdout
        *worked, figures = done.stdout.splitlines()
        assert worked == ["tensors", "bounds", "tenants", "restart", "restart", "gone"]
        assert set(json.loads(figures)) == {"regions_ms", "request_ms"}
