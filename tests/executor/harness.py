"""An executor over real gRPC on a free port, with a worker of the test's choice, and a frontend to talk to it."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from fake_worker import FakeWorker

from gpu_sharing.tensors import Signature
from gpu_sharing.worker.config import WorkerConfig
from services._proto.apportion.v1 import executor_pb2 as pb
from services._proto.apportion.v1.executor_pb2_grpc import ExecutorServiceStub, add_ExecutorServiceServicer_to_server
from services._proto.inference.grpc_service_pb2 import ModelInferRequest
from services.common.channel import connect
from services.common.server import Server
from services.common.telemetry import Tracer
from services.executor.cache import ArtefactCache
from services.executor.calls import Calls
from services.executor.core.replica_events import Fetched, Wanted
from services.executor.core.watchdog import Patience
from services.executor.executor import Executor
from services.executor.servicer import ExecuteService
from services.executor.settings import ExecutorSettings
from services.executor.spans import Spans

SETTINGS: dict[str, Any] = {"listen": "127.0.0.1:0", "executor_id": "e1", "load_interval_ms": 5, "drain_s": 0.2}


class House:
    """An executor with one lane."""

    def __init__(self, executor: Executor, servicer: ExecuteService, spans: Spans, address: str) -> None:
        self.executor, self.servicer, self.spans, self.address = executor, servicer, spans, address
        self.workers: list[FakeWorker] = []

    @property
    def worker(self) -> FakeWorker:
        return self.workers[-1]

    def load(self, replica: int, *, model: str = "echo", tenant: str = "acme", **more: Any) -> None:
        wanted = Wanted(replica, tenant, model, 1, "sha256:" + "0" * 64, 1, 0, 1000, 1, "onnx", **more)
        self.executor.handle(wanted)
        self.executor.handle(Fetched(replica, more.pop("path", "/nowhere"), "onnx"))

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not true():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def serving(self, *replicas: int) -> None:
        await self.until(lambda: all(each in self.executor.calls.serving for each in replicas))


class _Nothing(ArtefactCache):
    """A cache that never gets anything: tests say themselves when an artefact is there."""

    async def fetch(self, *_: Any) -> Path:
        return await asyncio.get_running_loop().create_future()


@asynccontextmanager
async def house(
    *,
    signatures: dict[str, Signature] | None = None,
    start_worker: Any = None,
    tracer: Tracer | None = None,
    **settings: Any,
) -> AsyncIterator[House]:
    workers: list[FakeWorker] = []

    async def fake(config: WorkerConfig, *, on_events: Any, **_: Any) -> Any:
        workers.append(FakeWorker(on_events, signatures or {}))
        return workers[-1]

    config = ExecutorSettings(**{**SETTINGS, **settings})
    executor = Executor(
        {0: WorkerConfig((0,), 64 << 20, 64 << 20)},
        _Nothing(Path("/nonexistent"), 0),
        None,  # type: ignore[arg-type]
        load_interval_s=config.load_interval_ms / 1000,
        start_worker=start_worker or fake,
        patience=Patience(int(config.watchdog_s * 1e9), int(config.load_patience_s * 1e9)),
        opens_regions=config.cuda_shared_memory != "off",
    )
    spans = Spans(tracer or Tracer("executor", None), "e1", "i1", hold_ns=10**10, capacity=100)
    executor.calls = Calls(config.inline_bytes, spans, executor.loads.changed, most=2 * config.queue_limit)
    executor.calls.regions = executor.regions
    servicer = ExecuteService(config, "i1", executor.calls, spans, executor.tenants)
    executor.sessions = lambda: servicer.sessions
    server = Server(config, config.listen, name="executor")
    add_ExecutorServiceServicer_to_server(servicer, server.grpc)
    built = House(executor, servicer, spans, await server.start())
    built.workers = workers
    executor.start()
    try:
        yield built
    finally:
        await executor.stop(1.0)
        await server.stop()
        executor.replicas.check_invariants()


class Frontend:
    """Both streams of one session. results: by call; chunks: payloads by call; everything: messages as they came."""

    def __init__(self, address: str, *, credit: int = 64 << 20) -> None:
        self.session, self.credit = secrets.token_bytes(16), credit
        self._channels = [connect(address), connect(address)]
        self.calls = itertools.count(1)
        self.results: dict[int, pb.Result] = {}
        self.chunks: dict[int, bytearray] = {}
        self.order: list[int] = []
        self.granted: dict[str, int] = {}
        self.loads: dict[int, pb.Load] = {}
        self._came = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.streams: list[Any] = []
        self.errors: list[grpc.aio.AioRpcError] = []

    async def __aenter__(self) -> Frontend:
        self.primary = await self._open(self._channels[0], pb.STREAM_KIND_PRIMARY)
        self.bulk = await self._open(self._channels[1], pb.STREAM_KIND_BULK)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        for stream in self.streams:
            stream.cancel()
        for channel in self._channels:
            await channel.close()

    async def _open(self, channel: grpc.aio.Channel, kind: int) -> Any:
        stream = ExecutorServiceStub(channel).Execute()
        self.streams.append(stream)
        hello = pb.ExecuteHello(frontend_id="f1", session=self.session, kind=kind, tenant_credit_bytes=self.credit)
        await stream.write(pb.ExecuteRequest(hello=hello))
        self.welcome = (await stream.read()).welcome
        self._tasks.append(asyncio.create_task(self._read(stream)))
        return stream

    async def _read(self, stream: Any) -> None:
        try:
            while (response := await stream.read()) is not grpc.aio.EOF:
                for result in response.results:
                    assert result.call not in self.results, "two results for one call"
                    self.results[result.call] = result
                for chunk in response.chunks:
                    got = self.chunks.setdefault(chunk.call, bytearray())
                    assert chunk.offset == len(got), "chunks out of order"
                    got += chunk.data
                    self.order.append(chunk.call)
                for credit in response.credits:
                    self.granted[credit.tenant] = self.granted.get(credit.tenant, 0) + credit.bytes
                for load in response.loads:
                    self.loads[load.replica_id] = load
                self._came.set()
        except grpc.aio.AioRpcError as error:
            self.errors.append(error)
            self._came.set()

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not true():
                self._came.clear()
                await self._came.wait()

    async def send(self, **fields: Any) -> None:
        await self.primary.write(pb.ExecuteRequest(**fields))

    async def infer(self, payload: bytes, *, replica: int = 1, **more: Any) -> int:
        call = next(self.calls)
        await self.send(infers=[pb.Infer(call=call, replica_id=replica, payload=payload, **more)])
        return call

    async def infer_bulk(self, payload: bytes, *, replica: int = 1, chunk: int = 256 << 10, **more: Any) -> int:
        call = next(self.calls)
        infer = pb.Infer(call=call, replica_id=replica, bulk_bytes=len(payload), tenant="acme", **more)
        await self.send(infers=[infer])
        for offset in range(0, len(payload), chunk):
            part = pb.Chunk(call=call, offset=offset, data=payload[offset : offset + chunk])
            await self.bulk.write(pb.ExecuteRequest(chunks=[part]))
        return call

    async def result(self, call: int) -> pb.Result:
        await self.until(lambda: call in self.results or self.errors)
        return self.results[call]

    async def payload(self, call: int) -> bytes:
        """A result's payload, however it came."""
        result = await self.result(call)
        if result.WhichOneof("outcome") != "bulk_bytes":
            return result.payload
        await self.until(lambda: len(self.chunks.get(call, b"")) == result.bulk_bytes)
        return bytes(self.chunks[call])


def request(x: np.ndarray, *, name: str = "x", request_id: str = "", outputs: tuple[str, ...] = ()) -> bytes:
    """An inference.ModelInferRequest with one raw input."""
    message = ModelInferRequest(model_name="echo", id=request_id)
    message.inputs.add(name=name, datatype="FP32", shape=x.shape)
    for output in outputs:
        message.outputs.add(name=output)
    message.raw_input_contents.append(x.astype("<f4").tobytes())
    return message.SerializeToString()
