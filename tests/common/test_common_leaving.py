"""A server that stops sends its callers to the others on its port, and loses none of their calls."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from services.common.server import Server
from services.common.settings import ServiceSettings

METHOD = "/test.Echo/Echo"
ALONE = [("grpc.use_local_subchannel_pool", 1)]
ROOT = Path(__file__).parents[2]
SERVER = """
import asyncio, os, sys
import grpc
from services.common.process import run, write_ready
from services.common.server import Server
from services.common.settings import ServiceSettings

async def echo(request, _context):
    await asyncio.sleep(float(request or b"0.002"))
    return str(os.getpid()).encode()

async def main(stop):
    settings = ServiceSettings(reuse_port="on", drain_s=3, ready_file=sys.argv[2])
    server = Server(settings, sys.argv[1], name="echo", public=True, permissions={"/test.Echo/Echo": 1})
    handler = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handler),))
    write_ready(settings, listen=await server.start())
    await stop.wait()
    await server.stop()

run(main)
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="callers are sent away on Linux alone")


class Fleet:
    """Servers on one port, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.address = folder, "127.0.0.1:0"
        self.processes: list[asyncio.subprocess.Process] = []
        self._number = 0

    async def start(self) -> None:
        self._number += 1
        ready = self._folder / f"{self._number}.ready"
        arguments = ("-c", SERVER, self.address, str(ready))
        self.processes.append(await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=ROOT))
        async with asyncio.timeout(30):
            while not ready.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        self.address = json.loads(ready.read_text())["listen"]

    async def stop_oldest(self) -> None:
        oldest = self.processes.pop(0)
        oldest.send_signal(signal.SIGTERM)
        assert await oldest.wait() == 0


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    made = Fleet(tmp_path)
    await made.start()
    await made.start()
    yield made
    while made.processes:
        await made.stop_oldest()


@pytest.mark.slow
async def test_no_call_is_lost_where_one_of_two_servers_on_a_port_stops(fleet: Fleet):
    codes: Counter[str] = Counter()
    over = asyncio.Event()

    async def caller() -> None:
        async with grpc.aio.insecure_channel(fleet.address, options=ALONE) as channel:
            call = channel.unary_unary(METHOD)
            while not over.is_set():
                try:
                    await call(b"", timeout=5)
                    codes["OK"] += 1
                except grpc.RpcError as error:
                    codes[f"{error.code().name}: {error.details()}"] += 1

    callers = [asyncio.create_task(caller()) for _ in range(8)]
    for _ in range(2):
        await asyncio.sleep(0.2)
        await fleet.stop_oldest()
        await fleet.start()
    over.set()
    await asyncio.gather(*callers)
    assert set(codes) == {"OK"}
    assert codes["OK"] > 100


async def test_a_call_in_flight_is_answered_by_the_server_that_has_it_and_the_next_one_by_another(fleet: Fleet):
    async with grpc.aio.insecure_channel(fleet.address, options=ALONE) as channel:
        call = channel.unary_unary(METHOD)
        first = await call(b"0", timeout=5)
        if int(first) != fleet.processes[0].pid:
            fleet.processes.reverse()
        in_flight = asyncio.ensure_future(call(b"0.6", timeout=5))
        await asyncio.sleep(0.1)
        stopping = asyncio.create_task(fleet.stop_oldest())
        await asyncio.sleep(0.2)
        assert await call(b"0", timeout=5) != first
        assert await in_flight == first
        await stopping


async def test_health_says_so_before_callers_are_sent_away():
    settings = ServiceSettings(drain_notice_s=0.3)
    server = Server(settings, "127.0.0.1:0", name="echo", public=True)
    await server.start()
    await server.set_serving(True)
    stopping = asyncio.create_task(server.stop())
    async with grpc.aio.insecure_channel(server.address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        # HealthCheckResponse: status = NOT_SERVING (2).
        assert await check(b"", timeout=5) == b"\x08\x02"
    await stopping
