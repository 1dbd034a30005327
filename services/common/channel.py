"""Client channels, and the backoff that every reconnection uses."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import grpc

BASE_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # One connection a channel: the primary and the bulk stream must not share a transport.
    ("grpc.use_local_subchannel_pool", 1),
)


def connect(
    address: str, *, mesh_token: str | None = None, options: Sequence[tuple[str, int]] = ()
) -> grpc.aio.Channel:
    """A channel to another service of the mesh, with its token on every call."""
    interceptors = [_Token(mesh_token)] if mesh_token else None
    return grpc.aio.insecure_channel(address, options=(*BASE_OPTIONS, *options), interceptors=interceptors)


def backoff(*, first_s: float = 0.1, most_s: float = 5.0, chance: random.Random | None = None) -> Iterator[float]:
    """Seconds to wait before each further try: doubling with full jitter, so that a fleet does not return as one.

    Source: M. Brooker, "Exponential Backoff and Jitter" (2015).
    """
    chance = chance or random.Random()
    ceiling = first_s
    while True:
        yield chance.uniform(ceiling / 4, ceiling)
        ceiling = min(most_s, ceiling * 2)


class _Token(
    grpc.aio.UnaryUnaryClientInterceptor,
    grpc.aio.UnaryStreamClientInterceptor,
    grpc.aio.StreamUnaryClientInterceptor,
    grpc.aio.StreamStreamClientInterceptor,
):
    """Puts the mesh token on every call."""

    def __init__(self, token: str) -> None:
        self._entry = ("authorization", f"Bearer {token}")

    def _with_token(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        return details._replace(metadata=grpc.aio.Metadata(*(details.metadata or ()), self._entry))

    async def intercept_unary_unary(self, continuation, details, request):  # type: ignore[no-untyped-def]
        return await continuation(self._with_token(details), request)

    intercept_unary_stream = intercept_unary_unary
    intercept_stream_unary = intercept_unary_unary
    intercept_stream_stream = intercept_unary_unary
