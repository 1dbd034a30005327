"""How every service is reached: one gRPC server with health, the guard, refusals mapped to statuses, and a drain."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from services.common.access.callers import LOCAL, Caller, Role, caller_of
from services.common.access.certificates import Tls
from services.common.access.guard import Guard
from services.common.access.keys import Keys
from services.common.access.revocations import Revocations
from services.common.access.token_rules import TokenRules
from services.common.leaving import send_away
from services.common.probes import Probes
from services.common.process import StartupError
from services.common.refusals import Refusals
from services.common.settings import ServiceSettings, is_loopback

log = structlog.get_logger()

HealthServicer: TypeAlias = health_aio.HealthServicer

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),
)

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
IN_USE = "the port is in use; stop what holds it or"


class Server:
    """A grpc.aio server on one address, every call of which the guard decides on.

    Listening beyond loopback without a mesh token or TLS is refused unless `public` (the frontend, whose callers are
    tenants). Raises StartupError where the port is taken; `flag` is the setting that the message points to.
    serves: full names of its services, for reflection. keys: whose calls are taken beside the mesh's; None: nobody's.
    anonymous: who a public server's callers without a credential are; None: nobody. clients: whether a public server asks
    callers for certificates. permissions: of methods that no contract names. probed: whether this is the server of the
    process that answers at `health_listen`, where that is set.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        listen: str,
        *,
        name: str,
        public: bool = False,
        serves: Sequence[str] = (),
        keys: Keys | None = None,
        anonymous: Caller | None = None,
        clients: bool = False,
        permissions: Mapping[str, int] | None = None,
        probed: bool = True,
        flag: str = "--listen",
        options: Sequence[tuple[str, int]] = (),
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        health: HealthServicer | None = None,
    ) -> None:
        self._tls, rules = _secured(settings, name)
        if not public and settings.mesh_token is None and self._tls is None and not is_loopback(listen):
            raise StartupError(
                f"{name}: refusing to listen on {listen} without a mesh token; set APPORTION_MESH_TOKEN or listen on 127.0.0.1"
            )
        if keys is None:
            keys = Keys()
            keys.replace({})
        local = LOCAL if settings.mesh_token is None and self._tls is None else None
        if not public and settings.mesh_token is not None:
            keys.add(settings.mesh_token, caller_of(Role.MESH, name="token"))
        self._tokens = _tokens(rules, keys) if rules is not None else None
        self._clients = self._tls is not None and (clients or not public)
        self.guard = Guard(
            keys,
            without=anonymous if public else local,
            public=public,
            tokens=self._tokens,
            certificates=self._clients,
            revoked=_revoked(settings, self._tls, name) if self._clients else None,
            more=permissions,
        )
        self._serves, self._work = serves, set[asyncio.Task[None]]()
        self.name, self._settings, self._listen, self._flag = name, settings, listen, flag
        self._public = public
        self._options = merged(SERVER_OPTIONS, [*_chosen(settings), *options])
        self.grpc = grpc.aio.server(options=self._options, interceptors=[Refusals(self.guard), *interceptors])
        self.health = health or HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.grpc)
        plain = settings.health_listen if probed else None
        self._probes = Probes(plain, [Refusals(self.guard)]) if plain else None
        self.address = self.probes_address = ""

    async def start(self) -> str:
        """Binds and serves; returns HOST:PORT with the port that was got."""
        host = self._listen.rpartition(":")[0]
        problem = None if dict(self._options).get("grpc.so_reuseport") else unbindable(self._listen)
        port = 0
        if problem is None:
            try:
                port = self._bind()
            except RuntimeError as error:
                log.debug("bind failed", error=str(error))
        if port == 0:
            raise StartupError(
                f"{self.name}: cannot listen on {self._listen}: {problem or IN_USE} choose another with {self._flag}"
            )
        self.address = f"{host}:{port}"
        if self._probes is not None:
            self.probes_address = await self._probed(self._probes)
        if self._settings.reflection:
            reflection.enable_server_reflection((*self._serves, HEALTH, reflection.SERVICE_NAME), self.grpc)
        # Whether this process answers at all, whatever it waits for: what a liveness probe may depend on.
        await self.set_serving(True, health.SERVICE_NAME)
        await self.grpc.start()
        if self._tokens is not None:
            self._work.add(asyncio.create_task(self._tokens.run()))
        return self.address

    async def _probed(self, probes: Probes) -> str:
        problem = unbindable(probes.listen)
        if problem is not None:
            raise StartupError(
                f"{self.name}: cannot listen on {probes.listen}: {problem} choose another with --health-listen"
            )
        return await probes.start()

    def _bind(self) -> int:
        if self._tls is None:
            return self.grpc.add_insecure_port(self._listen)
        return self.grpc.add_secure_port(self._listen, self._tls.server(clients=self._clients))

    async def set_serving(self, serving: bool, service: str = "") -> None:
        """Says to health checks whether `service` ("" for the whole) can serve."""
        state = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for told in self._told():
            await told.set(service, state)

    async def say_leaving(self) -> None:
        """Says NOT_SERVING to health checks from now on, whatever is set afterwards."""
        for told in self._told():
            await told.enter_graceful_shutdown()

    def _told(self) -> tuple[HealthServicer, ...]:
        return (self.health,) if self._probes is None else (self.health, self._probes.health)

    async def stop(self) -> None:
        """Drains: health says NOT_SERVING, and after `drain_notice_s` calls in flight get `drain_s`, then the port closes.

        Where the server is public and speaks no TLS, callers are asked to go elsewhere first, so that none of their calls is
        lost.
        """
        await self.say_leaving()
        await asyncio.sleep(self._settings.drain_notice_s)
        ends = time.monotonic() + self._settings.drain_s
        # Inside TLS only gRPC itself can write.
        if self._public and self.address and self._tls is None:
            await send_away(int(self.address.rpartition(":")[2]), self._settings.drain_s / 2)
        await self.grpc.stop(max(0.0, ends - time.monotonic()))
        if self._probes is not None:
            await self._probes.stop()
        for task in self._work:
            task.cancel()


def _secured(settings: ServiceSettings, name: str) -> tuple[Tls | None, TokenRules | None]:
    """What the settings say of TLS and tokens. Raises StartupError where they do not go together."""
    try:
        tls, rules = settings.tls, settings.token_rules
        if tls is not None:
            tls.check()
        return tls, rules
    except ValueError as error:
        raise StartupError(f"{name}: {error}") from None
    except OSError as error:
        raise StartupError(f"{name}: tls: cannot read {error.filename}: {error.strerror}") from None


def _tokens(rules: TokenRules, keys: Keys) -> Any:
    """Imported where it is needed: most processes take no tokens."""
    from services.common.access.tokens import Tokens

    return Tokens(rules, keys)


def _chosen(settings: ServiceSettings) -> list[tuple[str, int]]:
    """What the settings say, in gRPC's words."""
    return [
        ("grpc.so_reuseport", int(settings.reuse_port == "on")),
        ("grpc.max_concurrent_streams", settings.max_connection_streams),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.server_handshake_timeout_ms", int(settings.handshake_s * 1000)),
        ("grpc.keepalive_time_ms", int(settings.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(settings.keepalive_timeout_s * 1000)),
        ("grpc.http2.ping_timeout_ms", int(settings.keepalive_timeout_s * 1000)),
        # As often as there is nothing else to say: who reads no answers gets none.
        ("grpc.http2.max_pings_without_data", 0),
        # At the limit gRPC would refuse calls by chance that the caller has sent as one that ended made room for them
        # (measured: 66 of 100 beyond a limit of 100, and none without).
        ("grpc.http.overload_protection", 0),
        ("grpc.max_metadata_size", settings.max_header_bytes),
        # gRPC would refuse by chance between the two, the more probably the larger.
        ("grpc.absolute_max_metadata_size", settings.max_header_bytes),
    ]


def unbindable(address: str) -> str | None:
    """Why nobody can listen on HOST:PORT now; None: somebody can.

    Asked before gRPC is: that writes a line of its own to standard error, and keeps the reason to itself.
    """
    host, _, port = address.rpartition(":")
    problem: OSError | None = None
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        found, problem = [], error
    for family, kind, protocol, _, target in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                # As gRPC does: connections that have just ended do not hold their port.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(target)
                return None
        except OSError as error:
            problem = error
    if problem is None or problem.errno == errno.EADDRINUSE:
        return IN_USE
    return f"{problem.strerror};"


def merged(base: Sequence[tuple[str, int]], more: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Channel or server options, later ones winning."""
    return list({**dict(base), **dict(more)}.items())


def _revoked(settings: ServiceSettings, tls: Tls | None, name: str) -> Revocations | None:
    if settings.tls_crl is None or tls is None:
        return None
    try:
        return Revocations(settings.tls_crl.expanduser(), tls.authority)
    except (OSError, ValueError) as error:
        raise StartupError(f"{name}: tls_crl: {error}") from None
