"""Following the registry's catalogue."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable

import grpc

from services._proto.apportion.v1 import registry_pb2, registry_pb2_grpc
from services.common.access.following import KeyFeed
from services.common.watch import Follower
from services.scheduler import convert
from services.scheduler.core.catalogue import Model, Tenant
from services.scheduler.core.events import CatalogueChanged, CatalogueReplaced

START = 0


class CatalogueWatch:
    """Tells the core of every change of the catalogue, through every reconnection.

    A snapshot is told once it is whole; a stream that ends inside one asks for a new one. feed: learns of keys.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        tell: Callable[[CatalogueReplaced | CatalogueChanged], None],
        feed: KeyFeed | None = None,
    ) -> None:
        self._feed = feed
        self._stub = registry_pb2_grpc.RegistryServiceStub(channel)  # type: ignore[no-untyped-call]
        self._tell = tell
        self._tenants: list[Tenant] = []
        self._models: list[Model] = []
        self._follower: Follower[registry_pb2.WatchCatalogueResponse, int] = Follower(
            "catalogue", START, self._open, self.apply
        )
        self.synced = self._follower.synced

    async def run(self) -> None:
        """Follows until cancelled."""
        await self._follower.run()

    def apply(self, message: registry_pb2.WatchCatalogueResponse) -> int:
        """Takes one message in; the revision after which to go on."""
        if self._feed is not None:
            self._feed.apply(message)
        kind = message.WhichOneof("event")
        if kind == "snapshot":
            return self._take_part(message.snapshot, message.revision)
        if kind == "changes":
            self._tell(convert.changes(message.changes))
        return message.revision

    def _take_part(self, part: registry_pb2.CatalogueSnapshot, revision: int) -> int:
        if part.first_part:
            self._tenants, self._models = [], []
        self._tenants += [convert.tenant(each) for each in part.tenants]
        self._models += [convert.model(each) for each in part.models]
        if not part.last_part:
            return START
        self._tell(CatalogueReplaced(tuple(self._tenants), tuple(self._models)))
        self._tenants, self._models = [], []
        return revision

    def _open(self, position: int) -> AsyncIterable[registry_pb2.WatchCatalogueResponse]:
        return self._stub.WatchCatalogue(registry_pb2.WatchCatalogueRequest(after_revision=position))
