"""The trace store, put together: two ports on one store."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import add_MetricsServiceServicer_to_server
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import add_TraceServiceServicer_to_server

from services._proto.apportion.v1 import rollups_pb2
from services._proto.apportion.v1.rollups_pb2_grpc import add_RollupServiceServicer_to_server
from services._proto.jaeger.api_v3 import query_service_pb2
from services._proto.jaeger.api_v3.query_service_pb2_grpc import add_QueryServiceServicer_to_server
from services.common import metrics
from services.common.access.following import KeyWatch
from services.common.access.keys import Keys
from services.common.channel import connect
from services.common.process import write_ready
from services.common.server import Server
from services.tracestore.jaeger import Query
from services.tracestore.queries import Queries
from services.tracestore.reading import Reader
from services.tracestore.rollups import Rollups
from services.tracestore.servicer import Collector, Meter
from services.tracestore.settings import TraceStoreSettings
from services.tracestore.store import Store

MOST_EXPORT_BYTES = 16 << 20
COLLECTOR = trace_service_pb2.DESCRIPTOR.services_by_name["TraceService"].full_name
METRICS = metrics_service_pb2.DESCRIPTOR.services_by_name["MetricsService"].full_name
ROLLUPS = rollups_pb2.DESCRIPTOR.services_by_name["RollupService"].full_name
QUERY = query_service_pb2.DESCRIPTOR.services_by_name["QueryService"].full_name


async def serve(settings: TraceStoreSettings, stop: asyncio.Event) -> None:
    """Takes and answers until `stop`. Raises StartupError where a port or the folder cannot be had."""
    async with AsyncExitStack() as stack:
        rollups = Rollups(
            settings.rollups, retention_s=settings.rollup_retention_s, retention_bytes=settings.rollup_bytes
        )
        stack.push_async_callback(asyncio.to_thread, rollups.close)
        store = Store(
            settings.database,
            retention_s=settings.retention_s,
            retention_bytes=settings.retention_bytes,
            queue_spans=settings.queue_spans,
            rollups=rollups,
        )
        stack.push_async_callback(asyncio.to_thread, store.close)
        queries = Queries(settings.database, timeout_s=settings.query_timeout_s)
        stack.push_async_callback(asyncio.to_thread, queries.close)
        limit = [("grpc.max_receive_message_length", MOST_EXPORT_BYTES)]
        collector = Server(settings, settings.listen, name="tracestore", serves=(COLLECTOR, METRICS), options=limit)
        add_TraceServiceServicer_to_server(Collector(store), collector.grpc)
        add_MetricsServiceServicer_to_server(Meter(rollups), collector.grpc)
        keys = await _keys(settings, stack)
        query = Server(
            settings,
            settings.query_listen,
            name="tracestore",
            serves=(QUERY, ROLLUPS),
            keys=keys,
            probed=False,
            flag="--query-listen",
        )
        add_QueryServiceServicer_to_server(Query(queries), query.grpc)  # type: ignore[no-untyped-call]
        add_RollupServiceServicer_to_server(Reader(rollups), query.grpc)  # type: ignore[no-untyped-call]
        addresses = {}
        for name, server in (("listen", collector), ("query_listen", query)):
            addresses[name] = await server.start()
            stack.push_async_callback(server.stop)
            await server.set_serving(True)
        addresses |= stack.enter_context(metrics.exposed(settings))
        write_ready(settings, **addresses)
        await stop.wait()


async def _keys(settings: TraceStoreSettings, stack: AsyncExitStack) -> Keys | None:
    """The tenants' keys, followed until the stack ends; None where no registry is named: tenants' keys are not taken."""
    if settings.registry is None:
        return None
    keys = Keys(most_age_s=settings.keys_max_age_s)
    channel = connect(settings.registry, to="registry", credentials=settings.credentials)
    following = asyncio.create_task(KeyWatch(keys, channel).run())

    async def stop() -> None:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await channel.close(None)

    stack.push_async_callback(stop)
    return keys
