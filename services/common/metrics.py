"""Prometheus metrics over HTTP, in a thread. They tell of every tenant: beyond loopback, whoever scrapes shows a token."""

from __future__ import annotations

import hmac
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import REGISTRY, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from services.common.process import StartupError
from services.common.settings import ServiceSettings, is_loopback

DENIED = b"metrics need a token: authorization: Bearer TOKEN\n"


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Says nothing: each scrape would be a line."""


class _Server(ThreadingWSGIServer):
    """Threads that end with the process, for either family of addresses."""


def token_of(settings: ServiceSettings) -> str | None:
    """What whoever scrapes has to show; None: nothing. Raises StartupError where metrics would be open to a network."""
    assert settings.metrics_listen is not None
    if settings.metrics_token is not None or is_loopback(settings.metrics_listen):
        return settings.metrics_token
    if settings.mesh_token is None:
        raise StartupError(
            f"metrics: refusing to listen on {settings.metrics_listen} without a token; set APPORTION_METRICS_TOKEN or "
            "listen on 127.0.0.1"
        )
    return settings.mesh_token


def guarded(app: Any, token: str | None) -> Any:
    """The application, for those alone who show the token."""
    expected = f"Bearer {token}".encode()

    def answer(environment: dict[str, Any], start: Any) -> Any:
        shown = environment.get("HTTP_AUTHORIZATION", "").encode("latin-1", "replace")
        if token is None or hmac.compare_digest(shown, expected):
            return app(environment, start)
        start("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Length", str(len(DENIED)))])
        return [DENIED]

    return answer


def serve(listen: str, token: str | None = None) -> tuple[str, Callable[[], None]]:
    """Exposes the default registry at http://HOST:PORT/metrics, for those who show the token where there is one.

    Returns HOST:PORT with the port that was got, and a function that closes it. Raises StartupError where it cannot listen.
    """
    host, _, port = listen.rpartition(":")
    try:
        kind = type("_Family", (_Server,), {"address_family": family_of(host.strip("[]"), int(port))})
        app = guarded(make_wsgi_app(REGISTRY), token)
        server: Any = make_server(host.strip("[]"), int(port), app, kind, handler_class=_Silent)
        thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
    except OSError as error:
        raise StartupError(
            f"metrics: cannot listen on {listen}: {error.strerror or error}; choose another with --metrics-listen"
        ) from None

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join(2)

    return f"{host}:{server.server_port}", close


def family_of(host: str, port: int) -> socket.AddressFamily:
    """IPv4 or IPv6, as the host says. Raises OSError where it is no address."""
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]


@contextmanager
def exposed(settings: ServiceSettings, *collectors: Collector) -> Iterator[dict[str, str]]:
    """Registers `collectors` and serves metrics while the block runs; yields {"metrics": HOST:PORT}, or nothing where
    `metrics_listen` is None."""
    with ExitStack() as stack:
        for collector in collectors:
            REGISTRY.register(collector)
            stack.callback(REGISTRY.unregister, collector)
        addresses = {}
        if settings.metrics_listen is not None:
            addresses["metrics"], close = serve(settings.metrics_listen, token_of(settings))
            stack.callback(close)
        yield addresses
