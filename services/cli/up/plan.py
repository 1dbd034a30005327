"""What the mesh consists of: its services, and the variables each is started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.cli.up.core import Addresses, Service, Start

SERVICES = (
    Service("registry", level=2),
    Service("tracestore", level=2),
    Service("scheduler", frozenset({"registry"}), level=2),
    Service("executor", frozenset({"registry", "scheduler", "tracestore"}), level=1),
    Service("frontend", frozenset({"registry", "scheduler", "tracestore"}), level=0),
)
"""Stopped by level: first what takes requests, then what serves them, then what they all need."""


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


@dataclass(frozen=True)
class Plan:
    """One mesh. trace_sample: part of the requests whose traces are kept; None: what the frontend is set to."""

    listen: Listen
    data: Path
    trace_sample: float | None = None

    @property
    def services(self) -> tuple[Service, ...]:
        """The services, in the order in which they are started where nothing else says."""
        return SERVICES

    def module(self, name: str) -> str:
        """What Python runs for a service."""
        return f"services.{name}"

    def environment(self, start: Start, ready: Path, inherited: Mapping[str, str]) -> dict[str, str]:
        """All variables of a service's process. What it listened on before, it listens on again.

        inherited: the user's variables, which win where this mesh only has a preference.
        """
        own = {"READY_FILE": str(ready), **self._listening(start), **self._needing(start)}
        if start.name in ("registry", "tracestore"):
            own["DATA"] = str(self.data)
        if start.name == "frontend" and self.trace_sample is not None:
            own["TRACE_SAMPLE"] = f"{self.trace_sample:g}"
        prefix = f"APPORTION_{start.name.upper()}_"
        return {**self._preferred(start), **inherited, **{prefix + name: value for name, value in own.items()}}

    def mesh_addresses(self, ready: Mapping[str, Addresses]) -> dict[str, str]:
        """What other commands need to know, from what the services said."""
        names = {
            "frontend": ("frontend", "listen"),
            "metrics": ("frontend", "metrics"),
            "registry": ("registry", "listen"),
            "scheduler": ("scheduler", "listen"),
            "executor": ("executor", "listen"),
            "otlp": ("tracestore", "listen"),
            "query": ("tracestore", "query_listen"),
        }
        return {name: ready[service][key] for name, (service, key) in names.items() if key in ready.get(service, {})}

    def _listening(self, start: Start) -> dict[str, str]:
        listen = self.listen
        wanted = {"listen": listen.otlp if start.name == "tracestore" else getattr(listen, start.name)}
        if start.name == "tracestore":
            wanted["query_listen"] = listen.query
        if start.name == "frontend":
            wanted["metrics_listen"] = listen.metrics
        pinned = start.pinned or {}
        if "metrics" in pinned:
            wanted["metrics_listen"] = pinned["metrics"]
        return {key.upper(): pinned.get(key, address) for key, address in wanted.items()}

    def _needing(self, start: Start) -> dict[str, str]:
        return {name.upper(): start.known[name]["listen"] for name in ("registry", "scheduler") if name in start.known}

    def _preferred(self, start: Start) -> dict[str, str]:
        preferred = {"APPORTION_EXECUTOR_CACHE": str(self.data / "cache")}
        if "tracestore" in start.known:
            preferred["APPORTION_OTLP_ENDPOINT"] = start.known["tracestore"]["listen"]
        return preferred
