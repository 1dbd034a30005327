"""Prometheus metrics over HTTP, in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from prometheus_client import REGISTRY, start_http_server
from prometheus_client.registry import Collector

from services.common.server import StartupError


def serve(listen: str) -> tuple[str, Callable[[], None]]:
    """Exposes the default registry at http://HOST:PORT/metrics.

    Returns HOST:PORT with the port that was got, and a function that closes it. Raises StartupError where it cannot listen.
    """
    host, _, port = listen.rpartition(":")
    try:
        server, thread = start_http_server(int(port), addr=host.strip("[]"), registry=REGISTRY)
    except OSError as error:
        raise StartupError(
            f"metrics: cannot listen on {listen}: {error.strerror or error}; choose another with --metrics-listen"
        ) from None

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join(2)

    return f"{host}:{server.server_port}", close


@contextmanager
def exposed(listen: str | None, *collectors: Collector) -> Iterator[dict[str, str]]:
    """Registers `collectors` and serves metrics while the block runs; yields {"metrics": HOST:PORT}, or nothing where
    `listen` is None."""
    with ExitStack() as stack:
        for collector in collectors:
            REGISTRY.register(collector)
            stack.callback(REGISTRY.unregister, collector)
        addresses = {}
        if listen is not None:
            addresses["metrics"], close = serve(listen)
            stack.callback(close)
        yield addresses
