"""Builds the frontend from its parts, serves, and drains."""

from __future__ import annotations

import asyncio
import os
import time

from services.common import attributes as names
from services.common import metrics
from services.common.access.callers import ANONYMOUS, Role, caller_of
from services.common.access.following import age
from services.common.access.keys import Keys
from services.common.channel import connect
from services.common.heap import keep_large_blocks
from services.common.otlp_metrics import MetricsExporter
from services.common.process import write_ready
from services.common.server import Server
from services.common.telemetry import PAUSE_S, Tracer
from services.frontend.accounting import Accounts
from services.frontend.core.held import Held
from services.frontend.core.retries import Retries
from services.frontend.core.routing import RoutingTable
from services.frontend.core.wire import Limits
from services.frontend.device_regions import DeviceRegions
from services.frontend.forward import Links
from services.frontend.health import ModelHealth
from services.frontend.inference import Inference
from services.frontend.measures import Measures
from services.frontend.memory import MemoryService
from services.frontend.quotas import Quotas
from services.frontend.regions import Regions
from services.frontend.reporting import RequestReports
from services.frontend.repository import Repository, Wishes
from services.frontend.servicer import SERVICE, Describer, handlers
from services.frontend.settings import FrontendSettings
from services.frontend.shared import SharedMemory
from services.frontend.statistics import Statistics
from services.frontend.stream import Bounds, Streams
from services.frontend.watches import CatalogueWatch, RoutesWatch

READ_TIMES = 2
"""A request up to this many times the limit gets a typed refusal; beyond, gRPC itself answers before it has read it."""
MOST_READ_BYTES = (1 << 31) - 1


class Frontend:
    """One frontend process: what it knows, whom it talks to, and its server."""

    def __init__(self, settings: FrontendSettings) -> None:
        self.settings = settings
        self.keys = Keys(most_age_s=settings.keys_max_age_s)
        frontend_id = f"frontend-{os.urandom(4).hex()}"
        self.tracer = Tracer(
            "apportion-frontend",
            settings.otlp_endpoint,
            resource={names.SERVICE_INSTANCE_ID: frontend_id},
            credentials=settings.credentials,
        )
        self.accounts = Accounts(self.tracer, settings.trace_sample, settings.trace_samples)
        self.links = Links(frontend_id, settings.tenant_credit_bytes, settings.credentials)
        self.table = RoutingTable(self.links.state)
        self.links.reports = self.table.report
        self._channels = [
            connect(address, to=name, credentials=settings.credentials)
            for name, address in (("registry", settings.registry), ("scheduler", settings.scheduler))
        ]
        self.quotas = Quotas(settings.quota_unleased)
        self._catalogue = CatalogueWatch(self.keys, self.table, self._channels[0], self._changed, self.quotas)
        self._routes = RoutesWatch(self.table, self._channels[1], self._changed)
        self._catalogue.judged = self.accounts.judge_by
        self._metrics = MetricsExporter(
            settings.otlp_endpoint,
            Measures(frontend_id, self.accounts, pause=lambda: time.sleep(PAUSE_S)).build,
            every_s=settings.metrics_export_s,
            credentials=settings.credentials,
        )
        self._reports = RequestReports(frontend_id, self.accounts, self._channels[1], self.quotas)
        self._tasks: list[asyncio.Task[None]] = []
        self._announced = False
        self._build()

    @property
    def ready(self) -> bool:
        """Whether tenants and routes have been known, if only from before."""
        return self.keys.known and self.table.known

    async def start(self) -> str:
        """Binds, follows the registry and the scheduler; returns HOST:PORT. Neither has to be up."""
        for name in ("", SERVICE):
            await self.server.set_serving(False, name)
        address = await self.server.start()
        self.memory.port = int(address.rpartition(":")[2])
        followers = (self._catalogue.follower, self._routes.follower)
        self._tasks = [asyncio.ensure_future(follower.run()) for follower in followers]
        self._tasks.append(asyncio.ensure_future(age(self.keys)))
        self._tasks.append(asyncio.ensure_future(self.memory.watch()))
        self._tasks.append(asyncio.ensure_future(self._reports.run()))
        self._metrics.start()
        return address

    async def stop(self) -> None:
        """Drains, then lets go of everybody."""
        await self.server.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reports.leave()
        self.inference.close()
        self.regions.close()
        await self.device_regions.close()
        await self.links.close()
        for channel in self._channels:
            await channel.close(None)
        await asyncio.to_thread(self.tracer.shutdown, 2.0)
        await asyncio.to_thread(self._metrics.stop)

    def _build(self) -> None:
        settings = self.settings
        limits = Limits(settings.max_fields, settings.max_parameters, settings.max_tensors, settings.max_name_bytes)
        self.regions = Regions(settings.shared_memory_folder)
        self.device_regions = DeviceRegions(
            self.links, self.regions, settings.cuda_shared_memory_bytes, settings.shared_memory_folder
        )
        self.waiting, self.unread = Held(settings.tenant_request_bytes), Held(settings.tenant_unread_bytes)
        self.accounts.held = lambda: {"waiting": self.waiting.all(), "unread": self.unread.all()}
        self.inference = Inference(
            self.table,
            self.links,
            self.accounts,
            SharedMemory(self.regions, self.device_regions, settings.max_message_bytes),
            limits=limits,
            most_bytes=settings.max_message_bytes,
            default_deadline_s=settings.default_deadline_s,
            retries=Retries(settings.retry_ratio, settings.retry_burst),
            waiting=self.waiting,
            unread=self.unread,
            quotas=self.quotas,
        )
        # gRPC refuses without a word of ours: what is not far beyond the limit is read, so that it is told why.
        received = min(settings.max_message_bytes * READ_TIMES, MOST_READ_BYTES)
        options = [
            ("grpc.max_receive_message_length", received),
            ("grpc.max_send_message_length", settings.max_message_bytes),
        ]
        health = ModelHealth(self.table, settings.streams)
        self.server = Server(
            settings,
            settings.listen,
            name="frontend",
            public=True,
            serves=(SERVICE,),
            keys=self.keys,
            anonymous=caller_of(Role.TENANT_ADMIN, ANONYMOUS) if settings.lets_in_anonymous else None,
            clients=settings.client_certificates,
            options=options,
            health=health,
        )
        self._serve_methods(limits)

    def _serve_methods(self, limits: Limits) -> None:
        settings = self.settings
        bounds = Bounds(settings.stream_requests, settings.stream_bytes, settings.streams)
        streams = Streams(self.inference, self.server.guard, limits, bounds)
        self.memory = MemoryService(self.regions, self.device_regions, allowed=settings.shared_memory)
        servicers = (
            Describer(
                self.table,
                lambda: self._catalogue.platforms,
                lambda: self.ready,
                lambda: settings.shared_memory and self.device_regions.offered,
            ),
            Statistics(self.table, self.links),
            Repository(
                self.table,
                Wishes(self._channels[0]),
                allowed=settings.model_control,
                default_s=settings.load_wait_s,
            ),
            self.memory,
        )
        self.server.grpc.add_generic_rpc_handlers((handlers(self.inference, streams, *servicers),))

    def _changed(self) -> None:
        self.links.follow(self.table.addresses())
        self.accounts.keep(self.table.has)
        if self.keys.known:
            self.regions.keep_tenants(self.keys.tenants)
            self.device_regions.keep_tenants(self.keys.tenants)
        if self.ready and not self._announced:
            self._announced = True
            for name in ("", SERVICE):
                self._tasks.append(asyncio.ensure_future(self.server.set_serving(True, name)))


async def serve(settings: FrontendSettings, stop: asyncio.Event) -> None:
    """Runs the frontend until `stop` is set. Raises StartupError where it cannot start."""
    keep_large_blocks()
    frontend = Frontend(settings)
    address = await frontend.start()
    try:
        with metrics.exposed(settings, frontend.accounts) as also:
            write_ready(settings, listen=address, **also)
            await stop.wait()
    finally:
        await frontend.stop()
