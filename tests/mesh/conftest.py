"""The whole mesh as `apportion up` runs it, for tests that want the real thing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from services.common.channel import connect

FREE = "127.0.0.1:0"
PORTS = ("frontend", "metrics", "registry", "scheduler", "executor", "otlp", "query")
START_S = 60.0
STOP_S = 40.0
SHARED_MEMORY = Path("/dev/shm")


@dataclass
class RunningMesh:
    """A mesh under test.

    addresses: as mesh.json has them: frontend, metrics, registry, scheduler, executor, otlp, query.
    keys: API keys of the tenants that were created here, by name.
    """

    data: Path
    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    addresses: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def apportion(self, *arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Runs a command against this mesh; never raises for its exit status."""
        return subprocess.run(
            [sys.executable, "-m", "services.cli", *arguments, "--data", str(self.data)],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=self.environment,
            check=False,
        )

    def command(self, *arguments: str) -> str:
        """Runs a command that must succeed; its standard output."""
        done = self.apportion(*arguments)
        assert done.returncode == 0, f"apportion {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def create_tenant(self, name: str, *, reserve: float = 0.0, weight: int = 1) -> str:
        """Creates a tenant; its API key, which `metadata` knows from now on."""
        made = self.command("tenant", "create", name, "--reserve", f"{reserve:g}", "--weight", str(weight), "--json")
        self.keys[name] = json.loads(made)["api_key"]
        return self.keys[name]

    def push(self, name: str, path: Path, *, tenant: str = "default", options: tuple[str, ...] = ()) -> Any:
        """Pushes a model and waits until it serves; what `model push --json` says."""
        return json.loads(self.command("model", "push", name, str(path), "--tenant", tenant, *options, "--json"))

    def fleet(self) -> Any:
        """What the scheduler knows, as JSON."""
        return json.loads(self.command("status", "--json"))

    def pids(self) -> dict[str, int]:
        """The services' processes, by name."""
        return json.loads((self.data / "mesh.json").read_text())["pids"]

    def channel(self, service: str = "frontend", **options: Any) -> grpc.aio.Channel:
        """A channel to one of the services; the caller closes it."""
        return connect(self.addresses[service], **options)

    def metadata(self, tenant: str) -> tuple[tuple[str, str], ...]:
        """What a call of this tenant carries."""
        return (("authorization", f"Bearer {self.keys[tenant]}"),)

    def family(self) -> list[psutil.Process]:
        """`apportion up` and every process beneath it."""
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]


@contextmanager
def running(data: Path, *flags: str) -> Iterator[RunningMesh]:
    """Runs `apportion up` on free ports; afterwards nothing of it may be left, neither a process nor shared memory."""
    shared_before = set(os.listdir(SHARED_MEMORY)) if SHARED_MEMORY.exists() else set()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("APPORTION_")}
    ports = [part for name in PORTS for part in (f"--{name}", FREE)]
    said = data.with_name(f"{data.name}.up.log")
    with said.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "up", "--data", str(data), *ports, *flags],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    mesh = RunningMesh(data, process, environment)
    try:
        mesh.addresses = _addresses(mesh, said)
        yield mesh
    finally:
        _stop(mesh, shared_before)


def _addresses(mesh: RunningMesh, said: Path) -> dict[str, str]:
    ends, written = time.monotonic() + START_S, mesh.data / "mesh.json"
    while not written.exists():
        assert mesh.process.poll() is None, f"apportion up ended: {said.read_text()}"
        assert time.monotonic() < ends, f"apportion up is not ready after {START_S:g} s: {said.read_text()}"
        time.sleep(0.05)
    return json.loads(written.read_text())["addresses"]


def _stop(mesh: RunningMesh, shared_before: set[str]) -> None:
    family = mesh.family() if mesh.process.poll() is None else []
    mesh.process.send_signal(signal.SIGINT)
    try:
        mesh.process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        mesh.process.kill()
        mesh.process.wait()
        raise AssertionError(f"apportion up did not stop within {STOP_S:g} s of Ctrl-C") from None
    finally:
        _, left = psutil.wait_procs(family, timeout=3)
        for one in left:
            one.kill()
    assert not left, f"processes left behind: {[one.cmdline() for one in left]}"
    shared = set(os.listdir(SHARED_MEMORY)) - shared_before if SHARED_MEMORY.exists() else set()
    ours = {name for name in shared if "apportion" in name}
    assert not ours, f"shared memory left behind: {sorted(ours)}"
    assert not (mesh.data / "mesh.json").exists(), "mesh.json left behind"


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """One mesh for all tests that leave it as they found it: give your tenants names of their own."""
    with running(tmp_path_factory.mktemp("mesh") / "data") as started:
        yield started


@pytest.fixture
def own_mesh(tmp_path: Path) -> Iterator[RunningMesh]:
    """A mesh that this test may break."""
    with running(tmp_path / "data") as started:
        yield started


def wait_until(holds: Any, *, timeout_s: float = 30.0, what: str = "it") -> None:
    """Waits until `holds()`; fails where that takes too long."""
    ends = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < ends, f"{what} did not happen within {timeout_s:g} s"
        time.sleep(0.05)


async def wait_until_async(holds: Any, *, timeout_s: float = 30.0, what: str = "it") -> None:
    """As `wait_until`, where `holds()` is awaited."""
    ends = time.monotonic() + timeout_s
    while not await holds():
        assert time.monotonic() < ends, f"{what} did not happen within {timeout_s:g} s"
        await asyncio.sleep(0.05)
