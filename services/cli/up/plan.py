"""What the mesh consists of: its services, and the variables each is started with."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.cli.options import certificate
from services.cli.up.core import Addresses, Service, Start

BASE = frozenset({"registry", "scheduler", "tracestore"})
MOST_OF_A_KIND = 64


@dataclass(frozen=True)
class Listen:
    """Where each service listens: HOST:PORT, port 0 for a free one."""

    frontend: str = "127.0.0.1:8001"
    metrics: str = "127.0.0.1:8002"
    registry: str = "127.0.0.1:8101"
    scheduler: str = "127.0.0.1:8102"
    executor: str = "127.0.0.1:8110"
    otlp: str = "127.0.0.1:4317"
    query: str = "127.0.0.1:16685"
    executor_metrics: str = "127.0.0.1:9110"


@dataclass(frozen=True)
class Plan:
    """One mesh.

    trace_sample: part of the requests whose traces are kept; None: what the frontend is set to.
    executors, frontends: how many processes of each. Frontends share one port; an executor's port and every metrics port
    counts up from the first one's.
    cores: the processor cores there are, for executors to have some each; empty: every executor sees to it by itself.
    certs: a folder of `apportion certs init`, from which each service has its own; None: what the user's variables say.
    """

    listen: Listen
    data: Path
    trace_sample: float | None = None
    executors: int = 1
    frontends: int = 1
    cores: tuple[int, ...] = ()
    certs: Path | None = None

    @property
    def services(self) -> tuple[Service, ...]:
        """The services, in the order in which they are started where nothing else says.

        Stopped by level: first what takes requests, then what serves them, then what they all need.
        """
        executors = (Service(numbered("executor", n), BASE, level=1) for n in range(1, self.executors + 1))
        # The first frontend finds the port that the others share with it.
        frontends = (
            Service(numbered("frontend", n), BASE if n == 1 else BASE | {"frontend"}, level=0)
            for n in range(1, self.frontends + 1)
        )
        return (
            Service("registry", level=2),
            Service("tracestore", level=2),
            Service("scheduler", frozenset({"registry"}), level=2),
            *executors,
            *frontends,
        )

    def module(self, name: str) -> str:
        """What Python runs for a service."""
        return f"services.{kind_of(name)}"

    def environment(self, start: Start, ready: Path, inherited: Mapping[str, str]) -> dict[str, str]:
        """All variables of a service's process. What it listened on before, it listens on again.

        inherited: the user's variables, which win where this mesh only has a preference.
        """
        kind = kind_of(start.name)
        own = {"READY_FILE": str(ready), **self._listening(start), **self._needing(start)}
        if kind in ("registry", "tracestore"):
            own["DATA"] = str(self.data)
        if kind == "frontend":
            own.update(self._frontend())
        if kind == "executor":
            own.update(self._executor(number_of(start.name), inherited))
        if self.certs is not None:
            tls = certificate(self.certs, kind)
            own |= {"TLS_CERTIFICATE": str(tls.certificate), "TLS_KEY": str(tls.key), "TLS_CA": str(tls.authority)}
        prefix = f"APPORTION_{kind.upper()}_"
        return {**self._preferred(start), **inherited, **{prefix + name: value for name, value in own.items()}}

    def mesh_addresses(self, ready: Mapping[str, Addresses]) -> dict[str, str]:
        """What other commands need to know, from what the services said."""
        names = {
            "frontend": ("frontend", "listen"),
            "metrics": ("frontend", "metrics"),
            "registry": ("registry", "listen"),
            "scheduler": ("scheduler", "listen"),
            "executor": ("executor", "listen"),
            "executor_metrics": ("executor", "metrics"),
            "otlp": ("tracestore", "listen"),
            "query": ("tracestore", "query_listen"),
        }
        for n in range(2, self.executors + 1):
            names[numbered("executor", n)] = (numbered("executor", n), "listen")
            names[numbered("executor_metrics", n)] = (numbered("executor", n), "metrics")
        names |= {numbered("metrics", n): (numbered("frontend", n), "metrics") for n in range(2, self.frontends + 1)}
        return {name: ready[service][key] for name, (service, key) in names.items() if key in ready.get(service, {})}

    def _listening(self, start: Start) -> dict[str, str]:
        listen, kind, number = self.listen, kind_of(start.name), number_of(start.name)
        wanted = {"listen": listen.otlp if kind == "tracestore" else getattr(listen, kind)}
        if kind == "tracestore":
            wanted["query_listen"] = listen.query
        if kind == "executor":
            wanted["listen"] = counted(listen.executor, number)
            wanted["metrics_listen"] = counted(listen.executor_metrics, number)
        if kind == "frontend":
            wanted["metrics_listen"] = counted(listen.metrics, number)
            wanted["listen"] = start.known.get("frontend", {}).get("listen", listen.frontend)
        pinned = start.pinned or {}
        if "metrics" in pinned:
            wanted["metrics_listen"] = pinned["metrics"]
        return {key.upper(): pinned.get(key, address) for key, address in wanted.items()}

    def _needing(self, start: Start) -> dict[str, str]:
        return {name.upper(): start.known[name]["listen"] for name in ("registry", "scheduler") if name in start.known}

    def _frontend(self) -> dict[str, str]:
        own = {} if self.trace_sample is None else {"TRACE_SAMPLE": f"{self.trace_sample:g}"}
        if self.frontends == 1:
            return own
        return {**own, "REUSE_PORT": "on", "SHARED_MEMORY_FOLDER": str(self.data / "regions")}

    def _executor(self, number: int, inherited: Mapping[str, str]) -> dict[str, str]:
        """What sets one of several executors apart; nothing where there is one."""
        if self.executors == 1:
            return {}
        own = {}
        cores = slices(self.cores, self.executors)
        if cores and "APPORTION_EXECUTOR_CORES" not in inherited:
            own["CORES"] = ",".join(map(str, cores[number - 1]))
        if number > 1:
            name = inherited.get("APPORTION_EXECUTOR_EXECUTOR_ID", f"executor-{socket.gethostname()}")
            own["EXECUTOR_ID"] = f"{name}-{number}"
            own["CACHE"] = f"{inherited.get('APPORTION_EXECUTOR_CACHE', str(self.data / 'cache'))}-{number}"
        return own

    def _preferred(self, start: Start) -> dict[str, str]:
        preferred = {"APPORTION_EXECUTOR_CACHE": str(self.data / "cache")}
        if "tracestore" in start.known:
            preferred["APPORTION_OTLP_ENDPOINT"] = start.known["tracestore"]["listen"]
        return preferred


def numbered(kind: str, number: int) -> str:
    """The name of the n-th service of a kind: "executor", "executor-2"."""
    return kind if number == 1 else f"{kind}-{number}"


def kind_of(name: str) -> str:
    """The kind of a service by its name."""
    return name.partition("-")[0]


def number_of(name: str) -> int:
    """Which of its kind a service is, counted from 1."""
    return int(name.partition("-")[2] or 1)


def counted(address: str, number: int) -> str:
    """HOST:PORT of the n-th of several: ports count up, and 0 stays 0."""
    host, _, port = address.rpartition(":")
    return address if port == "0" else f"{host}:{int(port) + number - 1}"


def slices(cores: tuple[int, ...], parts: int) -> list[tuple[int, ...]]:
    """The cores of each of several executors, which share none; empty where there are too few.

    The first core is left to the services where the others suffice.
    """
    ordered = sorted(cores)
    ordered = ordered[1:] if len(ordered) > parts else ordered
    if len(ordered) < parts:
        return []
    return [tuple(ordered[len(ordered) * n // parts : len(ordered) * (n + 1) // parts]) for n in range(parts)]
