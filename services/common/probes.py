"""Health without TLS, and nothing else, on a port of its own: probes like Kubernetes' speak none."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 4 << 10),
    ("grpc.max_metadata_size", 4 << 10),
    ("grpc.max_concurrent_streams", 16),
    ("grpc.max_allowed_incoming_connections", 64),
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.so_reuseport", 0),
)
"""A probe is a few bytes, and few ask."""


class Probes:
    """One port that answers `grpc.health.v1.Health` alone. health: what it says, of the process and its services, never of
    models. listen: HOST:PORT."""

    def __init__(self, listen: str, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> None:
        self.listen, self.health = listen, health_aio.HealthServicer()
        self._grpc = grpc.aio.server(options=list(OPTIONS), interceptors=list(interceptors))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._grpc)

    async def start(self) -> str:
        """Binds and answers; HOST:PORT with the port that was got. Raises RuntimeError where it cannot be had."""
        port = self._grpc.add_insecure_port(self.listen)
        await self._grpc.start()
        return f"{self.listen.rpartition(':')[0]}:{port}"

    async def stop(self) -> None:
        """Closes the port at once: who watches has been told."""
        await self._grpc.stop(None)
