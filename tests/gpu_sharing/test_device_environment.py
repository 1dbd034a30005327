"""What programs that are started for a device are given of their starter's environment: what they need, and no secret."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gpu_sharing.devices import mps
from gpu_sharing.devices.environment import driver_variables, system_variables
from gpu_sharing.devices.mps import Daemon, MpsFailed
from gpu_sharing.worker.config import WorkerConfig
from gpu_sharing.worker.process import cuda_environment, environment

SECRETS = {
    "APPORTION_MESH_TOKEN": "hunter2-mesh",
    "APPORTION_TLS_KEY": "hunter2-path",
    "APPORTION_REGISTRY_DATABASE_URL": "postgresql://hunter2@db",
    "AWS_SECRET_ACCESS_KEY": "hunter2-aws",
    "NVIDIA_API_KEY": "hunter2-nvidia",
    "CUDA_DOWNLOAD_TOKEN": "hunter2-cuda",
    "HF_TOKEN": "hunter2-hub",
    "SOMETHING_ELSE": "hunter2-else",
}
WANTED = {"CUDA_VISIBLE_DEVICES": "GPU-1", "NVIDIA_VISIBLE_DEVICES": "all", "LD_LIBRARY_PATH": "/usr/lib/nvidia"}


@pytest.fixture(autouse=True)
def inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SECRETS, **WANTED}.items():
        monkeypatch.setenv(name, value)


def test_the_drivers_variables_are_kept_but_for_what_looks_like_a_secret() -> None:
    assert "hunter2" not in str(system_variables(os.environ))
    assert system_variables(os.environ).items() >= WANTED.items()
    assert driver_variables({"CUDA_A": "1", "NVIDIA_B": "2", "PATH": "3", "cuda_c": "4"}) == {
        "CUDA_A": "1",
        "NVIDIA_B": "2",
    }


@pytest.mark.parametrize("backend", ["cpu", "cuda", "cuda_mps"])
def test_a_worker_gets_no_secret_whatever_its_device(backend: str) -> None:
    given = environment(WorkerConfig(cores=(), environment=cuda_environment(backend)))
    assert "hunter2" not in str(given)
    assert given.items() >= WANTED.items()


TELLS = """#!/bin/sh
tr '\\0' '\\n' < /proc/$$/environ > {folder}/$([ "$1" = -f ] && echo daemon || echo asked).environment
echo "Cannot find MPS control daemon process"
exit 1
"""


def test_neither_the_mps_daemon_nor_what_asks_it_gets_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-cuda-mps-control"
    program.write_text(TELLS.format(folder=tmp_path))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    daemon = Daemon(str(program), sleep=lambda _: None)
    with pytest.raises(MpsFailed):
        daemon.start()
    found = (tmp_path / "daemon.environment").read_text()
    assert "hunter2" not in found
    assert f"CUDA_MPS_PIPE_DIRECTORY={daemon.pipe}" in found
    assert "CUDA_VISIBLE_DEVICES=GPU-1" in found
    (tmp_path / "control").touch()
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(mps, "binary", lambda: str(program))
    assert mps.found() is None
    assert "hunter2" not in (tmp_path / "asked.environment").read_text()
