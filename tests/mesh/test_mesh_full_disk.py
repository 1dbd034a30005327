"""A mesh whose disk is really full: what has to be written is refused, what has not goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.gpu_sharing.artefact_samples import linear_onnx
from tests.mesh.calling import Caller, request
from tests.mesh.running import RunningMesh, running, wait_until

pytestmark = pytest.mark.slow

TENANT = "cramped"
DISK_MIB = 64
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of DISK_MIB, gone afterwards; skipped where nobody may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs leave to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Takes every byte that is free; the file that holds them."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return ballast


def told(mesh: RunningMesh, *arguments: str) -> str:
    """The one line of a command that fails."""
    done = mesh.apportion(*arguments)
    assert done.returncode == 1, done.stdout
    (line,) = done.stderr.splitlines()
    return line


def test_on_a_full_disk_requests_are_served_and_changes_refused_until_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    linear, large = tmp_path / "linear.onnx", tmp_path / "large.onnx"
    linear.write_bytes(linear_onnx())
    large.write_bytes(b"\x08" + bytes((DISK_MIB + 1) << 20))
    with running(small_disk / "data") as mesh, mesh_caller(mesh, linear) as caller:
        before = mesh.pids()
        line = told(mesh, "model", "push", "large", str(large), "--tenant", TENANT)
        assert line.startswith(f"error: header.size_bytes: {large.stat().st_size} bytes do not fit"), line
        ballast = fill(small_disk)
        line = told(mesh, "model", "push", "again", str(linear), "--tenant", TENANT, "--max-batch", "2")
        assert "full" in line or "do not fit" in line, line
        line = told(mesh, "tenant", "create", "another")
        assert "disk is full" in line, line
        for _ in range(100):
            # Each is a violation, whose trace nobody can store.
            caller.send(request("linear", {"x": ROWS}, slo_ms=0.001))
        ballast.unlink()
        wait_until(lambda: mesh.apportion("tenant", "create", "another").returncode == 0, what="a change after all")
        mesh.push("again", linear, tenant=TENANT, options=("--max-batch", "2"))
        assert np.array_equal(caller.infer("again", x=ROWS)["y"], caller.infer("linear", x=ROWS)["y"])
        assert mesh.pids() == before


def mesh_caller(mesh: RunningMesh, linear: Path) -> Caller:
    """A tenant's caller, its model pushed."""
    mesh.create_tenant(TENANT)
    mesh.push("linear", linear, tenant=TENANT)
    return Caller(mesh, TENANT)
