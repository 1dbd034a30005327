"""CUDA shared memory through the whole mesh: tritonclient's own regions, registered, used, refused, and opened again."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.gpu.cuda.bed import check
from tests.gpu_sharing.artefact_samples import linear_pt2
from tests.mesh.running import running

_SCRIPT = Path(__file__).parents[3] / "tests/mesh/triton_regions.py"
_WORKED = ("tensors", "bounds", "tenants", "gone")


@check
def shared_memory() -> dict[str, Any]:
    """What one caller's requests of 8 numbers take through regions and with tensors in the request, both in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "linear.pt2"
        model.write_bytes(linear_pt2())
        environment = {"APPORTION_EXECUTOR_CUDA_SHARED_MEMORY": "on"}
        with running(Path(folder) / "mesh", environment=environment) as mesh:
            for tenant in ("acme", "other"):
                mesh.create_tenant(tenant)
                mesh.push("linear", model, tenant=tenant)
            command = [
                sys.executable,
                str(_SCRIPT),
                mesh.addresses["frontend"],
                mesh.keys["acme"],
                mesh.keys["other"],
                "cuda",
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    said = done.stdout.splitlines()
    holds = {each: each in said for each in _WORKED}
    if done.returncode:
        return {"failed": (done.stderr + done.stdout)[-1500:], "holds": holds}
    return {**json.loads(said[-1]), "holds": holds}
