"""OTLP on the wire: attributes as protobuf has them, and the client that sends spans."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import grpc
import structlog
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

from services.common.access.certificates import server_name
from services.common.channel import Credentials
from services.common.span_bytes import KEPT_CHARS
from services.common.spans import Value

log = structlog.get_logger()

PROBE_S = 1.0
"""How long a collector may take that failed the last time."""
_INT64_MOST = (1 << 63) - 1
_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


def value_of(value: Value) -> AnyValue:
    """An attribute's value; an integer beyond 64 bits and anything of another kind become text."""
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int) and -_INT64_MOST <= value <= _INT64_MOST:
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, Sequence):
        return AnyValue(array_value=ArrayValue(values=[AnyValue(string_value=str(item)) for item in value]))
    return AnyValue(string_value=str(value))


def pairs(attributes: Mapping[str, Value]) -> list[KeyValue]:
    """Attributes as OTLP has them."""
    return [
        _text(key, value)
        if type(value) is str and len(value) <= KEPT_CHARS
        else KeyValue(key=key, value=value_of(value))
        for key, value in attributes.items()
    ]


@lru_cache(4096)
def _text(key: str, value: str) -> KeyValue:
    """One message for each text that is told again and again, like the names of tenants and models: never changed, only copied."""
    return KeyValue(key=key, value=AnyValue(string_value=value))


class Exporter:
    """A blocking OTLP/gRPC client for one thread. It does not retry: spans are worth less than the time of those behind."""

    def __init__(self, endpoint: str, credentials: Credentials, timeout_s: float) -> None:
        scheme, _, address = endpoint.rpartition("://")
        options: tuple[tuple[str, Any], ...] = (
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.initial_reconnect_backoff_ms", 100),
        )
        if scheme == "https":
            self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(), options=options)
        elif credentials.tls is not None and not scheme:
            named = ("grpc.ssl_target_name_override", server_name("tracestore"))
            self._channel = grpc.secure_channel(address, credentials.tls.channel(), options=(*options, named))
        else:
            self._channel = grpc.insecure_channel(address, options=options)
        self._export = self._channel.unary_unary(_EXPORT)
        token = credentials.mesh_token
        self._metadata: Any = (("authorization", f"Bearer {token}"),) if token else ()
        self._timeout_s, self._failing = timeout_s, False
        self._closed = threading.Event()

    def export(self, request: bytes) -> bool:
        """Sends an ExportTraceServiceRequest; says whether the collector took it. Takes at most the timeout, or until `close`."""
        try:
            timeout_s = min(self._timeout_s, PROBE_S) if self._failing else self._timeout_s
            self._export(request, timeout=timeout_s, metadata=self._metadata)
        except (grpc.RpcError, ValueError) as error:
            if not self._failing and not self._closed.is_set():
                code = error.code() if isinstance(error, grpc.RpcError) else error
                log.warning("spans are being lost: the collector does not take them", error=str(code))
            self._failing = True
            return False
        if self._failing:
            log.info("the collector takes spans again")
        self._failing = False
        return True

    def close(self) -> None:
        """Ends a call in flight, and the connection."""
        self._closed.set()
        self._channel.close()
