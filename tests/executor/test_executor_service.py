"""The whole service beside a scheduler and a registry of the test's own: attached, detached, drained."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from harness import Frontend, request
from tiny_models import doubling

from services._proto.apportion.v1 import common_pb2, registry_pb2, scheduler_pb2
from services._proto.apportion.v1.registry_pb2_grpc import (
    RegistryServiceServicer,
    add_RegistryServiceServicer_to_server,
)
from services._proto.apportion.v1.scheduler_pb2_grpc import (
    SchedulerServiceServicer,
    add_SchedulerServiceServicer_to_server,
)
from services._proto.inference.grpc_service_pb2 import ModelInferResponse
from services.common.channel import connect
from services.common.process import StartupError
from services.common.server import Server
from services.executor.attach import Attachment
from services.executor.serve import serve
from services.executor.settings import ExecutorSettings

SMALL = np.arange(6, dtype=np.float32).reshape(2, 3)


class Scheduler(SchedulerServiceServicer):
    """Keeps what executors say; sends them what the test puts into `commands`."""

    def __init__(self) -> None:
        self.hellos: list[scheduler_pb2.ExecutorHello] = []
        self.reports: list[scheduler_pb2.ExecutorReport] = []
        self.commands: asyncio.Queue[scheduler_pb2.AttachResponse] = asyncio.Queue()
        self.epoch = 1

    async def Attach(self, requests: Any, context: Any) -> AsyncIterator[scheduler_pb2.AttachResponse]:
        self.hellos.append((await anext(requests)).hello)
        yield scheduler_pb2.AttachResponse(
            welcome=scheduler_pb2.AttachWelcome(epoch=self.epoch, report_interval_ms=100)
        )
        reading = asyncio.create_task(self._read(requests))
        try:
            while True:
                yield await self.commands.get()
        finally:
            reading.cancel()

    async def _read(self, requests: Any) -> None:
        async for message in requests:
            self.reports.append(message.report)

    def state(self, replica: int) -> Any:
        """The last report of a replica."""
        found = [each for each in (self.reports[-1].replicas if self.reports else ()) if each.replica_id == replica]
        return found[0] if found else None


class Registry(RegistryServiceServicer):
    """Has artefacts by digest."""

    def __init__(self, *artefacts: bytes) -> None:
        self.artefacts = {"sha256:" + hashlib.sha256(data).hexdigest(): data for data in artefacts}

    async def DownloadArtefact(self, message: Any, context: Any) -> AsyncIterator[Any]:
        yield registry_pb2.DownloadArtefactResponse(data=self.artefacts[message.digest])


@asynccontextmanager
async def serving(add: Callable[[Any, grpc.aio.Server], None], servicer: Any, listen: str) -> AsyncIterator[str]:
    server = Server(ExecutorSettings(drain_s=0.0), listen, name="test")
    add(servicer, server.grpc)
    try:
        yield await server.start()
    finally:
        await server.stop()


def settings(tmp_path: Path, **more: Any) -> ExecutorSettings:
    defaults = {
        "listen": "127.0.0.1:0",
        "executor_id": "e1",
        "cache": tmp_path / "cache",
        "ready_file": str(tmp_path / "ready.json"),
        "drain_s": 1.0,
        "cores": "0",
    }
    return ExecutorSettings(**{**defaults, **more})


@asynccontextmanager
async def running(tmp_path: Path, **more: Any) -> AsyncIterator[dict[str, str]]:
    stop = asyncio.Event()
    ready = tmp_path / "ready.json"
    ready.unlink(missing_ok=True)
    task = asyncio.create_task(serve(settings(tmp_path, **more), stop))
    await until(lambda: ready.exists() or task.done())
    try:
        yield json.loads(ready.read_text()) if ready.exists() else {}
    finally:
        stop.set()
        await task


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def load(data: bytes, replica: int = 1) -> scheduler_pb2.AttachResponse:
    return scheduler_pb2.AttachResponse(
        load=scheduler_pb2.LoadReplica(
            replica_id=replica,
            key=common_pb2.ModelKey(tenant="acme", name="doubling"),
            version=2,
            digest="sha256:" + hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            config=registry_pb2.VersionConfig(max_batch_size=4).SerializeToString(),
            bandwidth=common_pb2.Share(millidevices=250),
        )
    )


async def test_a_replica_is_fetched_loaded_served_and_unloaded_as_the_scheduler_says(tmp_path: Path) -> None:
    scheduler, data = Scheduler(), doubling()
    async with (
        serving(add_SchedulerServiceServicer_to_server, scheduler, "127.0.0.1:0") as scheduler_at,
        serving(add_RegistryServiceServicer_to_server, Registry(data), "127.0.0.1:0") as registry_at,
        running(tmp_path, scheduler=scheduler_at, registry=registry_at, metrics_listen="127.0.0.1:0") as ready,
    ):
        await scheduler.commands.put(load(data))
        ready_state = scheduler_pb2.REPLICA_STATE_READY
        await until(lambda: (found := scheduler.state(1)) and found.state == ready_state)
        hello, report = scheduler.hellos[0], scheduler.state(1)
        assert (hello.executor_id, hello.address, hello.device.backend) == (
            "e1",
            ready["listen"],
            scheduler_pb2.BACKEND_CPU,
        )
        assert report.signature.max_batch_size == 4
        assert report.profile.points
        assert report.bandwidth.millidevices == 250
        async with Frontend(ready["listen"]) as frontend:
            response = ModelInferResponse.FromString(await frontend.payload(await frontend.infer(request(SMALL))))
            assert response.model_version == "2"
            assert np.array_equal(np.frombuffer(response.raw_output_contents[0], "<f4"), 2 * SMALL.ravel())
            await until(lambda: any(use.requests == 1 and use.device_ns for use in scheduler.reports[-1].usage))
            page = (await scraped(ready["metrics"])).decode()
            assert 'apportion_executor_requests_total{model="doubling",outcome="OK",replica="1"' in page
            assert 'apportion_executor_device_seconds_total{model="doubling",tenant="acme"}' in page
        unload = scheduler_pb2.UnloadReplica(replica_id=1, drain_us=10_000)
        await scheduler.commands.put(scheduler_pb2.AttachResponse(unload=unload))
        await until(lambda: scheduler.state(1) is None)
    assert scheduler.reports[-1].draining


async def scraped(address: str) -> bytes:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    page = await reader.read()
    writer.close()
    return page


async def test_requests_are_served_while_the_scheduler_is_away_and_a_new_one_learns_what_is_held(
    tmp_path: Path,
) -> None:
    data, listen = doubling(), "127.0.0.1:0"
    first, second = Scheduler(), Scheduler()
    async with serving(add_RegistryServiceServicer_to_server, Registry(data), "127.0.0.1:0") as registry_at:
        first_server = serving(add_SchedulerServiceServicer_to_server, first, listen)
        scheduler_at = await first_server.__aenter__()
        async with running(tmp_path, scheduler=scheduler_at, registry=registry_at) as ready:
            await first.commands.put(load(data))
            await until(lambda: first.state(1) and first.state(1).state == scheduler_pb2.REPLICA_STATE_READY)
            await first_server.__aexit__(None, None, None)
            async with Frontend(ready["listen"]) as frontend:
                await frontend.payload(await frontend.infer(request(SMALL)))
                async with serving(add_SchedulerServiceServicer_to_server, second, scheduler_at):
                    await until(lambda: second.hellos)
                    (held,) = second.hellos[0].report.replicas
                    assert (held.replica_id, held.state) == (1, scheduler_pb2.REPLICA_STATE_READY)
                    assert second.hellos[0].incarnation == first.hellos[0].incarnation


async def test_an_executor_starts_alone_and_waits_for_the_registry(tmp_path: Path) -> None:
    scheduler = Scheduler()
    async with (
        serving(add_SchedulerServiceServicer_to_server, scheduler, "127.0.0.1:0") as scheduler_at,
        running(tmp_path, scheduler=scheduler_at, registry="127.0.0.1:1"),
    ):
        await scheduler.commands.put(load(doubling()))
        await until(lambda: scheduler.state(1) and scheduler.state(1).stage == "waiting for the registry")
        assert scheduler.state(1).state == scheduler_pb2.REPLICA_STATE_LOADING


async def test_commands_of_an_older_scheduler_are_ignored() -> None:
    handled: list[Any] = []
    async with connect("127.0.0.1:1") as channel:
        attachment = Attachment(channel, None, "", asyncio.Event(), handled.append)  # type: ignore[arg-type]
        for epoch, expected in ((5, 1), (4, 1), (5, 2), (6, 3)):
            welcome = scheduler_pb2.AttachWelcome(epoch=epoch)
            attachment.take(scheduler_pb2.AttachResponse(welcome=welcome))
            attachment.take(load(b"x"))
            assert len(handled) == expected


@pytest.mark.parametrize(
    ("cores", "problem"), [("0;0", "given twice"), ("999", "core 999 is not one of"), ("x", "'x'")]
)
async def test_cores_that_cannot_be_given_end_the_start_with_one_line(tmp_path: Path, cores: str, problem: str) -> None:
    with pytest.raises(StartupError, match=problem):
        await serve(settings(tmp_path, cores=cores), asyncio.Event())
