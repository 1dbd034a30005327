"""Metrics over OTLP, from a thread of their own. Counts are cumulative: a message that is lost makes no difference."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc
import structlog
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub

from services.common.access.certificates import server_name
from services.common.channel import NOTHING, Credentials

log = structlog.get_logger()

REQUESTS = "apportion.frontend.requests"
"""Requests that are over: a sum by tenant, model and outcome."""
OBJECTIVE_REQUESTS = "apportion.frontend.objective.requests"
"""Requests judged by an objective: a sum by tenant, model, `slo.met` and, for an SLO's own objective, `slo.objective_us`."""
VIOLATIONS = "apportion.frontend.violations"
"""Requests that were late, refused or failed by the service: a sum by tenant and model."""
DURATION = "apportion.frontend.request.duration"
"""From arrival to answer, in seconds: an exponential histogram by tenant and model, with exemplars."""
MET = "slo.met"

TIMEOUT_S, PROBE_S = 5.0, 1.0
"""How long a collector may take, and one that failed the last time."""
UNWANTED_S = 600.0
"""How long a collector that takes no metrics, as a Jaeger does, is left alone."""


class MetricsExporter:
    """Sends what `build` makes, every `every_s`, and once more at the end. Without an `endpoint` it does nothing.

    endpoint: HOST:PORT, or https://HOST:PORT for TLS.
    """

    def __init__(
        self,
        endpoint: str | None,
        build: Callable[[], ExportMetricsServiceRequest],
        *,
        every_s: float,
        credentials: Credentials = NOTHING,
    ) -> None:
        self._endpoint, self._build, self._every_s = endpoint, build, every_s
        self._credentials, token = credentials, credentials.mesh_token
        self._metadata: Any = (("authorization", f"Bearer {token}"),) if token else ()
        self._stop = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        """Begins."""
        if self._endpoint is not None:
            self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """Sends once more and ends; blocks, at most `timeout` seconds."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        with _channel(self._endpoint or "", self._credentials) as channel:
            stub = MetricsServiceStub(channel)
            wait_s = self._every_s
            while not self._stop.wait(wait_s):
                wait_s = self._send(stub)
            if wait_s != UNWANTED_S:
                self._send(stub)

    def _send(self, stub: MetricsServiceStub) -> float:
        """Sends; returns how long to wait until the next time."""
        try:
            timeout_s = PROBE_S if self._failing else TIMEOUT_S
            stub.Export(self._build(), timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                log.info("the collector takes no metrics; Prometheus has them", again_in_s=UNWANTED_S)
                return UNWANTED_S
            self._fails(str(error.code()))
        except Exception as error:
            self._fails(repr(error))
        else:
            self._failing = False
        return self._every_s

    def _fails(self, error: str) -> None:
        if not self._failing:
            log.warning("metrics wait: the collector does not take them", error=error)
        self._failing = True


def _channel(endpoint: str, credentials: Credentials) -> grpc.Channel:
    scheme, _, address = endpoint.rpartition("://")
    options: tuple[tuple[str, Any], ...] = (
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
    )
    if scheme == "https":
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(), options=options)
    if credentials.tls is not None and not scheme:
        named = ("grpc.ssl_target_name_override", server_name("tracestore"))
        return grpc.secure_channel(address, credentials.tls.channel(), options=(*options, named))
    return grpc.insecure_channel(address, options=options)
