"""Health without TLS on a port of its own: the same word, and nothing else."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services._proto.apportion.v1 import common_pb2
from services.cli.certs import issuing
from services.common.access.callers import Role
from services.common.process import StartupError
from services.common.server import Server
from services.common.settings import ServiceSettings

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
METHOD = "/test.Room/Method"


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probes") / "certs"
    issuing.begin(folder, days=1).issue(Role.SERVICE, "room", days=1)
    return folder


def secured(certs: Path, **more: Any) -> ServiceSettings:
    return ServiceSettings(tls_certificate=certs / "room.pem", tls_key=certs / "room.key", tls_ca=certs / "ca.pem", drain_s=0.1, **more)  # fmt: skip


async def _method(request: bytes, context: Any) -> bytes:
    return request


@pytest.fixture
async def server(certs: Path) -> AsyncIterator[Server]:
    """A server with certificates that answers probes without them."""
    server = Server(secured(certs, health_listen="127.0.0.1:0"), "127.0.0.1:0", name="room", permissions={METHOD: common_pb2.PERMISSION_PUBLIC})  # fmt: skip
    methods = {"Method": grpc.unary_unary_rpc_method_handler(_method)}
    server.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Room", methods),))
    await server.start()
    yield server
    await server.stop()


async def says(channel: grpc.aio.Channel, service: str = "") -> Any:
    """What health says of a service; the status' name where it says nothing."""
    try:
        asked = health_pb2.HealthCheckRequest(service=service)
        return (await health_pb2_grpc.HealthStub(channel).Check(asked, timeout=5)).status
    except grpc.aio.AioRpcError as error:
        return error.code().name


async def test_a_probe_without_tls_hears_what_health_says_over_tls(server: Server) -> None:
    async with grpc.aio.insecure_channel(server.probes_address) as probe:
        assert await says(probe, "grpc.health.v1.Health") == SERVING
        assert await says(probe, "room") == "NOT_FOUND"
        await server.set_serving(False, "room")
        assert await says(probe, "room") == NOT_SERVING
        await server.set_serving(True, "room")
        assert await says(probe, "room") == SERVING
        await server.say_leaving()
        assert await says(probe, "room") == NOT_SERVING
        await server.set_serving(True, "room")
        assert await says(probe, "room") == NOT_SERVING, "a service that leaves does not come back"


async def test_nothing_but_health_is_told_without_tls(server: Server) -> None:
    async with grpc.aio.insecure_channel(server.probes_address) as probe:
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await probe.unary_unary(METHOD)(b"", timeout=5)
        assert told.value.code() is grpc.StatusCode.UNIMPLEMENTED
    async with grpc.aio.insecure_channel(server.address) as plain:
        assert await says(plain) == "UNAVAILABLE"


async def test_a_port_for_probes_that_is_taken_is_told_with_its_flag(certs: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = f"127.0.0.1:{holder.getsockname()[1]}"
        server = Server(secured(certs, health_listen=taken), "127.0.0.1:0", name="room")
        with pytest.raises(StartupError, match=f"{taken}.*--health-listen"):
            await server.start()
        await server.stop()


async def test_no_other_port_is_opened_unless_it_is_asked_for(certs: Path) -> None:
    server = Server(secured(certs), "127.0.0.1:0", name="room")
    await server.start()
    assert server.probes_address == ""
    await server.stop()
