"""Containers, as manifests or Compose describe them, run as processes here: each "host" is a loopback address of its own, so that
commands, variables and ports stay as they are written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).parent.parent.parent
PROGRAMS = {"apportion": (sys.executable, "-m", "services.cli"), "python": (sys.executable,)}
REFERENCE = re.compile(r"\$\(([A-Z_]+)\)")
DATA = "/var/lib/apportion"
CERTIFICATES = "/etc/apportion/tls"


@dataclass
class Container:
    """What is to be run. host: the name that others know it by; ready: the health service that says so, on `probe_port`, else on
    `port`; certificates: the name of the secret with its own."""

    name: str
    host: str
    command: Sequence[str]
    environment: Mapping[str, str]
    port: int | None = None
    metrics_port: int | None = None
    ready: str = ""
    grace_s: float = 30.0
    probe_port: int | None = None
    certificates: str = ""


@dataclass
class Machine:
    """Runs containers. hosts: the address of each name; folder: what they write, and their logs."""

    folder: Path
    hosts: dict[str, str] = field(default_factory=dict)
    running: dict[str, tuple[Container, subprocess.Popen[bytes]]] = field(default_factory=dict)

    def know(self, *names: str) -> None:
        """Gives each of these hosts an address that is this process's own."""
        for name in names:
            number = len(self.hosts) + 2
            self.hosts[name] = f"127.{64 + os.getpid() % 128}.{os.getpid() // 128 % 256}.{number}"

    def environment(self, container: Container) -> dict[str, str]:
        """The container's variables, hosts and folders put in their places, and nothing of this process's own but the path."""
        own = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "TMPDIR": str(self.folder)}
        return own | {name: self._here(value, container) for name, value in container.environment.items()}

    def _here(self, value: str, container: Container) -> str:
        host, colon, port = value.rpartition(":")
        if colon and port.isdigit():
            name = host.split(".")[0]
            if host == "0.0.0.0":
                return f"{self.hosts[container.host]}:{port}"
            if name in self.hosts:
                return f"{self.hosts[name]}:{port}"
        if value.startswith(CERTIFICATES):
            return str(self.folder / container.certificates) + value.removeprefix(CERTIFICATES)
        return str(self.folder / container.name) + value.removeprefix(DATA) if value.startswith(DATA) else value

    def start(self, container: Container, source: Path = ROOT) -> None:
        """Starts a container's command from this folder's code; its output goes to a file."""
        program, *arguments = container.command
        with (self.folder / f"{container.name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*PROGRAMS[program], *arguments],
                env=self.environment(container),
                cwd=source,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running[container.name] = (container, process)

    def log(self, name: str) -> str:
        """What a container has written."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def finish(self, name: str, timeout_s: float = 60.0) -> int:
        """Waits for the end of one that ends by itself; its exit status."""
        return self.running.pop(name)[1].wait(timeout_s)

    def says(self, name: str, service: str) -> int:
        """What a container's health says of a service; -1: nothing."""
        container, process = self.running[name]
        assert process.poll() is None, f"{name} ended: {self.log(name)}"
        where = f"{self.hosts[container.host]}:{container.probe_port or container.port}"
        with grpc.insecure_channel(where) as channel:
            asked = health_pb2.HealthCheckRequest(service=service)
            try:
                return health_pb2_grpc.HealthStub(channel).Check(asked, timeout=2).status
            except grpc.RpcError:
                return -1

    def address(self, name: str) -> str:
        """HOST:PORT of a container's gRPC."""
        container = self.running[name][0]
        return f"{self.hosts[container.host]}:{container.port}"

    def until_ready(self, name: str, timeout_s: float = 60.0) -> None:
        """Waits until a container's readiness probe would pass."""
        self.until_says(name, self.running[name][0].ready, health_pb2.HealthCheckResponse.SERVING, timeout_s)

    def until_says(self, name: str, service: str, status: int, timeout_s: float = 60.0) -> None:
        """Waits until a container's health says this of a service."""
        ends = time.monotonic() + timeout_s
        while self.says(name, service) != status:
            assert time.monotonic() < ends, f"{name} does not say {status} of {service!r}: {self.log(name)}"
            time.sleep(0.1)

    def scrape(self, name: str) -> str:
        """A container's metrics."""
        container = self.running[name][0]
        where = f"http://{self.hosts[container.host]}:{container.metrics_port}/metrics"
        bearer = {"Authorization": f"Bearer {container.environment['APPORTION_METRICS_TOKEN']}"}
        with urllib.request.urlopen(urllib.request.Request(where, headers=bearer), timeout=10) as answer:
            return answer.read().decode()

    def stop(self, name: str) -> int:
        """What a kubelet does: SIGTERM, then the grace period. The exit status; fails where the period is exceeded."""
        container, process = self.running.pop(name)
        process.terminate()
        try:
            return process.wait(container.grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{name} did not end within {container.grace_s:g} s: {self.log(name)}") from None

    def end(self) -> None:
        """Ends what is left."""
        for _, process in self.running.values():
            process.terminate()
        for _, process in self.running.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running.clear()


def of_manifest(manifest: Mapping[str, Any], secrets: Mapping[tuple[str, str], str]) -> Container:
    """The one container of a workload. secrets: by name and key."""
    template = manifest["spec"]["template"]["spec"]
    (container,) = template["containers"]
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    fields = {"metadata.name": f"{name}-0", "status.podIP": name, "spec.nodeName": "node-1"}
    values: dict[str, str] = {}
    for entry in container["env"]:
        source = entry.get("valueFrom")
        if source is None:
            text = str(entry["value"])
        elif "fieldRef" in source:
            text = fields[source["fieldRef"]["fieldPath"]]
        else:
            chosen = source["secretKeyRef"]
            text = secrets[chosen["name"], chosen["key"]]
        values[entry["name"]] = REFERENCE.sub(lambda found: values[found[1]], text)
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
    probe = container.get("readinessProbe", {}).get("grpc", {})
    mounted = {volume["name"]: volume["secret"]["secretName"] for volume in template["volumes"] if "secret" in volume}
    return Container(
        container["name"],
        name,
        [*container["command"], *container["args"]],
        values,
        ports.get("grpc"),
        ports.get("metrics"),
        probe.get("service", ""),
        float(template.get("terminationGracePeriodSeconds", 30)) if kind != "Job" else 30.0,
        probe.get("port"),
        mounted.get("tls", ""),
    )


def of_compose(name: str, service: Mapping[str, Any], entrypoint: Sequence[str]) -> Container:
    """A service as `docker compose config` gives it. entrypoint: of its image."""
    command = [*(service.get("entrypoint") or entrypoint), *(service.get("command") or [])]
    values = {key: str(value) for key, value in (service.get("environment") or {}).items()}
    metrics = next(
        (int(value.rpartition(":")[2]) for key, value in values.items() if key.endswith("METRICS_LISTEN")), None
    )
    port = values.get("APPORTION_HEALTH", "").rpartition(":")[2]
    grace_s = float(service.get("stop_grace_period", "10s").removesuffix("s"))
    return Container(name, name, command, values, int(port) if port else None, metrics, grace_s=grace_s)
