"""Keys and grants as the catalogue tells of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Iterable

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from services._proto.apportion.v1 import registry_pb2, registry_pb2_grpc
from services.common.access.callers import Role
from services.common.access.keys import Held, Keys
from services.common.watch import Follower

TICK_S = 0.25
"""How often it is looked whether a key has expired, or the registry has been silent for too long."""
ROLES = {registry_pb2.KEY_ROLE_TENANT: Role.TENANT}


class KeyFeed:
    """Keeps `keys` as a watch of the catalogue tells. The watch is another's: hand it every message."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._tenants: list[registry_pb2.Tenant] = []

    def apply(self, message: registry_pb2.WatchCatalogueResponse) -> int:
        """Takes one step; returns the revision after which to go on, 0 inside of a snapshot."""
        self._keys.heard(time.monotonic())
        event = message.WhichOneof("event")
        if event == "snapshot":
            part = message.snapshot
            if part.first_part:
                self._tenants = []
            self._tenants.extend(part.tenants)
            if not part.last_part:
                return 0
            self._keys.replace(held(self._tenants))
            self._tenants = []
        elif event == "changes" and (message.changes.tenants or message.changes.removed_tenants):
            self._keys.change(held(message.changes.tenants), message.changes.removed_tenants)
        return message.revision


class KeyWatch:
    """Follows the registry for its keys alone, for a service that needs nothing else of the catalogue."""

    def __init__(self, keys: Keys, registry: grpc.aio.Channel) -> None:
        self._keys, self._feed = keys, KeyFeed(keys)
        self._stub = registry_pb2_grpc.RegistryServiceStub(registry)  # type: ignore[no-untyped-call]
        self._follower = Follower("keys", 0, self._opens, self._feed.apply)

    async def run(self) -> None:
        """Follows until cancelled."""
        await asyncio.gather(self._follower.run(), age(self._keys))

    def _opens(self, position: int) -> AsyncIterable[registry_pb2.WatchCatalogueResponse]:
        return self._stub.WatchCatalogue(registry_pb2.WatchCatalogueRequest(after_revision=position))


async def age(keys: Keys) -> None:
    """Tells keys the time, until cancelled."""
    while True:
        keys.tick(time.monotonic(), time.time())
        await asyncio.sleep(TICK_S)


def held(tenants: Iterable[registry_pb2.Tenant]) -> dict[str, list[Held]]:
    """The keys of each."""
    return {tenant.name: [_held(key) for key in tenant.keys] for tenant in tenants}


def _held(key: registry_pb2.ApiKey) -> Held:
    expires_s = _seconds(key.expires_at) if key.HasField("expires_at") else None
    return Held(key.sha256, key.id, ROLES.get(key.role, Role.TENANT_ADMIN), expires_s)


def _seconds(at: Timestamp) -> float:
    return at.seconds + at.nanos / 1e9
