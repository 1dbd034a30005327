"""perf_analyzer as its users run it, against the whole mesh.

PERF_ANALYZER names the program; LD_LIBRARY_PATH has to lead to what it needs. A build that runs on many systems lies in the
wheel of tritonclient 2.49.0; it wants libb64 (Debian: libb64-0d) and libcudart 12 (wheel nvidia-cuda-runtime-cu12).
"""

from __future__ import annotations

import csv
import os
import subprocess
from pathlib import Path

import pytest

from tests.mesh import tiny
from tests.mesh.running import RunningMesh

PROGRAM = os.environ.get("PERF_ANALYZER")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM, reason="PERF_ANALYZER names no program; see this file's first lines"),
]
TENANT = "perf"
WAYS = {
    "plain": (),
    "streaming": ("--streaming",),
    "shared memory": ("--shared-memory", "system"),
    "both": ("--streaming", "--shared-memory", "system"),
}


@pytest.fixture(scope="module")
def perf_mesh(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> RunningMesh:
    """The mesh with a tenant whose model is `echo`, FP32."""
    mesh.create_tenant(TENANT)
    mesh.push("echo", tiny.echo(tmp_path_factory.mktemp("perf") / "echo.onnx", "float32"), tenant=TENANT)
    return mesh


@pytest.mark.parametrize("way", list(WAYS))
def test_perf_analyzer_measures_at_every_concurrency(perf_mesh: RunningMesh, way: str, tmp_path: Path) -> None:
    report = tmp_path / "report.csv"
    command = [
        str(PROGRAM),
        *("-m", "echo", "-u", perf_mesh.addresses["frontend"], "-i", "grpc", "-f", str(report)),
        *("-H", f"authorization: Bearer {perf_mesh.keys[TENANT]}", "--shape", "in_float32:16"),
        *("--measurement-interval", "500", "--stability-percentage", "60", "--max-trials", "6"),
        *("--concurrency-range", "1:64:21", "--async", *WAYS[way]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with report.open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["Concurrency"]) for row in rows) == [1, 22, 43, 64]
    for row in rows:
        assert float(row["Inferences/Second"]) > 0
        # Of the server's own statistics: it has them, and they grow.
        assert float(row["Server Compute Infer"]) > 0
