"""Builds an executor, serves, and drains."""

from __future__ import annotations

import asyncio
import mmap
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import structlog

from gpu_sharing.devices.base import Device
from gpu_sharing.partitioning.layout import LayoutInvalid, default_layout, parse_layout
from gpu_sharing.partitioning.partitions import Partitions, parse_layouts, prepared
from gpu_sharing.units import Bytes
from gpu_sharing.worker.config import WorkerConfig
from services._proto.apportion.v1 import executor_pb2
from services._proto.apportion.v1.executor_pb2_grpc import add_ExecutorServiceServicer_to_server
from services._proto.apportion.v1.registry_pb2 import DownloadArtefactRequest
from services._proto.apportion.v1.registry_pb2_grpc import RegistryServiceStub
from services.common import attributes as names
from services.common import metrics
from services.common.channel import connect
from services.common.heap import keep_large_blocks
from services.common.process import StartupError, write_ready
from services.common.server import Server
from services.common.telemetry import Tracer, Value
from services.executor.attach import Attachment
from services.executor.books import Books
from services.executor.cache import ArtefactCache
from services.executor.calls import Calls
from services.executor.core.heads import Limits
from services.executor.core.watchdog import Patience
from services.executor.device import Serving
from services.executor.executor import Executor
from services.executor.metrics import ExecutorCollector
from services.executor.readiness import tell
from services.executor.reports import Reports
from services.executor.servicer import ExecuteService
from services.executor.settings import ExecutorSettings
from services.executor.spans import Spans

log = structlog.get_logger()

SERVICE = executor_pb2.DESCRIPTOR.services_by_name["ExecutorService"].full_name
MODEL_MEMORY_PERCENT = 70
"""Part of the device's memory that models may take where no limit is set; the rest is for tensors and processes."""
WORKERS_SHARE = 2
"""A replica's calls in hand, in multiples of those that may wait in its worker: where that does not answer, the rest wait here."""
SOON = (("grpc.min_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))
"""A scheduler that starts again waits for its executors before it tells anybody where models are."""
QUIET_S, QUIET_STEP_S = 0.3, 0.02
"""No call for so long: every frontend has heard that this executor drains."""


async def serve(settings: ExecutorSettings, stop: asyncio.Event) -> None:
    """Runs an executor until `stop` is set. Raises StartupError where it cannot start."""
    keep_large_blocks()
    async with AsyncExitStack() as stack:
        serving = await asyncio.to_thread(Serving, settings)
        stack.push_async_callback(serving.close)
        device = serving.device
        partitions = choose_partitions(settings, device)
        incarnation = secrets.token_hex(8)
        tracer = Tracer(
            "apportion-executor",
            settings.otlp_endpoint,
            resource={names.SERVICE_INSTANCE_ID: f"{settings.executor_id}/{incarnation}"},
            credentials=settings.credentials,
        )
        stack.push_async_callback(asyncio.to_thread, tracer.shutdown)
        executor, spans = _build(settings, serving, partitions, incarnation, tracer, stack)
        servicer = ExecuteService(settings, incarnation, executor.calls, spans, executor.tenants)
        executor.sessions = lambda: servicer.sessions
        server = Server(settings, settings.listen, name="executor", serves=(SERVICE,))
        add_ExecutorServiceServicer_to_server(servicer, server.grpc)  # type: ignore[no-untyped-call]
        stack.push_async_callback(executor.stop, settings.drain_s)
        address = await server.start()
        stack.push_async_callback(server.stop)
        executor.start()
        reports = Reports(
            executor,
            device,
            partitions,
            settings.executor_id,
            incarnation,
            _capacity(settings, device, partitions),
            quantum_ns=int((settings.quantum_ms or 0) * 1e6),
            arrival_order=settings.policy == "arrival_order",
        )
        scheduler = connect(settings.scheduler, to="scheduler", credentials=settings.credentials, options=SOON)
        stack.push_async_callback(scheduler.close)
        attachment = Attachment(
            scheduler,
            reports,
            settings.advertise or address,
            executor.changed,
            executor.handle,
            executor.set_layout,
            executor.forgetting.fold,
        )
        attaching = asyncio.create_task(attachment.run())
        stack.push_async_callback(_cancelled, attaching)
        watching = asyncio.create_task(serving.watch(executor.running))
        stack.push_async_callback(_cancelled, watching)
        addresses = stack.enter_context(metrics.exposed(settings, ExecutorCollector(executor, spans)))
        await server.set_serving(True)
        telling = asyncio.create_task(tell(server, attachment.attached, lambda: executor.phases))
        stack.push_async_callback(_cancelled, telling)
        write_ready(settings, listen=address, **addresses)
        await stop.wait()
        await _drain(executor, reports, attachment, server, settings.drain_s)
        for session in servicer.sessions:
            session.finish()


def choose_partitions(settings: ExecutorSettings, device: Device) -> Partitions:
    """The layouts that the device is prepared for. Raises StartupError, naming the setting, where one cannot be given."""
    units, cores = device.units(), settings.cores
    try:
        if settings.layouts.strip():
            return device.fitted(parse_layouts(settings.layouts, units))
        if cores.strip() != "auto":
            return device.fitted(prepared([parse_layout(cores, units, field="cores")], field="cores"))
        # On a GPU the services need no unit of the device.
        whole = (tuple(units),) if device.backend.startswith("cuda") else default_layout(units)
        return device.fitted(prepared([whole], field="cores"))
    except LayoutInvalid as error:
        raise StartupError(f"executor: {error}") from None


def _build(
    settings: ExecutorSettings,
    serving: Serving,
    partitions: Partitions,
    incarnation: str,
    tracer: Tracer,
    stack: AsyncExitStack,
) -> tuple[Executor, Spans]:
    cache = ArtefactCache(settings.cache, settings.cache_bytes)
    try:
        cache.open()
    except OSError as error:
        raise StartupError(f"executor: cache {settings.cache}: {error.strerror or error}") from None
    books = Books(settings.books_folder, settings.executor_id, incarnation)
    books.open()
    stack.callback(books.close)
    channel = connect(settings.registry, to="registry", credentials=settings.credentials)
    stack.push_async_callback(channel.close)
    registry = RegistryServiceStub(channel)  # type: ignore[no-untyped-call]

    async def download(tenant: str, digest: str) -> AsyncIterator[bytes]:
        async for part in registry.DownloadArtefact(DownloadArtefactRequest(tenant=tenant, digest=digest)):
            yield part.data

    executor = Executor(
        _workers(settings, serving, partitions),
        cache,
        download,
        start_worker=serving.starts(partitions),
        load_interval_s=settings.load_interval_ms / 1000,
        patience=Patience(int(settings.watchdog_s * 1e9), int(settings.load_patience_s * 1e9)),
        limits=Limits(settings.max_rows, settings.max_string_bytes),
        layouts=partitions.layouts,
        books=books,
        opens_regions=opens_regions(settings, serving.device),
    )
    spans = Spans(
        tracer,
        settings.executor_id,
        incarnation,
        hold_ns=int(settings.trace_hold_s * 1e9),
        capacity=settings.trace_hold_requests,
        lanes={number: lane_facts(serving.device, partitions, number) for number in range(len(partitions.lanes))},
        owners=lambda replica: executor.usage.models.get(replica),
    )
    executor.calls = Calls(
        settings.inline_bytes, spans, executor.loads.changed, most=WORKERS_SHARE * settings.queue_limit
    )
    executor.calls.regions = executor.regions
    return executor, spans


def opens_regions(settings: ExecutorSettings, device: Device) -> bool:
    """Whether workers open callers' device memory."""
    wanted = settings.cuda_shared_memory
    return wanted == "host" or (wanted == "on" and device.backend.startswith("cuda"))


def slow_copies(settings: ExecutorSettings) -> tuple[tuple[str, str, int], ...]:
    """The delays that tests have asked for: tenant, model, nanoseconds."""
    split = ((name.partition("/"), delay_ms) for name, delay_ms in settings.slow_copies_ms.items())
    return tuple((tenant, model, int(delay_ms * 1e6)) for (tenant, _, model), delay_ms in split)


def lane_facts(device: Device, partitions: Partitions, lane: int) -> dict[str, Value]:
    """What traces say of a lane."""
    return {
        names.EXECUTOR_BACKEND: device.backend,
        names.LANE_COMPUTE_UNITS: len(partitions.lanes[lane]),
        names.LANE_PARTITION: f"units {partitions.units(lane)}",
    }


def _memory(settings: ExecutorSettings, device: Device, partitions: Partitions) -> dict[int, Bytes]:
    """What models on each lane may take."""
    memory_bytes = settings.memory_bytes or device.memory_bytes * MODEL_MEMORY_PERCENT // 100
    return {lane: partitions.memory_bytes(lane, memory_bytes) for lane in range(len(partitions.lanes))}


def _host(settings: ExecutorSettings, partitions: Partitions) -> dict[int, Bytes]:
    """What weights of each lane's models may take beside the device: whole pages."""
    shares = {lane: partitions.memory_bytes(lane, settings.host_bytes) for lane in range(len(partitions.lanes))}
    return {lane: share // mmap.PAGESIZE * mmap.PAGESIZE for lane, share in shares.items()}


def _capacity(settings: ExecutorSettings, device: Device, partitions: Partitions) -> dict[int, Bytes]:
    """What models on each lane may take in all, as the scheduler is told: where more weights wait on the host than the device
    holds, so much."""
    host_bytes = _host(settings, partitions)
    return {lane: max(each, host_bytes[lane]) for lane, each in _memory(settings, device, partitions).items()}


def _workers(settings: ExecutorSettings, serving: Serving, partitions: Partitions) -> dict[int, WorkerConfig]:
    device = serving.device
    memory_bytes, host_bytes = _memory(settings, device, partitions), _host(settings, partitions)
    spare = set(device.units()) - {core for cores in partitions.lanes for core in cores} if serving.is_cpu else set()
    return {
        number: WorkerConfig(
            cores=cores,
            spare_cores=tuple(sorted(spare)),
            threads=None if serving.is_cpu else 1,
            environment=serving.environment(partitions, number, memory_bytes[number] or None),
            input_arena_bytes=settings.input_arena_bytes,
            output_arena_bytes=settings.output_arena_bytes,
            lane=number,
            prewarm=settings.prewarm,
            queue_limit=settings.queue_limit,
            memory_bytes=memory_bytes[number] or None,
            host_bytes=host_bytes[number],
            # As the scheduler reckons what a lane is worth.
            capacity=partitions.capacity(number),
            policy=settings.policy,
            quantum_ns=int(settings.quantum_ms * 1e6) if settings.quantum_ms is not None else None,
            hang_after_ns=int(settings.hang_after_s * 1e9),
            load_limit_ns=int(settings.load_limit_s * 1e9),
            slow_copies=slow_copies(settings),
            python_artefacts=settings.python_artefacts,
            device_regions=settings.cuda_shared_memory,
        )
        for number, cores in enumerate(partitions.lanes)
    }


async def _drain(executor: Executor, reports: Reports, attachment: Attachment, server: Server, drain_s: float) -> None:
    """Tells the scheduler and health checks, then waits for calls in hand and those still on their way, at most `drain_s`."""
    reports.draining = True
    executor.changed.set()
    await server.say_leaving()
    with suppress(TimeoutError):
        async with asyncio.timeout(drain_s):
            if attachment.attached.is_set():
                await attachment.said_goodbye.wait()
            quiet_s = 0.0
            while quiet_s < QUIET_S:
                await asyncio.sleep(QUIET_STEP_S)
                quiet_s = 0.0 if any(lane.calls for lane in executor.lanes.values()) else quiet_s + QUIET_STEP_S


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
