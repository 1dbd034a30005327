"""What connections may do: how many there are, how they begin and stay, calls in progress, and the size of their headers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import grpc
import pytest

from bench.http2 import DATA, END_STREAM, PREFACE, Connection, call, frame, message, settings
from services._proto.apportion.v1 import common_pb2
from services.common.server import Server
from services.common.settings import ServiceSettings

METHOD = "/test.Echo/Echo"


class Echo:
    """A server whose answers wait until they are let go."""

    def __init__(self) -> None:
        self.in_hand = self.most = 0
        self.go = asyncio.Event()

    async def echo(self, request: bytes, _context: object) -> bytes:
        self.in_hand += 1
        self.most = max(self.most, self.in_hand)
        await self.go.wait()
        self.in_hand -= 1
        return request


@pytest.fixture
async def serve() -> AsyncIterator:
    stopping = []

    async def start(echo: Echo, **settings: object) -> str:
        allowed = {METHOD: common_pb2.PERMISSION_MESH}
        given = ServiceSettings(drain_s=0.2, **settings)
        server = Server(given, "127.0.0.1:0", name="echo", permissions=allowed)
        handler = {"Echo": grpc.unary_unary_rpc_method_handler(echo.echo)}
        server.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handler),))
        stopping.append(server)
        return await server.start()

    yield start
    for server in stopping:
        await server.stop()


async def test_a_connection_has_so_many_calls_in_progress_and_the_others_wait_their_turn(serve) -> None:
    echo = Echo()
    address = await serve(echo, max_connection_streams=3)
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(METHOD)
        calls = [asyncio.ensure_future(call(b"x", timeout=10)) for _ in range(10)]
        async with asyncio.timeout(5):
            while echo.in_hand < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert echo.in_hand == 3
        echo.go.set()
        assert await asyncio.gather(*calls) == [b"x"] * 10
    assert echo.most == 3


@pytest.mark.parametrize(("size", "fits"), [(1000, True), (4000, False)])
async def test_metadata_beyond_the_limit_is_refused(serve, size, fits) -> None:
    echo = Echo()
    echo.go.set()
    address = await serve(echo, max_header_bytes=2048)
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(METHOD)(b"x", timeout=5, metadata=(("padding", "p" * size),))
        if fits:
            assert await call == b"x"
            return
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await channel.unary_unary(METHOD)(b"x", timeout=5) == b"x"


@pytest.mark.parametrize("wrong", [{"max_connection_streams": 0}, {"max_header_bytes": 10}])
def test_limits_that_nobody_could_keep_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ServiceSettings(**wrong)


CLOSE_WAIT = 8
"""The state of a TCP connection that the other side has closed, whatever there is still to be read."""


async def closed(connection: Connection, *, within_s: float) -> bool:
    """Whether the server closes a connection in that time. Nothing is read."""
    for _ in range(int(within_s / 0.05)):
        if connection.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] >= CLOSE_WAIT - 1:
            return True
        await asyncio.sleep(0.05)
    return False


async def test_connections_beyond_the_limit_are_closed_and_the_others_are_served(serve) -> None:
    echo = Echo()
    echo.go.set()
    address = await serve(echo, max_connections=2)
    async with grpc.aio.insecure_channel(address) as channel:
        assert await channel.unary_unary(METHOD)(b"x", timeout=5) == b"x"
        second = Connection(address)
        assert not await closed(second, within_s=0.3)
        third = Connection(address)
        assert await closed(third, within_s=5)
        assert await channel.unary_unary(METHOD)(b"y", timeout=5) == b"y"
        second.close()
        third.close()


@pytest.mark.parametrize("sent", [b"", PREFACE[:5], PREFACE], ids=["nothing", "a part", "no settings"])
async def test_a_connection_that_never_gets_to_speak_is_closed(serve, sent: bytes) -> None:
    connection = Connection(await serve(Echo(), handshake_s=0.5))
    if sent:
        connection.send(sent)
    assert await closed(connection, within_s=5)
    connection.close()


async def test_a_caller_that_gives_no_sign_of_life_loses_its_connection_and_its_calls(serve) -> None:
    echo = Echo()
    address = await serve(echo, keepalive_s=1, keepalive_timeout_s=1)
    connection = Connection(address)
    connection.send(PREFACE + settings())
    connection.send(call(1, METHOD, address) + frame(DATA, END_STREAM, 1, message(b"x")))
    async with asyncio.timeout(5):
        while not echo.in_hand:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await closed(connection, within_s=8)
    connection.close()


@pytest.mark.slow
async def test_a_caller_that_waits_long_for_its_answer_keeps_its_connection(serve) -> None:
    echo = Echo()
    address = await serve(echo, keepalive_s=1, keepalive_timeout_s=1)
    async with grpc.aio.insecure_channel(address) as channel:
        waiting = asyncio.ensure_future(channel.unary_unary(METHOD)(b"x", timeout=10))
        await asyncio.sleep(3.5)
        assert not waiting.done()
        echo.go.set()
        assert await waiting == b"x"
