"""The repository extension: the caller's models, where each stands, and which of them are to be held at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import grpc

from services._proto.apportion.v1 import common_pb2, registry_pb2, registry_pb2_grpc
from services._proto.inference import grpc_service_pb2 as pb
from services.common.access.callers import calling
from services.common.errors import Reason, Refusal, invalid
from services.common.status import from_rpc_error
from services.frontend.core.loading import Pending, loading, unloading
from services.frontend.core.routes import State, Version
from services.frontend.core.routing import RoutingTable

INDEX_STATES = {State.READY: "READY", State.LOADING: "LOADING"}
"""What clients read; every other state is UNAVAILABLE."""
UNAVAILABLE = "UNAVAILABLE"
LOOK_S = 0.02
"""How often the routes are looked at for a wish that has not come true yet."""
WISH_S = 10.0
"""How long the registry may take to note a wish."""
MARGIN = 0.9
"""The part of what a caller gives that is used: what is lacking must reach it before it gives up."""

Check: TypeAlias = Callable[[RoutingTable, str, str, int], Pending | None]


class Wishes:
    """Notes in the registry which models are to be held."""

    def __init__(self, registry: grpc.aio.Channel) -> None:
        self._stub = registry_pb2_grpc.RegistryServiceStub(registry)  # type: ignore[no-untyped-call]

    async def note(self, tenant: str, model: str, *, unloaded: bool, timeout_s: float) -> int:
        """The model's revision with the wish. Raises Refusal: MODEL_NOT_FOUND, or NOT_SERVING where it cannot be noted."""
        request = registry_pb2.UpdateModelRequest(key=common_pb2.ModelKey(tenant=tenant, name=model), unloaded=unloaded)
        try:
            asker = (("apportion-for", str(calling())),)
            answer = await self._stub.UpdateModel(request, timeout=min(timeout_s, WISH_S), metadata=asker)
        except grpc.aio.AioRpcError as error:
            raise _unnoted(error, tenant, model) from error
        return int(answer.model.revision)


class Repository:
    """Index, load and unload. default_s: how long a caller without a deadline waits.

    allowed: whether callers may load and unload; where not, an operator does.
    """

    def __init__(self, table: RoutingTable, wishes: Wishes, *, allowed: bool, default_s: float) -> None:
        self._table, self._wishes = table, wishes
        self._allowed, self._default_s = allowed, default_s

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, _context: Any) -> pb.RepositoryIndexResponse:
        """The caller's models, a line a version; `ready`: only what serves. There is one repository, without a name."""
        response = pb.RepositoryIndexResponse()
        for route in self._table.models(calling().tenant):
            for version in route.versions.values():
                state = INDEX_STATES.get(version.state, UNAVAILABLE)
                if state == "READY" or not request.ready:
                    response.models.add(
                        name=route.model, version=str(version.version), state=state, reason=_why(version)
                    )
            if not route.versions and not request.ready:
                response.models.add(name=route.model, state=UNAVAILABLE, reason="it has no version")
        return response

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Any
    ) -> pb.RepositoryModelLoadResponse:
        """Has the model loaded unless it is, and waits until it serves; refused with what is lacking where it does not.

        What a load was asked for goes on where the caller has given up.
        """
        _no_overrides(request.parameters)
        tenant, model, ends = self._asked(request, context)
        try:
            revision = await self._noted(tenant, model, ends, unloaded=False)
        except Refusal as refusal:
            # Nothing needs to be noted of a model that serves.
            if refusal.reason is Reason.NOT_SERVING and loading(self._table, tenant, model, 0) is None:
                return pb.RepositoryModelLoadResponse()
            raise
        await self._until(loading, tenant, model, revision, ends)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Any
    ) -> pb.RepositoryModelUnloadResponse:
        """Has nobody hold the model until it is loaded by request; returns once it gets no more requests from here.

        Requests that it has already are finished.
        """
        _no_extras(request.parameters)
        tenant, model, ends = self._asked(request, context)
        revision = await self._noted(tenant, model, ends, unloaded=True)
        await self._until(unloading, tenant, model, revision, ends)
        return pb.RepositoryModelUnloadResponse()

    def _asked(
        self, request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest, context: Any
    ) -> tuple[str, str, float]:
        """Tenant, model, and the moment until which the caller waits."""
        # KServe's proto has the model's name where Triton's has the repository's, and nothing behind it.
        name = request.model_name or request.repository_name
        if not name:
            raise invalid("model_name", "names no model")
        tenant = calling().tenant
        if not self._allowed:
            raise Refusal(
                Reason.UNSUPPORTED,
                "this frontend takes no loads and unloads (APPORTION_FRONTEND_MODEL_CONTROL); "
                f"use `apportion model load {name}` and `apportion model unload {name}`",
            )
        remaining_s = context.time_remaining()
        return tenant, name, time.monotonic() + (self._default_s if remaining_s is None else remaining_s * MARGIN)

    async def _noted(self, tenant: str, model: str, ends: float, *, unloaded: bool) -> int:
        timeout_s = max(0.0, ends - time.monotonic())
        return await self._wishes.note(tenant, model, unloaded=unloaded, timeout_s=timeout_s)

    async def _until(self, check: Check, tenant: str, model: str, revision: int, ends: float) -> None:
        """Waits until nothing is lacking. Raises Refusal with what is, at the end or once its patience is used up."""
        since, reason = time.monotonic(), None
        while (pending := check(self._table, tenant, model, revision)) is not None:
            now = time.monotonic()
            if (pending.refusal.reason, pending.patience_s) != reason:
                since, reason = now, (pending.refusal.reason, pending.patience_s)
            if now >= min(ends, since + pending.patience_s):
                raise pending.refusal
            await asyncio.sleep(LOOK_S)


def _no_overrides(parameters: Iterable[str]) -> None:
    """Refuses what would have a model loaded other than it was pushed."""
    for name in sorted(parameters):
        if name.startswith("file:"):
            instead = "artefacts come with `apportion model push`"
        elif name == "config":
            instead = "a configuration belongs to a version; push another one with `apportion model push`"
        else:
            instead = "a load takes none; push another version with `apportion model push`"
        raise Refusal(
            Reason.UNSUPPORTED, f"parameters[{name[:80]}]: is not served; {instead}", field=f"parameters[{name[:80]}]"
        )


def _no_extras(parameters: Iterable[str]) -> None:
    """Refuses what unloading does not know. `unload_dependents` changes nothing: no model is made of others."""
    for name in sorted(parameters):
        if name != "unload_dependents":
            raise Refusal(
                Reason.UNSUPPORTED,
                f"parameters[{name[:80]}]: is not served; an unload takes unload_dependents alone",
                field=f"parameters[{name[:80]}]",
            )


def _unnoted(error: grpc.aio.AioRpcError, tenant: str, model: str) -> Refusal:
    refusal = from_rpc_error(error)
    if refusal is None or refusal.reason is Reason.NOT_SERVING:
        said = "cannot be reached" if refusal is None else f"cannot note it: {refusal.message}"
        return Refusal(Reason.NOT_SERVING, f'model "{model}": the registry {said}', retry_after_s=1)
    if refusal.reason in (Reason.MODEL_NOT_FOUND, Reason.FIELD_INVALID):
        return Refusal(
            Reason.MODEL_NOT_FOUND,
            f'model_name: tenant "{tenant}" has no model "{model[:80]}"',
            field="model_name",
            facts={"tenant": tenant, "model": model[:80]},
        )
    return refusal


def _why(version: Version) -> str:
    if version.state is State.READY:
        return ""
    # The word that Triton has for it, which clients look for.
    return str(version.state) if version.state is State.UNLOADED else version.message or str(version.state)
