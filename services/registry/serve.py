"""Builds the registry, serves it, drains it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from services._proto.apportion.v1 import registry_pb2, registry_pb2_grpc
from services.common import metrics
from services.common.access.following import KeyFeed, age
from services.common.access.keys import Keys
from services.common.channel import backoff
from services.common.errors import Refusal
from services.common.process import StartupError, write_ready
from services.common.server import Server
from services.registry.artefacts import Artefacts, LocalArtefacts, open_store
from services.registry.collecting import Collector
from services.registry.database import Database
from services.registry.head import Head
from services.registry.servicer import RegistryServicer
from services.registry.settings import RegistrySettings
from services.registry.store import Store
from services.registry.uploads import Uploads
from services.registry.usage import DAY_US, Usage
from services.registry.watch import Watches

log = structlog.get_logger()
SERVICE = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name

KNOWS_S = 5.0
"""How long a start waits for the registry's own knowledge of keys."""


async def serve(settings: RegistrySettings, stop: asyncio.Event) -> None:
    """Serves until `stop` is set.

    Stays up while the database cannot be reached: health says NOT_SERVING, calls get NOT_SERVING, and the ready file is
    written once the schema is up to date. Raises StartupError for what waiting does not mend.
    """
    store = Store(Database(settings.database), history=settings.history_revisions)
    files = artefacts_of(settings)
    uploads = Uploads(store, files, most_bytes=settings.max_artefact_bytes, idle_s=settings.upload_idle_s)
    keys = Keys()
    server = Server(settings, settings.listen, name="registry", serves=(SERVICE,), keys=keys)
    watches = Watches(store, bookmark_s=settings.bookmark_s)
    servicer = RegistryServicer(store, uploads, watches, settings.python_artefacts)
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(servicer, server.grpc)  # type: ignore[no-untyped-call]
    await set_serving(server, False)
    address = await server.start()
    collector = Collector(store, files, grace_s=settings.collect_grace_s, audit_s=settings.audit_s, busy=uploads.busy)
    prepared, knows = asyncio.Event(), asyncio.Event()
    known = asyncio.create_task(_know(keys, watches, store, prepared, knows))

    async def prepare() -> None:
        await _prepare_files(files)
        await _prepare_store(store)
        await _forget_names(servicer.usage, settings.usage_names_days)
        prepared.set()
        with suppress(TimeoutError):
            # Who is told that it is ready may come with a key at once.
            await asyncio.wait_for(knows.wait(), KNOWS_S)

    work = asyncio.create_task(_work(settings, store, prepare, server, address, collector))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        for task in (work, known, stopping):
            task.cancel()
        await asyncio.gather(work, known, stopping, return_exceptions=True)
        # Watches would otherwise hold the drain up for its whole length.
        store.head.close()
        await server.stop()
        await store.close()


async def _work(
    settings: RegistrySettings,
    store: Store,
    prepare: Callable[[], Awaitable[None]],
    server: Server,
    address: str,
    collector: Collector,
) -> None:
    """Prepares, says so, then looks for commits of other processes, and for garbage, until cancelled."""
    await prepare()
    await set_serving(server, True)
    with metrics.exposed(settings) as also:
        write_ready(settings, listen=address, **also)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(store.head.poll(store.revision, settings.poll_s))
            if settings.collect_every_s:
                tasks.create_task(collector.run(settings.collect_every_s))


async def _know(keys: Keys, watches: Watches, store: Store, prepared: asyncio.Event, knows: asyncio.Event) -> None:
    """Keeps the registry's own knowledge of keys, as a watcher of itself, from when it is prepared until cancelled."""
    await prepared.wait()
    ageing, seen = asyncio.create_task(age(keys)), Head()
    delays = backoff()
    try:
        while True:
            feed, after = KeyFeed(keys), 0
            try:
                async for message in watches.follow(after):
                    after, delays = feed.apply(message) or after, backoff()
                    seen.advance(after)
                    store.followed = seen
                    if keys.known:
                        knows.set()
            except Refusal as refusal:
                log.info("keys are not read", error=refusal.message)
            store.followed = None
            if store.head.closed:
                return
            await asyncio.sleep(next(delays))
    finally:
        ageing.cancel()


def artefacts_of(settings: RegistrySettings) -> Artefacts:
    """The artefact store; StartupError where its URL names a protocol that is not installed."""
    try:
        return open_store(settings.artefacts)
    except (ValueError, ImportError) as error:
        raise StartupError(f"registry: artefacts_url: {error}") from error


async def _prepare_files(files: Artefacts) -> None:
    try:
        removed = await asyncio.to_thread(files.prepare, time.time())
        log.info("artefact store ready", stale_uploads_removed=removed)
    except OSError as error:
        if isinstance(files, LocalArtefacts):
            raise StartupError(f"registry: cannot use the artefact folder: {error}") from error
        # Uploads and downloads will say so until it is back; the catalogue can be served without it.
        log.warning("artefact store unreachable", error=str(error))


async def _prepare_store(store: Store) -> None:
    for delay_s in backoff():
        try:
            return await store.prepare()
        except Refusal as refusal:
            log.warning("database unreachable", error=refusal.message, retry_s=round(delay_s, 2))
            await asyncio.sleep(delay_s)


async def _forget_names(usage: Usage, days: int) -> None:
    try:
        await usage.forget(days * DAY_US)
    except Refusal as refusal:
        # They are only in the way: the next start will do.
        log.warning("old names of counts are kept", error=refusal.message)


async def set_serving(server: Server, serving: bool) -> None:
    """Says so for the process and for the service by its name."""
    await server.set_serving(serving)
    await server.set_serving(serving, SERVICE)
