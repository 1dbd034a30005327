"""The scheduler as a process: one server, the catalogue's watch, and the task that decides."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

from services._proto.apportion.v1 import scheduler_pb2, scheduler_pb2_grpc
from services.common import metrics
from services.common.access.following import KeyFeed, age
from services.common.access.keys import Keys
from services.common.channel import connect
from services.common.process import first_done, write_ready
from services.common.server import Server
from services.scheduler.catalogue import CatalogueWatch
from services.scheduler.core.scheduler import Scheduler
from services.scheduler.deciding import Deciding
from services.scheduler.inspections import InspectionRecorder
from services.scheduler.metrics import SchedulerCollector
from services.scheduler.servicer import SchedulerServicer
from services.scheduler.settings import SchedulerSettings
from services.scheduler.streams import Streams
from services.scheduler.telling import UsageTeller

SERVICE = scheduler_pb2.DESCRIPTOR.services_by_name["SchedulerService"].full_name


async def serve(settings: SchedulerSettings, stop: asyncio.Event) -> None:
    """Runs the scheduler until `stop` is set. It starts and stays up while the registry is down.

    Raises StartupError where it cannot listen.
    """
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(
            connect(settings.registry, to="registry", credentials=settings.credentials)
        )
        streams, recorder = Streams(), InspectionRecorder(registry)
        epoch = await new_epoch()
        scheduler = Scheduler(
            epoch=epoch,
            now=time.monotonic(),
            policy=settings.policy(),
            route_changes=settings.route_changes,
            route_changes_bytes=settings.route_changes_bytes,
            route_changes_s=settings.route_changes_s,
        )
        deciding = Deciding(scheduler, send=streams.send, record=recorder.record, clock=time.monotonic)
        keys = Keys(most_age_s=settings.keys_max_age_s)
        catalogue = CatalogueWatch(registry, deciding.tell, KeyFeed(keys))
        teller = UsageTeller(registry, scheduler.telling, settings.usage_interval_s)
        servicer = SchedulerServicer(
            deciding, streams, report_interval_s=settings.report_interval_s, bookmark_s=settings.bookmark_s
        )
        server = Server(settings, settings.listen, name="scheduler", serves=(SERVICE,), keys=keys)
        scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(servicer, server.grpc)  # type: ignore[no-untyped-call]
        address = await server.start()
        await server.set_serving(True)
        collector = SchedulerCollector(scheduler.fleet, lambda: scheduler.catalogue_known)
        also = stack.enter_context(metrics.exposed(settings, collector))
        write_ready(settings, listen=address, **also)
        try:
            await first_done(
                asyncio.create_task(stop.wait()),
                asyncio.create_task(deciding.run()),
                asyncio.create_task(deciding.tick(settings.tick_s)),
                asyncio.create_task(catalogue.run()),
                asyncio.create_task(age(keys)),
                asyncio.create_task(recorder.run()),
                asyncio.create_task(teller.run()),
            )
        finally:
            servicer.close()
            await server.stop()


async def new_epoch() -> int:
    """The wall clock's second that is about to begin, once it has: two lives of a scheduler never share one.

    It fits 32 bits until 2106.
    """
    now = time.time()
    await asyncio.sleep(1 - now % 1)
    return int(now) + 1
