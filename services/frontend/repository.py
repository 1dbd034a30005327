"""The repository extension: the caller's models and where each stands."""

from __future__ import annotations

from typing import Any

from services._proto.inference import grpc_service_pb2 as pb
from services.common.errors import Reason, Refusal, invalid
from services.frontend.core.keys import Keys
from services.frontend.core.routes import Route, State, Version
from services.frontend.core.routing import RoutingTable

INDEX_STATES = {State.READY: "READY", State.LOADING: "LOADING"}
"""What clients read; every other state is UNAVAILABLE."""
UNAVAILABLE = "UNAVAILABLE"


class Repository:
    """Index, load and unload."""

    def __init__(self, keys: Keys, table: RoutingTable) -> None:
        self._keys, self._table = keys, table

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Any) -> pb.RepositoryIndexResponse:
        """The caller's models, a line a version; `ready`: only what serves. There is one repository, without a name."""
        response = pb.RepositoryIndexResponse()
        for route in self._table.models(self._tenant(context)):
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
        """Succeeds where the model serves: models are loaded when they are pushed and stay so. Else says why it does not."""
        if request.parameters:
            raise Refusal(
                Reason.UNSUPPORTED,
                "parameters: a load takes none here; push another version with `apportion model push`",
                field="parameters",
            )
        route = self._route(request, context)
        self._table.replica(route, self._table.version(route, ""))
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Any
    ) -> pb.RepositoryModelUnloadResponse:
        """Not served: what runs where is the scheduler's to decide."""
        route = self._route(request, context)
        raise Refusal(
            Reason.UNSUPPORTED,
            f"RepositoryModelUnload is not served; use `apportion model remove {route.model}`, "
            "and `apportion model push` to have it again",
        )

    def _route(self, request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest, context: Any) -> Route:
        # KServe's proto has the model's name where Triton's has the repository's, and nothing behind it.
        name = request.model_name or request.repository_name
        if not name:
            raise invalid("model_name", "names no model")
        return self._table.route(self._tenant(context), name)

    def _tenant(self, context: Any) -> str:
        metadata = dict(context.invocation_metadata())
        return self._keys.tenant(metadata.get("authorization"), metadata.get("apportion-key"))


def _why(version: Version) -> str:
    if version.state is State.READY:
        return ""
    return version.message or str(version.state)
