"""An executor, a scheduler and a registry that keep their contracts faithfully and hold every side to them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc

from services._proto.apportion.v1 import (
    common_pb2,
    executor_pb2,
    executor_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    scheduler_pb2,
    scheduler_pb2_grpc,
)
from services._proto.inference import grpc_service_pb2 as oip
from services.common.errors import Reason, Refusal
from services.common.status import refuse, to_status

INLINE_BYTES = 64 << 10
CHUNK_BYTES = 64 << 10
CREDIT_BYTES = 16 << 20
Answer = Callable[["FakeExecutor", executor_pb2.Infer, bytes], Awaitable[bytes | Refusal | None]]


async def echo(_executor: FakeExecutor, _infer: executor_pb2.Infer, payload: bytes) -> bytes:
    """Every input comes back as an output of the same name in capitals."""
    request = oip.ModelInferRequest.FromString(payload)
    response = oip.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    for tensor in request.inputs:
        response.outputs.add(name=tensor.name.upper(), datatype=tensor.datatype, shape=tensor.shape)
    response.raw_output_contents.extend(request.raw_input_contents)
    return response.SerializeToString()


class Session:
    """Both streams of one frontend."""

    def __init__(self, hello: executor_pb2.ExecuteHello) -> None:
        self.result_window = hello.tenant_credit_bytes
        self.primary: asyncio.Queue[executor_pb2.ExecuteResponse] = asyncio.Queue()
        self.bulk: asyncio.Queue[executor_pb2.ExecuteResponse] = asyncio.Queue()
        self.infers: dict[int, executor_pb2.Infer] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.chunks: dict[int, bytearray] = {}
        self.last_call = 0
        self.drawn: dict[str, int] = {}
        self.results_drawn: dict[str, int] = {}
        self.credit_came = asyncio.Event()
        self.announced = asyncio.Condition()


class FakeExecutor(executor_pb2_grpc.ExecutorServiceServicer):
    """Serves Execute. answer: what a request gets; None: nothing, ever. broken: rules the frontend broke."""

    def __init__(self, answer: Answer = echo, *, credit_bytes: int = CREDIT_BYTES, executor_id: str = "e1") -> None:
        self.answer, self.credit_bytes, self.executor_id = answer, credit_bytes, executor_id
        self.broken: list[str] = []
        self.infers: list[executor_pb2.Infer] = []
        self.messages = 0
        self.cancelled: list[int] = []
        self.verdicts: list[executor_pb2.Verdict] = []
        self.sessions: dict[bytes, Session] = {}
        self.statistics: list[executor_pb2.VersionStatistics] | None = []
        self.most_drawn = 0
        self.opens_regions = False
        self.regions: dict[str, executor_pb2.OpenRegionRequest] = {}
        self.refuses: Refusal | None = None
        self.opened = 0
        self.slow_for, self.let_open = "", asyncio.Event()
        self.credits_returned = 0
        self.server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ]
        )
        executor_pb2_grpc.add_ExecutorServiceServicer_to_server(self, self.server)
        self.address = ""

    async def start(self, address: str = "127.0.0.1:0") -> FakeExecutor:
        port = self.server.add_insecure_port(address)
        self.address = f"127.0.0.1:{port}"
        await self.server.start()
        return self

    async def stop(self) -> None:
        for session in self.sessions.values():
            for task in session.tasks.values():
                task.cancel()
        await self.server.stop(0)

    async def GetStatistics(
        self, request: executor_pb2.GetStatisticsRequest, context: Any
    ) -> executor_pb2.GetStatisticsResponse:
        if self.statistics is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "going")
            raise AssertionError
        told = [each for each in self.statistics if each.key.tenant == request.tenant]
        return executor_pb2.GetStatisticsResponse(incarnation="i", versions=told)

    async def OpenRegion(
        self, request: executor_pb2.OpenRegionRequest, context: Any
    ) -> executor_pb2.OpenRegionResponse:
        self._rule(request.session in self.sessions, "a region is bound to an open session")
        self.opened += 1
        if request.tenant == self.slow_for:
            await self.let_open.wait()
        if self.refuses is not None:
            return await refuse(context, self.refuses)
        self.regions[request.region] = request
        return executor_pb2.OpenRegionResponse(memory_bytes=request.byte_size)

    async def CloseRegion(
        self, request: executor_pb2.CloseRegionRequest, context: Any
    ) -> executor_pb2.CloseRegionResponse:
        self.regions.pop(request.region, None)
        return executor_pb2.CloseRegionResponse()

    async def Execute(self, requests: AsyncIterator[executor_pb2.ExecuteRequest], context: Any) -> AsyncIterator[Any]:
        first = await anext(aiter(requests))
        hello = first.hello
        self._rule(len(hello.session) == 16 and not first.infers, "the first message is hello alone")
        yield executor_pb2.ExecuteResponse(
            welcome=executor_pb2.ExecuteWelcome(
                executor_id=self.executor_id,
                incarnation="i",
                inline_bytes=INLINE_BYTES,
                tenant_credit_bytes=self.credit_bytes,
                opens_regions=self.opens_regions,
            )
        )
        primary = hello.kind == executor_pb2.STREAM_KIND_PRIMARY
        session = self.sessions.setdefault(hello.session, Session(hello))
        outbox = session.primary if primary else session.bulk
        reader = asyncio.ensure_future(self._read(requests, session, primary))
        try:
            while True:
                getter = asyncio.ensure_future(outbox.get())
                await asyncio.wait([getter, reader], return_when=asyncio.FIRST_COMPLETED)
                if reader.done():
                    getter.cancel()
                    reader.result()
                    return
                yield getter.result()
        finally:
            reader.cancel()

    async def _read(self, requests: Any, session: Session, primary: bool) -> None:
        async for message in requests:
            self._rule(not message.HasField("hello"), "one hello a stream")
            if primary:
                self.messages += 1
                self._rule(not message.chunks, "chunks go on the bulk stream")
                await self._take(message, session)
            else:
                self._rule(
                    not (message.infers or message.cancels or message.verdicts), "the bulk stream has chunks only"
                )
                for chunk in message.chunks:
                    await self._chunk(chunk, session)

    async def _take(self, message: executor_pb2.ExecuteRequest, session: Session) -> None:
        for infer in message.infers:
            self._rule(infer.call > session.last_call, "calls count up")
            session.last_call = infer.call
            self.infers.append(infer)
            session.infers[infer.call] = infer
            if infer.bulk_bytes:
                self._draw(infer, session)
            else:
                self._rule(len(infer.payload) <= INLINE_BYTES, "large payloads come as chunks")
                session.tasks[infer.call] = asyncio.ensure_future(self._run(session, infer, infer.payload))
        for cancel in message.cancels:
            self.cancelled.append(cancel.call)
            task = session.tasks.pop(cancel.call, None)
            if task is not None:
                task.cancel()
            elif session.chunks.pop(cancel.call, None) is not None:
                self._give_back(session, session.infers[cancel.call])
        self.verdicts.extend(message.verdicts)
        for credit in message.credits:
            self.credits_returned += credit.bytes
            session.results_drawn[credit.tenant] -= credit.bytes
            self._rule(session.results_drawn[credit.tenant] >= 0, "no more is granted than was drawn")
            session.credit_came.set()
        async with session.announced:
            session.announced.notify_all()

    def _draw(self, infer: executor_pb2.Infer, session: Session) -> None:
        drawn = session.drawn.get(infer.tenant, 0)
        fits = drawn == 0 or drawn + infer.bulk_bytes <= self.credit_bytes
        self._rule(fits, f"{infer.tenant!r} draws {infer.bulk_bytes} on top of {drawn}")
        session.drawn[infer.tenant] = drawn + infer.bulk_bytes
        self.most_drawn = max(self.most_drawn, session.drawn[infer.tenant])
        session.chunks[infer.call] = bytearray()

    def _give_back(self, session: Session, infer: executor_pb2.Infer) -> None:
        session.drawn[infer.tenant] -= infer.bulk_bytes
        credit = executor_pb2.Credit(tenant=infer.tenant, bytes=infer.bulk_bytes)
        session.primary.put_nowait(executor_pb2.ExecuteResponse(credits=[credit]))

    async def _chunk(self, chunk: executor_pb2.Chunk, session: Session) -> None:
        async with session.announced:
            await session.announced.wait_for(lambda: chunk.call <= session.last_call)
        buffer = session.chunks.get(chunk.call)
        if buffer is None:
            return
        self._rule(chunk.offset == len(buffer), "chunks come in order")
        buffer += chunk.data
        infer = session.infers[chunk.call]
        self._rule(len(buffer) <= infer.bulk_bytes, "no more bytes than were told")
        if len(buffer) == infer.bulk_bytes:
            del session.chunks[chunk.call]
            session.tasks[chunk.call] = asyncio.ensure_future(self._run(session, infer, bytes(buffer)))

    async def _run(self, session: Session, infer: executor_pb2.Infer, payload: bytes) -> None:
        try:
            answer = await self.answer(self, infer, payload)
        finally:
            session.tasks.pop(infer.call, None)
            if infer.bulk_bytes:
                self._give_back(session, infer)
        if isinstance(answer, Refusal):
            result = executor_pb2.Result(call=infer.call, status=to_status(answer).SerializeToString())
            session.primary.put_nowait(executor_pb2.ExecuteResponse(results=[result]))
        elif answer is not None and len(answer) <= INLINE_BYTES:
            result = executor_pb2.Result(call=infer.call, payload=answer, stages=executor_pb2.Stages(compute_ns=1))
            session.primary.put_nowait(executor_pb2.ExecuteResponse(results=[result]))
        elif answer is not None:
            await self._send_bulk(session, infer, answer)

    async def _send_bulk(self, session: Session, infer: executor_pb2.Infer, answer: bytes) -> None:
        tenant = infer.tenant or "default"
        while (drawn := session.results_drawn.get(tenant, 0)) and drawn + len(answer) > session.result_window:
            session.credit_came.clear()
            await session.credit_came.wait()
        session.results_drawn[tenant] = session.results_drawn.get(tenant, 0) + len(answer)
        result = executor_pb2.Result(call=infer.call, bulk_bytes=len(answer))
        # Either order is right: the streams are two connections. Here the first chunk goes first.
        for offset in range(0, len(answer), CHUNK_BYTES):
            chunk = executor_pb2.Chunk(call=infer.call, offset=offset, data=answer[offset : offset + CHUNK_BYTES])
            session.bulk.put_nowait(executor_pb2.ExecuteResponse(chunks=[chunk]))
            if offset == 0:
                session.primary.put_nowait(executor_pb2.ExecuteResponse(results=[result]))
            await asyncio.sleep(0)

    def report(self, replica_id: int, waiting: int, wait_us: int) -> None:
        load = executor_pb2.Load(replica_id=replica_id, waiting_requests=waiting, expected_wait_us=wait_us)
        for session in self.sessions.values():
            session.primary.put_nowait(executor_pb2.ExecuteResponse(loads=[load]))

    def _rule(self, kept: bool, rule: str) -> None:
        if not kept:
            self.broken.append(rule)


class FakeMesh(scheduler_pb2_grpc.SchedulerServiceServicer, registry_pb2_grpc.RegistryServiceServicer):
    """A scheduler and a registry on one port, whose watches say what they are told to."""

    def __init__(self) -> None:
        self.routes: asyncio.Queue[scheduler_pb2.WatchRoutesResponse] = asyncio.Queue()
        self.catalogue: asyncio.Queue[registry_pb2.WatchCatalogueResponse] = asyncio.Queue()
        self.asked: list[tuple[int, int]] = []
        self.request_reports: list[scheduler_pb2.ReportRequestsRequest] = []
        self.leases: list[scheduler_pb2.QuotaLease] = []
        self.epoch = 1
        self.compacted = False
        self.wishes: list[tuple[str, str, bool]] = []
        self.wish_refusal: Refusal | None = None
        self.revision = 10
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(self, self.server)
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(self, self.server)
        self.address = ""

    async def start(self) -> FakeMesh:
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()
        return self

    async def UpdateModel(self, request: registry_pb2.UpdateModelRequest, context: Any) -> Any:
        self.wishes.append((request.key.tenant, request.key.name, request.unloaded))
        refusal = self.wish_refusal
        if refusal is not None:
            return await refuse(context, refusal)
        self.revision += 1
        return registry_pb2.UpdateModelResponse(model=registry_pb2.Model(key=request.key, revision=self.revision))

    async def WatchRoutes(self, request: scheduler_pb2.WatchRoutesRequest, context: Any) -> AsyncIterator[Any]:
        self.asked.append((request.epoch, request.after_revision))
        if self.compacted and request.after_revision:
            await refuse(context, Refusal(Reason.REVISION_COMPACTED, "take a new snapshot"))
            return
        while True:
            yield await self.routes.get()

    async def ReportRequests(
        self, request: scheduler_pb2.ReportRequestsRequest, context: Any
    ) -> scheduler_pb2.ReportRequestsResponse:
        self.request_reports.append(request)
        return scheduler_pb2.ReportRequestsResponse(
            epoch=self.epoch,
            leases=self.leases,
            leases_serial=len(self.request_reports),
            lease_ms=3000 if self.leases else 0,
        )

    async def WatchCatalogue(self, request: registry_pb2.WatchCatalogueRequest, context: Any) -> AsyncIterator[Any]:
        while True:
            yield await self.catalogue.get()

    def tell_routes(self, routes: Iterable[scheduler_pb2.ModelRoute], revision: int = 1) -> None:
        snapshot = scheduler_pb2.RouteSnapshot(routes=routes, first_part=True, last_part=True)
        self.routes.put_nowait(scheduler_pb2.WatchRoutesResponse(epoch=1, revision=revision, snapshot=snapshot))

    def change_routes(
        self,
        routes: Iterable[scheduler_pb2.ModelRoute] = (),
        removed: Iterable[common_pb2.ModelKey] = (),
        revision: int = 2,
    ) -> None:
        changes = scheduler_pb2.RouteChanges(routes=routes, removed=removed)
        self.routes.put_nowait(scheduler_pb2.WatchRoutesResponse(epoch=1, revision=revision, changes=changes))

    def tell_tenants(
        self, tenants: Iterable[registry_pb2.Tenant] = (), models: Iterable[registry_pb2.Model] = ()
    ) -> None:
        snapshot = registry_pb2.CatalogueSnapshot(tenants=tenants, models=models, first_part=True, last_part=True)
        self.catalogue.put_nowait(registry_pb2.WatchCatalogueResponse(revision=1, snapshot=snapshot))


def route(
    name: str,
    addresses: Iterable[str],
    *,
    tenant: str = "default",
    objective_us: int | None = None,
    state: int = scheduler_pb2.VERSION_STATE_READY,
    message: str = "",
    first_replica: int = 1,
    model_revision: int = 0,
) -> scheduler_pb2.ModelRoute:
    """A route of one version, with a replica at each address."""
    tensor = common_pb2.TensorSpec(
        name="x", datatype="FP32", shape=[common_pb2.Dimension(), common_pb2.Dimension(size=16)], batch_axis=0
    )
    out = common_pb2.TensorSpec()
    out.CopyFrom(tensor)
    out.name = "X"
    told = scheduler_pb2.ModelRoute(
        key=common_pb2.ModelKey(tenant=tenant, name=name),
        traffic_class=common_pb2.TRAFFIC_CLASS_INTERACTIVE if objective_us else common_pb2.TRAFFIC_CLASS_BATCH,
        splits=[scheduler_pb2.RouteSplit(version=1, ppm=1_000_000)],
        model_revision=model_revision,
    )
    if objective_us is not None:
        told.slo.objective_us = objective_us
    version = told.versions.add(version=1, state=state, message=message)
    version.signature.CopyFrom(common_pb2.Signature(inputs=[tensor], outputs=[out], max_batch_size=8))
    for index, address in enumerate(addresses):
        version.replicas.add(replica_id=first_replica + index, executor_id=f"e{index + 1}", address=address)
    return told


def tenant(name: str, *keys: str) -> registry_pb2.Tenant:
    """A tenant with these API keys."""
    hashes = [hashlib.sha256(key.encode()).digest() for key in keys]
    return registry_pb2.Tenant(name=name, keys=[registry_pb2.ApiKey(id="k_1", sha256=digest) for digest in hashes])


def infer_request(
    model: str, content: bytes = b"\0" * 64, request_id: str = "", **parameters: Any
) -> oip.ModelInferRequest:
    """A request whose one input has these bytes. parameters: by kind, `timeout=("int64_param", 5)`."""
    request = oip.ModelInferRequest(model_name=model, id=request_id, raw_input_contents=[content])
    request.inputs.add(name="x", datatype="UINT8", shape=[len(content)])
    for name, (kind, value) in parameters.items():
        setattr(request.parameters[name], kind, value)
    return request


def at(parameters: Any, region: str, byte_size: int, offset: int = 0) -> None:
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_byte_size"].int64_param = byte_size
    if offset:
        parameters["shared_memory_offset"].int64_param = offset


def shared_request(byte_size: int, *, into: int | None = None, offset: int = 0, region: str = "r") -> Any:
    """A request whose one input lies in the region; the output, too, where `into` says at which offset."""
    request = infer_request("m", bytes(byte_size))
    del request.raw_input_contents[:]
    at(request.inputs[0].parameters, region, byte_size, offset)
    if into is not None:
        request.outputs.add(name="X")
        at(request.outputs[0].parameters, region, byte_size, into)
    return request
