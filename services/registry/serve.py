"""Builds the registry, serves it, drains it."""

from __future__ import annotations

import asyncio
import time

import structlog

from services._proto.apportion.v1 import registry_pb2, registry_pb2_grpc
from services.common import metrics
from services.common.channel import backoff
from services.common.errors import Refusal
from services.common.server import Server, StartupError, write_ready
from services.registry.artefacts import Artefacts, LocalArtefacts, open_store
from services.registry.database import Database
from services.registry.servicer import RegistryServicer
from services.registry.settings import RegistrySettings
from services.registry.store import Store
from services.registry.uploads import Uploads
from services.registry.usage import DAY_US, Usage
from services.registry.watch import Watches

log = structlog.get_logger()
SERVICE = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name


async def serve(settings: RegistrySettings, stop: asyncio.Event) -> None:
    """Serves until `stop` is set.

    Stays up while the database cannot be reached: health says NOT_SERVING, calls get NOT_SERVING, and the ready file is
    written once the schema is up to date. Raises StartupError for what waiting does not mend.
    """
    store = Store(Database(settings.database), history=settings.history_revisions)
    files = artefacts_of(settings)
    uploads = Uploads(store, files, most_bytes=settings.max_artefact_bytes, idle_s=settings.upload_idle_s)
    server = Server(settings, settings.listen, name="registry")
    servicer = RegistryServicer(store, uploads, Watches(store, bookmark_s=settings.bookmark_s))
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(servicer, server.grpc)  # type: ignore[no-untyped-call]
    await set_serving(server, False)
    address = await server.start()
    work = asyncio.create_task(_work(settings, store, servicer, files, server, address))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        work.cancel()
        stopping.cancel()
        await asyncio.gather(work, stopping, return_exceptions=True)
        # Watches would otherwise hold the drain up for its whole length.
        store.head.close()
        await server.stop()
        await store.close()


async def _work(
    settings: RegistrySettings,
    store: Store,
    servicer: RegistryServicer,
    files: Artefacts,
    server: Server,
    address: str,
) -> None:
    """Prepares, says so, then looks for commits of other processes until cancelled."""
    await _prepare_files(files)
    await _prepare_store(store)
    await _forget_names(servicer.usage, settings.usage_names_days)
    await set_serving(server, True)
    with metrics.exposed(settings.metrics_listen) as also:
        write_ready(settings, listen=address, **also)
        await store.head.poll(store.revision, settings.poll_s)


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
