"""Client channels, and the backoff that every reconnection uses."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grpc

from services.common.access.certificates import Tls, server_name

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


class Credentials(NamedTuple):
    """What a process shows to other services: the mesh token, a certificate, both or nothing."""

    mesh_token: str | None = None
    tls: Tls | None = None


NOTHING = Credentials()


def connect(
    address: str,
    *,
    to: str | None = None,
    credentials: Credentials = NOTHING,
    mesh_token: str | None = None,
    options: Sequence[tuple[str, int]] = (),
) -> grpc.aio.Channel:
    """A channel to another service of the mesh, with its token on every call.

    to: which service must answer, by the name in its certificate, where there is TLS; None: the address's host.
    Raises OSError where a certificate cannot be read.
    """
    # A later option wins over an earlier one of the same name.
    merged: dict[str, Any] = {**dict(BASE_OPTIONS), **dict(options)}
    if credentials.tls is None:
        channel = grpc.aio.insecure_channel(address, options=list(merged.items()))
    else:
        if to is not None:
            merged["grpc.ssl_target_name_override"] = server_name(to)
        channel = grpc.aio.secure_channel(address, credentials.tls.channel(), options=list(merged.items()))
    token = mesh_token or credentials.mesh_token
    return _WithToken(channel, token) if token else channel


def backoff(*, first_s: float = 0.1, most_s: float = 5.0, chance: random.Random | None = None) -> Iterator[float]:
    """Seconds to wait before each further try: doubling with full jitter, so that a fleet does not return as one.

    Source: M. Brooker, "Exponential Backoff and Jitter" (2015).
    """
    chance = chance or random.Random()
    ceiling = first_s
    while True:
        yield chance.uniform(ceiling / 4, ceiling)
        ceiling = min(most_s, ceiling * 2)


class _WithToken(grpc.aio.Channel):
    """A channel that puts the mesh token on every call of every kind.

    Not an interceptor: grpc.aio registers one for a single kind of call, and sends intercepted streams through a queue.
    """

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._channel = channel
        self._entry = ("authorization", f"Bearer {token}")

    def _with_token(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def with_token(*request: Any, metadata: Any = None, **more: Any) -> Any:
            return call(*request, metadata=(*(metadata or ()), self._entry), **more)

        return with_token

    def unary_unary(self, *method: Any, **codec: Any) -> Any:
        return self._with_token(self._channel.unary_unary(*method, **codec))

    def unary_stream(self, *method: Any, **codec: Any) -> Any:
        return self._with_token(self._channel.unary_stream(*method, **codec))

    def stream_unary(self, *method: Any, **codec: Any) -> Any:
        return self._with_token(self._channel.stream_unary(*method, **codec))

    def stream_stream(self, *method: Any, **codec: Any) -> Any:
        return self._with_token(self._channel.stream_stream(*method, **codec))

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    async def __aenter__(self) -> grpc.aio.Channel:
        await self._channel.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._channel.__aexit__(*error)
