"""What the images' builders run, run here in a clean environment, and the services started from what comes of it.

Needs the package index; run by `make lint-deploy`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.lint import dockerfiles
from tests.deploy.processes import ROOT
from tests.mesh.running import wait_until

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(900)]

PREFIX = "/opt/apportion"
FRAMEWORKS = ("torch", "onnx", "onnxruntime", "cupy", "nvidia", "transformers")
COMMANDS = ("registry", "scheduler", "frontend")


def context(target: Path) -> None:
    """What .dockerignore lets through, as the first stage copies it."""
    (stage, *_) = dockerfiles.stages(dockerfiles.FOLDER / "services.Dockerfile")
    for source in dockerfiles.copied(stage):
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, target)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the services' image ships, built by its own RUN lines."""
    folder = tmp_path_factory.mktemp("image")
    source, target = folder / "source", folder / "apportion"
    source.mkdir()
    context(source)
    (stage, *_) = dockerfiles.stages(dockerfiles.FOLDER / "services.Dockerfile")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "APPORTION", "VIRTUAL"))}  # fmt: skip
    environment["PATH"] = f"{Path(sys.base_prefix) / 'bin'}:{environment['PATH']}"
    for _, script in (each for each in stage if each[0] == "RUN"):
        done = subprocess.run(["sh", "-ec", script.replace(PREFIX, str(target))], cwd=source, env=environment, capture_output=True, text=True, timeout=800)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_the_services_image_holds_no_framework_and_no_installer(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (packages,) = built.glob("lib/python3*/site-packages")
    names = {path.name.lower().split("-")[0] for path in packages.iterdir()}
    assert names & {*FRAMEWORKS, "pip", "setuptools"} == set()
    assert {"services", "gpu_sharing", "s3fs"} <= names
    size = sum(path.stat().st_size for path in built.rglob("*") if path.is_file() and not path.is_symlink())
    with capsys.disabled():
        print(f"\n/opt/apportion of the services' image: {size / 2**20:.0f} MiB in {len(names)} entries, without torch")
    assert size < 400 << 20


@pytest.mark.parametrize("command", COMMANDS)
def test_each_service_starts_from_the_image_and_drains_on_a_signal(built: Path, command: str, tmp_path: Path) -> None:
    ready, prefix = tmp_path / "ready.json", f"APPORTION_{command.upper()}_"
    environment = {
        "PATH": f"{built / 'bin'}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        f"{prefix}LISTEN": "127.0.0.1:0",
        f"{prefix}METRICS_LISTEN": "127.0.0.1:0",
        f"{prefix}READY_FILE": str(ready),
        "APPORTION_REGISTRY_DATA": str(tmp_path / "data"),
        "APPORTION_DRAIN_S": "1",
    }
    process = subprocess.Popen(["apportion", command], executable=str(built / "bin" / "apportion"), env=environment, cwd=tmp_path, stderr=subprocess.PIPE)  # fmt: skip
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None, what=f"{command} being ready")
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_the_health_check_says_no_where_nobody_answers(built: Path) -> None:
    done = subprocess.run(
        [built / "bin" / "python", dockerfiles.FOLDER / "healthy.py"],
        env={"APPORTION_HEALTH": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr.strip()) == (1, "127.0.0.1:1: UNAVAILABLE")
