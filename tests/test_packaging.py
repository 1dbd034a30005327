"""What a wheel of this project holds, and what the base install needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_holds_exactly_services_and_gpu_sharing(tmp_path: Path) -> None:
    # A copy, since building leaves a folder behind in which deleted modules would live on.
    copy = tmp_path / "copy"
    for folder in ("services", "gpu_sharing", "demo", "tests", "bench"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        str(copy),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"services", "gpu_sharing"}


def test_the_base_install_needs_no_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [need for need in project["dependencies"] if need.startswith(("torch", "onnx", "cupy", "cuda"))]


SERVICES_WITHOUT_TORCH = ("services.cli.main", "services.frontend.serve", "services.registry.serve", "services.scheduler.serve", "services.tracestore.serve", "services.executor.serve")  # fmt: skip


@pytest.mark.parametrize("module", SERVICES_WITHOUT_TORCH)
def test_a_service_starts_without_torch_or_onnxruntime(module: str) -> None:
    code = f"import sys, {module}; sys.exit(' '.join({{'torch', 'onnxruntime', 'onnx'}} & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_dependency_is_pinned_in_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needs = [*project["dependencies"], *extras["executor"], *extras["demo"], *extras["dev"]]
    names = {need.split("[")[0].split(">")[0].split("=")[0].split("<")[0].lower().replace("_", "-") for need in needs}
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    assert names - pinned == {"apportion"}
