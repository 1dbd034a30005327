"""The server that every service runs on: refusals, the mesh token, ports, health, readiness."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services._proto.apportion.v1 import common_pb2
from services.common.channel import connect
from services.common.errors import Reason, Refusal, invalid
from services.common.process import StartupError, first_done, write_ready
from services.common.server import SERVER_OPTIONS, Server, merged
from services.common.settings import ServiceSettings
from services.common.status import from_rpc_error

KINDS = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")


async def _act(request: bytes, context: Any) -> bytes:
    if request == b"refuse":
        raise invalid("name", "is wrong", given=3)
    if request == b"break":
        raise KeyError("a secret detail")
    if request == b"abort":
        await context.abort(grpc.StatusCode.ABORTED, "own words")
    return request


async def _first(requests: AsyncIterator[bytes]) -> bytes:
    async for request in requests:
        return request
    return b""


class Methods:
    """One method of each kind; each does what the first request says."""

    async def UnaryUnary(self, request: bytes, context: Any) -> bytes:
        return await _act(request, context)

    async def UnaryStream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        yield await _act(request, context)

    async def StreamUnary(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return await _act(await _first(requests), context)

    async def StreamStream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        yield await _act(await _first(requests), context)


def handlers() -> Any:
    methods, made = Methods(), {}
    for kind in KINDS:
        snake = {"UnaryUnary": "unary_unary", "UnaryStream": "unary_stream"}.get(kind)
        snake = snake or {"StreamUnary": "stream_unary", "StreamStream": "stream_stream"}[kind]
        made[kind] = getattr(grpc, f"{snake}_rpc_method_handler")(getattr(methods, kind))
    return grpc.method_handlers_generic_handler("test.Room", made)


async def started(**more: Any) -> Server:
    allowed = {f"/test.Room/{kind}": common_pb2.PERMISSION_MESH for kind in KINDS}
    server = Server(ServiceSettings(drain_s=0.1, **more), "127.0.0.1:0", name="room", permissions=allowed)
    server.grpc.add_generic_rpc_handlers((handlers(),))
    await server.start()
    await server.set_serving(True)
    return server


async def call(channel: grpc.aio.Channel, kind: str, request: bytes) -> bytes:
    """The last answer."""
    path = f"/test.Room/{kind}"
    if kind == "UnaryUnary":
        return await channel.unary_unary(path)(request)
    if kind == "StreamUnary":
        return await channel.stream_unary(path)(iter([request]))
    answers = (
        channel.unary_stream(path)(request) if kind == "UnaryStream" else channel.stream_stream(path)(iter([request]))
    )
    return [answer async for answer in answers][-1]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refusal_becomes_its_status_and_the_next_call_is_served(kind: str) -> None:
    server = await started()
    async with connect(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, kind, b"refuse")
        refusal = from_rpc_error(caught.value)
        assert refusal is not None
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (refusal.reason, refusal.field, refusal.facts) == (Reason.FIELD_INVALID, "name", {"given": "3"})
        assert await call(channel, kind, b"fine") == b"fine"
    await server.stop()


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unexpected_error_becomes_internal_without_its_details_and_the_process_stays_up(kind: str) -> None:
    server = await started()
    async with connect(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, kind, b"break")
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in (caught.value.details() or "")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, kind, b"abort")
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.ABORTED, "own words")
        assert await call(channel, kind, b"fine") == b"fine"
    await server.stop()


CALLER = """
import sys, grpc
_, address, token, request, calls = sys.argv
with grpc.insecure_channel(address) as channel:
    for _ in range(int(calls)):
        try:
            channel.unary_unary("/test.Room/UnaryUnary")(request.encode(), metadata=(("authorization", f"Bearer {token}"),))
        except grpc.RpcError:
            pass
"""


async def left_behind(address: str, token: str, request: str, calls: int = 50) -> float:
    """Objects that a call leaves to this process' collector."""
    gc.collect()
    gc.disable()
    try:
        arguments = (sys.executable, "-c", CALLER, address, token, request, str(calls))
        assert await (await asyncio.create_subprocess_exec(*arguments)).wait() == 0
        return gc.collect() / calls
    finally:
        gc.enable()


@pytest.mark.slow
async def test_a_call_that_is_refused_leaves_the_collector_no_more_than_one_that_is_answered() -> None:
    server = await started(mesh_token="right")
    answered = await left_behind(server.address, "right", "fine")
    assert await left_behind(server.address, "right", "refuse") < answered + 2, "by its method"
    assert await left_behind(server.address, "wrong", "fine") < answered + 2, "before its method"
    assert await left_behind(server.address, "right", "abort") > answered + 10, "what gRPC's own abort leaves is seen"
    await server.stop()


@pytest.mark.parametrize("kind", KINDS)
async def test_without_the_mesh_token_a_call_of_any_kind_is_refused(kind: str) -> None:
    server = await started(mesh_token="right")
    for token in (None, "wrong", "right and more"):
        async with connect(server.address, mesh_token=token) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(channel, kind, b"fine")
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            refusal = from_rpc_error(caught.value)
            assert refusal is not None
            assert refusal.reason is (Reason.KEY_UNKNOWN if token else Reason.KEY_MISSING)
    async with connect(server.address, mesh_token="right") as channel:
        assert await call(channel, kind, b"fine") == b"fine"
    await server.stop()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token", ["right", "wrong"])
async def test_a_call_that_is_refused_is_answered_with_its_status_and_no_message(kind: str, token: str) -> None:
    server = await started(mesh_token="right")
    async with connect(server.address, mesh_token=token) as channel:
        messages: list[Any] = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            # Called as a stream, which shows every message that comes.
            await drained(channel.stream_stream(f"/test.Room/{kind}")(iter([b"refuse"])), messages)
        expected = grpc.StatusCode.INVALID_ARGUMENT if token == "right" else grpc.StatusCode.UNAUTHENTICATED
        assert caught.value.code() is expected
        assert messages == ([b"first"] if token == "right" and kind.endswith("Stream") else [])
    await server.stop()


async def drained(call: Any, messages: list[Any]) -> None:
    """Reads until the call is over; raises its status."""
    while (message := await call.read()) is not grpc.aio.EOF:
        messages.append(message)


async def test_health_needs_no_token_and_follows_the_drain() -> None:
    server = await started(mesh_token="right")
    async with connect(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        check = await stub.Check(health_pb2.HealthCheckRequest())
        assert check.status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.create_task(server.stop())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await stopping


async def test_a_port_that_is_taken_is_one_line_with_the_flag_to_change() -> None:
    server = await started()
    second = Server(ServiceSettings(), server.address, name="room", flag="--query-listen")
    with pytest.raises(StartupError, match=r"room: cannot listen on .*in use.*--query-listen") as caught:
        await second.start()
    assert "\n" not in str(caught.value)
    await server.stop()


@pytest.mark.parametrize(
    ("listen", "says"),
    [("192.0.2.1:0", "Cannot assign requested address; choose"), ("nowhere.invalid:0", "not known; choose")],
)
async def test_an_address_that_nobody_can_listen_on_is_told_with_its_reason(listen: str, says: str) -> None:
    server = Server(ServiceSettings(mesh_token="secret"), listen, name="room")
    with pytest.raises(StartupError, match=rf"room: cannot listen on {listen}: .*{says} another with --listen"):
        await server.start()


async def test_grpc_says_nothing_of_its_own_when_a_port_is_taken(capfd: pytest.CaptureFixture[str]) -> None:
    server = await started()
    with pytest.raises(StartupError):
        await Server(ServiceSettings(), server.address, name="room").start()
    await server.stop()
    assert capfd.readouterr().err == ""


@pytest.mark.slow
async def test_a_silent_stream_outlives_the_pings_that_keep_it_up() -> None:
    """gRPC ends the connection of a client that pings more often than the server allows, and takes any option's name."""

    async def silent(request: bytes, context: Any) -> AsyncIterator[bytes]:
        # Two pings too many are forgiven, and none comes sooner than a second after the last.
        await asyncio.sleep(4)
        yield b"at last"

    (interval,) = [name for name, _ in SERVER_OPTIONS if "ping_interval" in name]
    allowed = {"/a.B/S": common_pb2.PERMISSION_MESH}
    server = Server(ServiceSettings(), "127.0.0.1:0", name="room", options=[(interval, 50)], permissions=allowed)
    handler = grpc.unary_stream_rpc_method_handler(silent)
    server.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", {"S": handler}),))
    pings = [("grpc.keepalive_time_ms", 150), ("grpc.http2.max_pings_without_data", 0)]
    async with connect(await server.start(), options=pings) as channel:
        assert [answer async for answer in channel.unary_stream("/a.B/S")(b"")] == [b"at last"]
    await server.stop()


async def test_a_caller_that_goes_away_ends_the_method_behind_its_stream() -> None:
    ended = asyncio.Event()

    async def endless(request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"more"
                await asyncio.sleep(0.005)
        finally:
            ended.set()

    allowed = {"/test.Room/Endless": common_pb2.PERMISSION_MESH}
    server = Server(ServiceSettings(drain_s=0.1), "127.0.0.1:0", name="room", permissions=allowed)
    methods = {"Endless": grpc.unary_stream_rpc_method_handler(endless)}
    server.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Room", methods),))
    await server.start()
    async with connect(server.address) as channel:
        call = channel.unary_stream("/test.Room/Endless")(b"")
        assert await call.read() == b"more"
        call.cancel()
        await asyncio.wait_for(ended.wait(), 10)
    await server.stop()


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.com:0"])
async def test_beyond_loopback_a_service_without_a_token_does_not_start(listen: str) -> None:
    with pytest.raises(StartupError, match="mesh token"):
        Server(ServiceSettings(), listen, name="room")
    Server(ServiceSettings(mesh_token="t"), listen, name="room")
    Server(ServiceSettings(), listen, name="room", public=True)


def test_later_options_win() -> None:
    assert merged([("a", 1), ("b", 2)], [("a", 3)]) == [("a", 3), ("b", 2)]


def test_the_ready_file_names_process_and_addresses(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    write_ready(ServiceSettings(ready_file=str(path)), listen="127.0.0.1:1")
    assert json.loads(path.read_text()) == {"pid": os.getpid(), "listen": "127.0.0.1:1"}
    assert list(tmp_path.iterdir()) == [path]


async def test_the_first_task_to_end_ends_the_others_and_its_error_is_told() -> None:
    cancelled = asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    async def fails() -> None:
        await asyncio.sleep(0)
        raise Refusal(Reason.NOT_SERVING, "over")

    with pytest.raises(Refusal, match="over"):
        await first_done(asyncio.create_task(waits()), asyncio.create_task(fails()))
    assert cancelled.is_set()


PROGRAM = """
import asyncio, sys
from services.common.process import StartupError, run, write_ready
from services.common.server import Server
from services.common.settings import ServiceSettings

async def main(stop):
    if sys.argv[1] == "fail":
        raise StartupError("room: no room")
    settings = ServiceSettings(drain_s=0.1)
    server = Server(settings, "127.0.0.1:0", name="room")
    print(await server.start(), flush=True)
    await stop.wait()
    await server.stop()
    print("drained", flush=True)

run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_with_success(number: signal.Signals) -> None:
    command = [sys.executable, "-c", PROGRAM, "serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("127.0.0.1:")
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "drained\n"), err


def test_a_service_that_cannot_start_says_so_in_one_line_and_exits_2() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, "fail"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "error: room: no room\n")
