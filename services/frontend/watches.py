"""The catalogue and the routes, followed: protobuf in, plain values for the core out."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable

import grpc

from services._proto.apportion.v1 import common_pb2, registry_pb2, registry_pb2_grpc, scheduler_pb2, scheduler_pb2_grpc
from services.common.access.following import KeyFeed
from services.common.access.keys import Keys
from services.common.watch import Follower
from services.frontend.core.routes import Replica, Route, Signature, State, Tensor, Version
from services.frontend.core.routing import RoutingTable
from services.frontend.quotas import Quotas

CataloguePosition = int
RoutesPosition = tuple[int, int]
"""(epoch, revision)"""

_STATES = {
    scheduler_pb2.VERSION_STATE_READY: State.READY,
    scheduler_pb2.VERSION_STATE_REFUSED: State.REFUSED,
    scheduler_pb2.VERSION_STATE_UNPLACED: State.UNPLACED,
    scheduler_pb2.VERSION_STATE_UNLOADED: State.UNLOADED,
}


class CatalogueWatch:
    """Keeps `keys`, `quotas`, and in `table` which models are shared, as the registry has them.

    platforms: the artefact's format by (tenant, model, version), as ModelMetadata names it.
    objectives_us: of the SLOs that have one of their own, by (tenant, model).
    """

    def __init__(
        self,
        keys: Keys,
        table: RoutingTable,
        channel: grpc.aio.Channel,
        changed: Callable[[], None],
        quotas: Quotas | None = None,
    ) -> None:
        self._feed, self._table, self._changed = KeyFeed(keys), table, changed
        self._quotas = quotas or Quotas()
        self._tenants: list[registry_pb2.Tenant] = []
        self._stub = registry_pb2_grpc.RegistryServiceStub(channel)  # type: ignore[no-untyped-call]
        self._models: list[registry_pb2.Model] = []
        self._position: CataloguePosition = 0
        self.platforms: dict[tuple[str, str, int], str] = {}
        self.objectives_us: dict[tuple[str, str], tuple[int, ...]] = {}
        self.judged: Callable[[dict[tuple[str, str], tuple[int, ...]]], None] = lambda _: None
        """Told of `objectives_us` after every change of models."""
        self.follower = Follower("catalogue", 0, self._opens, self.apply)

    def apply(self, message: registry_pb2.WatchCatalogueResponse) -> CataloguePosition:
        """Takes one step of the watch; returns the position after it."""
        event = message.WhichOneof("event")
        self._feed.apply(message)
        if event == "snapshot":
            return self._part(message.revision, message.snapshot)
        if event == "changes":
            changes = message.changes
            if changes.tenants or changes.removed_tenants:
                self._quotas.change(changes.tenants, changes.removed_tenants)
                self._changed()
            for key in [*changes.removed_models, *(model.key for model in changes.models)]:
                self._forget(key)
            self._platforms(changes.models)
            if changes.models or changes.removed_models:
                self.judged(self.objectives_us)
        self._position = message.revision
        return self._position

    def _part(self, revision: int, part: registry_pb2.CatalogueSnapshot) -> CataloguePosition:
        if part.first_part:
            self._tenants, self._models, self._position = [], [], 0
        self._tenants.extend(part.tenants)
        self._models.extend(part.models)
        if part.last_part:
            self._quotas.replace(self._tenants)
            self._tenants = []
            self.platforms, self.objectives_us = {}, {}
            self._table.share_anew()
            self._platforms(self._models)
            self.judged(self.objectives_us)
            self._models, self._position = [], revision
            self._changed()
        return self._position

    def _platforms(self, models: Iterable[registry_pb2.Model]) -> None:
        for model in models:
            self._table.share(model.key.tenant, model.key.name, model.shared_with)
            for version in model.versions:
                platform = PLATFORMS.get(version.config.format, "")
                self.platforms[model.key.tenant, model.key.name, version.version] = platform
            own = {each.slo.objective_us for each in model.slos if each.slo.HasField("objective_us")}
            if own:
                self.objectives_us[model.key.tenant, model.key.name] = tuple(sorted(own))

    def _forget(self, key: common_pb2.ModelKey) -> None:
        self._table.share(key.tenant, key.name, ())
        self.objectives_us.pop((key.tenant, key.name), None)
        for held in [held for held in self.platforms if held[:2] == (key.tenant, key.name)]:
            del self.platforms[held]

    def _opens(self, position: CataloguePosition) -> AsyncIterable[registry_pb2.WatchCatalogueResponse]:
        return self._stub.WatchCatalogue(registry_pb2.WatchCatalogueRequest(after_revision=position))


class RoutesWatch:
    """Keeps `table` as the scheduler has it. changed: told after every change."""

    def __init__(self, table: RoutingTable, channel: grpc.aio.Channel, changed: Callable[[], None]) -> None:
        self._table, self._changed = table, changed
        self._stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)  # type: ignore[no-untyped-call]
        self._parts: list[scheduler_pb2.ModelRoute] = []
        self._position: RoutesPosition = (0, 0)
        self.follower = Follower("routes", (0, 0), self._opens, self.apply)

    def apply(self, message: scheduler_pb2.WatchRoutesResponse) -> RoutesPosition:
        """Takes one step of the watch; returns the position after it."""
        event = message.WhichOneof("event")
        if event == "snapshot":
            part = message.snapshot
            if part.first_part:
                self._parts, self._position = [], (0, 0)
            self._parts.extend(part.routes)
            if not part.last_part:
                return self._position
            self._table.replace(map(route_of, self._parts))
            self._parts = []
        elif event == "changes":
            removed = [(key.tenant, key.name) for key in message.changes.removed]
            self._table.change(map(route_of, message.changes.routes), removed)
        if event in ("snapshot", "changes"):
            self._changed()
        self._position = (message.epoch, message.revision)
        return self._position

    def _opens(self, position: RoutesPosition) -> AsyncIterable[scheduler_pb2.WatchRoutesResponse]:
        return self._stub.WatchRoutes(scheduler_pb2.WatchRoutesRequest(epoch=position[0], after_revision=position[1]))


PLATFORMS = {
    registry_pb2.ARTEFACT_FORMAT_ONNX: "onnxruntime_onnx",
    registry_pb2.ARTEFACT_FORMAT_TORCH_EXPORT: "pytorch_export",
    registry_pb2.ARTEFACT_FORMAT_PYTHON: "python",
}
"""What ModelMetadata calls the formats: Triton's names where it has one."""


def route_of(told: scheduler_pb2.ModelRoute) -> Route:
    """A route as the core knows it. An interactive model without an objective counts as batch: nothing is promised."""
    batch = told.traffic_class == common_pb2.TRAFFIC_CLASS_BATCH or not told.slo.HasField("objective_us")
    versions = sorted((_version(version) for version in told.versions), key=lambda version: version.version)
    return Route(
        tenant=told.key.tenant,
        model=told.key.name,
        objective_ns=None if batch else told.slo.objective_us * 1000,
        versions={version.version: version for version in versions},
        splits=tuple((split.version, split.ppm) for split in told.splits),
        revision=told.model_revision,
    )


def _version(told: scheduler_pb2.VersionRoute) -> Version:
    return Version(
        version=told.version,
        state=_STATES.get(told.state, State.LOADING),
        message=told.message,
        signature=_signature(told.signature) if told.HasField("signature") else None,
        replicas=tuple(Replica(r.replica_id, r.executor_id, r.address) for r in told.replicas),
    )


def _signature(told: common_pb2.Signature) -> Signature:
    return Signature(tuple(map(_tensor, told.inputs)), tuple(map(_tensor, told.outputs)), told.max_batch_size)


def _tensor(told: common_pb2.TensorSpec) -> Tensor:
    return Tensor(
        name=told.name,
        datatype=told.datatype,
        shape=tuple(d.size if d.HasField("size") else None for d in told.shape),
        batch_axis=told.batch_axis if told.HasField("batch_axis") else None,
        optional=told.optional,
    )
