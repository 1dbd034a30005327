"""Backoff stays within its bounds, and the mesh token goes with every kind of call."""

from __future__ import annotations

import itertools
import random
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.channel import backoff, connect


@given(st.integers(), st.floats(0.001, 1.0), st.floats(1.0, 60.0))
def test_a_backoff_grows_to_its_ceiling_and_no_further(seed: int, first_s: float, most_s: float) -> None:
    delays = list(itertools.islice(backoff(first_s=first_s, most_s=most_s, chance=random.Random(seed)), 40))
    ceiling = first_s
    for delay in delays:
        assert ceiling / 4 <= delay <= ceiling
        ceiling = min(most_s, ceiling * 2)
    assert ceiling == most_s


def test_a_fleet_does_not_come_back_as_one() -> None:
    tenth = [next(itertools.islice(backoff(chance=random.Random(seed)), 9, None)) for seed in range(50)]
    assert len(set(tenth)) > 40


async def _echoing_server() -> tuple[grpc.aio.Server, str]:
    """One method of each kind, which answers with the authorization it saw."""

    def seen(context: Any) -> bytes:
        return dict(context.invocation_metadata()).get("authorization", "").encode()

    async def unary(_: bytes, context: Any) -> bytes:
        return seen(context)

    async def stream(_: bytes, context: Any) -> Any:
        yield seen(context)

    server = grpc.aio.server()
    methods = {
        "UnaryUnary": grpc.unary_unary_rpc_method_handler(unary),
        "UnaryStream": grpc.unary_stream_rpc_method_handler(stream),
        "StreamUnary": grpc.stream_unary_rpc_method_handler(unary),
        "StreamStream": grpc.stream_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


@pytest.mark.parametrize(("token", "expected"), [("s3cret", b"Bearer s3cret"), (None, b"")])
async def test_calls_of_every_kind_carry_the_token(token: str | None, expected: bytes) -> None:
    server, address = await _echoing_server()
    async with connect(address, mesh_token=token) as channel:
        await channel.channel_ready()
        assert await channel.unary_unary("/test.Echo/UnaryUnary")(b"") == expected
        assert [m async for m in channel.unary_stream("/test.Echo/UnaryStream")(b"")] == [expected]
        assert await channel.stream_unary("/test.Echo/StreamUnary")(iter([b""])) == expected
        assert [m async for m in channel.stream_stream("/test.Echo/StreamStream")(iter([b""]))] == [expected]
    await server.stop(None)


async def test_the_token_joins_what_the_caller_sends_and_calls_can_be_written_to() -> None:
    server, address = await _echoing_server()
    async with connect(address, mesh_token="t") as channel:
        metadata = (("x-more", "1"),)
        call = channel.stream_stream("/test.Echo/StreamStream")(metadata=metadata)
        await call.write(b"")
        assert await call.read() == b"Bearer t"
        await call.done_writing()
        again = channel.unary_unary("/test.Echo/UnaryUnary")
        assert await again(b"", metadata=grpc.aio.Metadata(("x-more", "1")), timeout=5) == b"Bearer t"
    await server.stop(None)
