"""grpc.health.v1: the whole frontend under "" and the service's name, and each model of the caller under its own."""

from __future__ import annotations

import asyncio
from typing import Any

from grpc_health.v1 import health, health_pb2

from services.common.access.callers import calling
from services.common.errors import Reason, Refusal
from services.common.server import HealthServicer
from services.frontend.core.held import Held
from services.frontend.core.routing import RoutingTable

OWN = frozenset(("", "inference.GRPCInferenceService", health.SERVICE_NAME))
_Status = health_pb2.HealthCheckResponse
_UNKNOWN = _Status.SERVICE_UNKNOWN
LOOK_S = 0.5
"""How often a watch looks whether a model's replicas can still be reached."""


class ModelHealth(HealthServicer):  # type: ignore[misc]
    """Health with a service for each model: "MODEL" or "MODEL/VERSION", of the caller's tenant.

    watches: calls of Watch that one tenant may have open.
    """

    def __init__(self, table: RoutingTable, watches: int) -> None:
        super().__init__()
        self._table = table
        self._watches = Held(watches)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        """SERVING or NOT_SERVING; NOT_FOUND for a model that is not there, or is another tenant's."""
        if request.service in OWN:
            return await super().Check(request, context)
        return _Status(status=self._status(request.service))

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """As Check, again whenever it changes; SERVICE_UNKNOWN for a model that is not there (yet). Raises Refusal."""
        if request.service in OWN:
            await super().Watch(request, context)
            return
        try:
            tenant = calling().tenant
        except Refusal:
            # Not known (yet): all of them together.
            tenant = ""
        if not self._watches.take(tenant, 1):
            raise Refusal(
                Reason.QUOTA_EXCEEDED,
                f"tenant {tenant!r} has {self._watches.of(tenant)} models' health watched, as many as one frontend serves it "
                "(APPORTION_FRONTEND_STREAMS)",
                facts={"limit": self._watches.limit},
            )
        try:
            await self._tell(request, context)
        finally:
            self._watches.give(tenant, 1)

    def watched(self, tenant: str) -> int:
        """How many watches a tenant has open."""
        return self._watches.of(tenant)

    async def _tell(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        told: int | None = None
        while True:
            try:
                status = self._status(request.service)
            except Refusal:
                status = _UNKNOWN
            if status != told:
                told = status
                await context.write(_Status(status=status))
            await asyncio.sleep(LOOK_S)

    def _status(self, service: str) -> Any:
        tenant = calling().tenant
        name, _, version = service.partition("/")
        shared = "/".join(service.split("/", 2)[:2])
        if self._table.has(tenant, shared):
            # OWNER/MODEL or OWNER/MODEL/VERSION: another tenant's, shared with this one.
            name, version = shared, service[len(shared) + 1 :]
        route = self._table.route(tenant, name)
        try:
            self._table.replica(route, self._table.version(route, version))
        except Refusal as refusal:
            if refusal.reason.endswith("_NOT_FOUND"):
                raise
            return _Status.NOT_SERVING
        return _Status.SERVING
