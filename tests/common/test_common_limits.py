"""What one connection may do: calls in progress, and the size of their headers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

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
        server = Server(ServiceSettings(drain_s=0.2, **settings), "127.0.0.1:0", name="echo")
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
