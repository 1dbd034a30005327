"""A mesh of this version with executors, frontends and clients of the release before: what was made then works with what is now.

CHANGELOG.md names the commit of each release ("## 0.1.0 (commit 0123abc)"). APPORTION_SKEW_REF takes another one, to try.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from tests.deploy.processes import Container, Machine
from tests.deploy.serving import MODEL, TENANT, apportion, ask, served
from tests.mesh.running import wait_until

ROOT = Path(__file__).parent.parent.parent
RELEASE = re.compile(r"^## \d+\.\d+\.\d+ \(commit ([0-9a-f]{7,40})\)", re.MULTILINE)
TOKEN = "a-token-of-the-mesh"
ORDER = ("registry", "scheduler", "executor", "frontend")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def before() -> str | None:
    """The commit of the last release; None: there was none yet."""
    found = RELEASE.search((ROOT / "CHANGELOG.md").read_text())
    return os.environ.get("APPORTION_SKEW_REF") or (found[1] if found else None)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the release before."""
    commit = before()
    if commit is None:
        pytest.skip("there is no release before this one: CHANGELOG.md names no commit")
    folder = tmp_path_factory.mktemp("before")
    packed = subprocess.run(["git", "archive", commit, "services", "gpu_sharing"], cwd=ROOT, capture_output=True, check=True, timeout=60)  # fmt: skip
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    machine.know(*ORDER)
    yield machine
    machine.end()


def container(name: str, machine: Machine) -> Container:
    """A service, found by the others under its name."""
    port, prefix = {"registry": 8101, "scheduler": 8102, "executor": 8110, "frontend": 8001}[name], f"APPORTION_{name.upper()}_"  # fmt: skip
    environment = {
        f"{prefix}LISTEN": f"0.0.0.0:{port}",
        f"{prefix}REGISTRY": "registry:8101",
        f"{prefix}SCHEDULER": "scheduler:8102",
        f"{prefix}METRICS_LISTEN": f"0.0.0.0:{port + 1000}",
        "APPORTION_MESH_TOKEN": TOKEN,
        "APPORTION_REGISTRY_DATA": "/var/lib/apportion",
        "APPORTION_EXECUTOR_CACHE": "/var/lib/apportion/artefacts",
        "APPORTION_EXECUTOR_EXECUTOR_ID": "one",
        "APPORTION_EXECUTOR_CORES": "0",
    }
    return Container(name, name, ["apportion", name], environment, port, port + 1000)


@pytest.mark.parametrize("aged", [("executor",), ("frontend",), ("executor", "frontend"), ("registry", "scheduler")], ids="+".join)  # fmt: skip
def test_a_mesh_serves_with_some_services_of_the_release_before(
    aged: tuple[str, ...], old: Path, machine: Machine
) -> None:
    for name in ORDER:
        machine.start(container(name, machine), source=old if name in aged else ROOT)
    for name in ORDER:
        machine.until_ready(name)
    mesh = {
        "APPORTION_MESH_TOKEN": TOKEN,
        "APPORTION_REGISTRY": machine.address("registry"),
        "APPORTION_SCHEDULER": machine.address("scheduler"),
    }
    wait_until(lambda: '"attached": true' in apportion(mesh, machine.folder, "status", "--json"), what="the executor")
    key = served(mesh, machine.address("frontend"), machine.folder)
    # One of the two is upgraded under way: what is loaded, or known, is taken over.
    machine.stop(aged[0])
    machine.start(container(aged[0], machine))
    machine.until_ready(aged[0])
    wait_until(lambda: answers(machine, key), what="answers after the upgrade")


def answers(machine: Machine, key: str) -> bool:
    import grpc

    try:
        ask(machine.address("frontend"), key, 5)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    return True


def test_a_client_of_the_release_before_is_served(old: Path, machine: Machine) -> None:
    for name in ORDER:
        machine.start(container(name, machine))
    for name in ORDER:
        machine.until_ready(name)
    mesh = {"APPORTION_MESH_TOKEN": TOKEN, "APPORTION_REGISTRY": machine.address("registry"), "APPORTION_SCHEDULER": machine.address("scheduler")}  # fmt: skip
    wait_until(lambda: '"attached": true' in apportion(mesh, machine.folder, "status", "--json"), what="the executor")
    served(mesh, machine.address("frontend"), machine.folder)
    for arguments in (("status", "--json"), ("model", "show", MODEL, "--tenant", TENANT), ("model", "list")):
        done = subprocess.run([sys.executable, "-m", "services.cli", *arguments, "--data", str(machine.folder)], cwd=old, env={"PATH": os.environ["PATH"], **mesh}, capture_output=True, text=True, timeout=60)  # fmt: skip
        assert done.returncode == 0, done.stderr
