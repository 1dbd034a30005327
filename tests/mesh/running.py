"""A mesh as `apportion up` runs it, in processes of its own, for tests and benchmarks that want the real thing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil

from services.common.channel import connect
from tests.mesh import commands

FREE = "127.0.0.1:0"
PORTS = ("frontend", "metrics", "registry", "scheduler", "executor", "otlp", "query", "executor-metrics")
START_S = 60.0
STOP_S = 40.0
SHARED_MEMORY = Path("/dev/shm")
SAMPLE = re.compile(r"(?P<name>[a-z_]+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
LABEL = re.compile(r'(\w+)="([^"]*)"')

Sample = tuple[str, dict[str, str], float]
"""One line of metrics: name, labels, value."""


@dataclass
class RunningMesh:
    """A mesh under test.

    addresses: as mesh.json has them: frontend, metrics, registry, scheduler, executor, otlp, query, executor_metrics.
    keys: API keys of the tenants that were created here, by name. said: what `up` has printed.
    """

    data: Path
    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    said: Path
    addresses: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def apportion(self, *arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Runs a command against this mesh; never raises for its exit status."""
        return commands.apportion(
            *arguments, "--data", str(self.data), environment=self.environment, timeout_s=timeout_s
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
        """What a call of this tenant carries; nothing for a tenant that has no key here, like `default`."""
        key = self.keys.get(tenant)
        return () if key is None else (("authorization", f"Bearer {key}"),)

    def metrics(self, address: str | None = None) -> list[Sample]:
        """Every sample on the frontend's metrics port, or at another address."""
        with urllib.request.urlopen(f"http://{address or self.addresses['metrics']}/metrics", timeout=10) as answer:
            return list(samples(answer.read().decode()))

    def total(self, name: str, address: str | None = None, **labels: str) -> float:
        """The sum of a metric's samples that bear these labels."""
        return sum(
            value for what, found, value in self.metrics(address) if what == name and labels.items() <= found.items()
        )

    def family(self) -> list[psutil.Process]:
        """`apportion up` and every process beneath it."""
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def workers(self) -> list[psutil.Process]:
        """The processes that hold models."""
        executor = psutil.Process(self.pids()["executor"])
        return [one for one in executor.children(recursive=True) if "gpu_sharing.worker" in one.cmdline()]

    def stop(self, number: int = signal.SIGINT) -> int:
        """Sends the signal, waits for the end and makes sure that nothing is left; the exit status of `up`."""
        family = self.family() if self.process.poll() is None else []
        self.process.send_signal(number)
        try:
            status = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"apportion up did not end within {STOP_S:g} s: {self.said.read_text()}") from None
        finally:
            left = self._left(family)
        assert not left, f"processes left behind: {left}"
        assert not shared_memory(), f"shared memory left behind: {shared_memory()}"
        if number != signal.SIGKILL:
            assert not (self.data / "mesh.json").exists(), "mesh.json left behind"
        return status

    def _left(self, family: list[psutil.Process]) -> list[list[str]]:
        """What still runs of this mesh, ended now: its known processes, and any that bear its folder."""
        psutil.wait_procs(family, timeout=15)
        left = {one for one in [*family, *bearing(str(self.data))] if one.is_running()}
        told = []
        for one in left:
            with suppress(psutil.Error):
                if one.status() != psutil.STATUS_ZOMBIE:
                    told.append(one.cmdline())
                    one.kill()
        return told


@contextmanager
def running(data: Path, *flags: str, environment: Mapping[str, str] | None = None) -> Iterator[RunningMesh]:
    """Runs `apportion up` on free ports; afterwards nothing of it may be left, neither a process nor shared memory.

    environment: variables beside those of this process, of which none that begins with APPORTION_ is passed on.
    """
    mesh = start(data, *flags, environment=environment)
    try:
        wait_until_up(mesh)
        yield mesh
    finally:
        if mesh.process.poll() is None:
            mesh.stop()


def start(data: Path, *flags: str, environment: Mapping[str, str] | None = None) -> RunningMesh:
    """Starts `apportion up` on free ports, without waiting for anything."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("APPORTION_")}
    variables = {**inherited, **(environment or {})}
    ports = [part for name in PORTS if f"--{name}" not in flags for part in (f"--{name}", FREE)]
    said = data.with_name(f"{data.name}.up.log")
    with said.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "up", "--data", str(data), *ports, *flags],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
        )
    return RunningMesh(data, process, variables, said)


def wait_until_up(mesh: RunningMesh) -> None:
    """Waits until the mesh answers, and notes where."""
    written, own = mesh.data / "mesh.json", str(mesh.process.pid)
    ends = time.monotonic() + START_S
    while not (written.exists() and own == str(json.loads(written.read_text())["pid"])):
        assert mesh.process.poll() is None, f"apportion up ended: {mesh.said.read_text()}"
        assert time.monotonic() < ends, f"apportion up is not ready after {START_S:g} s: {mesh.said.read_text()}"
        time.sleep(0.05)
    mesh.addresses = json.loads(written.read_text())["addresses"]


def samples(text: str) -> Iterator[Sample]:
    """The samples in Prometheus' text format."""
    for line in text.splitlines():
        found = SAMPLE.fullmatch(line)
        if found is not None:
            yield found["name"], dict(LABEL.findall(found["labels"] or "")), float(found["value"])


def bearing(text: str) -> Iterator[psutil.Process]:
    """Processes in whose command line or environment this text occurs, this one apart."""
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            if one.pid != os.getpid() and (
                text in " ".join(one.cmdline()) or text in "\n".join(one.environ().values())
            ):
                yield one


def shared_memory() -> list[str]:
    """Named shared memory of ours: there should never be any."""
    return sorted(name for name in os.listdir(SHARED_MEMORY) if "apportion" in name) if SHARED_MEMORY.exists() else []


def wait_until(holds: Callable[[], Any], *, timeout_s: float = 30.0, what: str = "it") -> None:
    """Waits until `holds()`; fails where that takes too long."""
    ends = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < ends, f"{what} did not happen within {timeout_s:g} s"
        time.sleep(0.05)


async def wait_until_async(holds: Callable[[], Awaitable[Any]], *, timeout_s: float = 30.0, what: str = "it") -> None:
    """As `wait_until`, where `holds()` is awaited."""
    ends = time.monotonic() + timeout_s
    while not await holds():
        assert time.monotonic() < ends, f"{what} did not happen within {timeout_s:g} s"
        await asyncio.sleep(0.05)
