"""inference.GRPCInferenceService: everything but the path of requests, and the table of all handlers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version as installed
from typing import Any

import grpc

from services._proto.inference import grpc_service_pb2 as pb
from services._proto.inference import model_config_pb2 as config_pb
from services.common.access.callers import calling
from services.common.errors import Reason, Refusal
from services.frontend.core import describe
from services.frontend.core.routes import Route, Signature, State, Version
from services.frontend.core.routing import RoutingTable, find
from services.frontend.inference import Inference
from services.frontend.memory import MemoryService
from services.frontend.repository import Repository
from services.frontend.statistics import Statistics
from services.frontend.stream import Streams

SERVICE = "inference.GRPCInferenceService"
EXTENSIONS = (
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
    "system_shared_memory",
)
"""Extensions of the protocol that are served: what `ServerMetadata` lists, clients rely on."""
OF_DEVICES = "cuda_shared_memory"
"""Listed beside them where some executor opens a GPU's memory."""

INSTEAD = {
    "TraceSetting": "set APPORTION_FRONTEND_TRACE_SAMPLE",
    "LogSettings": "set APPORTION_LOG_LEVEL",
}
"""Methods that are not served, and what does their work."""


class Describer:
    """Health and metadata.

    platforms: the format's name by (tenant, model, version). ready: whether tenants and routes are known. devices: whether a GPU's
    memory may be registered.
    """

    def __init__(
        self,
        table: RoutingTable,
        platforms: Callable[[], Mapping[tuple[str, str, int], str]],
        ready: Callable[[], bool],
        devices: Callable[[], bool] = lambda: False,
    ) -> None:
        self._table, self._platforms, self._ready, self._devices = table, platforms, ready, devices

    async def ServerLive(self, _request: pb.ServerLiveRequest, _context: Any) -> pb.ServerLiveResponse:
        """It answers, so it lives."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, _request: pb.ServerReadyRequest, _context: Any) -> pb.ServerReadyResponse:
        """Whether tenants and routes are known."""
        return pb.ServerReadyResponse(ready=self._ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, _context: Any) -> pb.ModelReadyResponse:
        """Whether the version, or some version where none is named, serves. A model that is not there is not ready."""
        tenant = calling().tenant
        try:
            route = self._table.route(tenant, request.name)
            self._table.replica(route, self._table.version(route, request.version))
        except Refusal:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, _request: pb.ServerMetadataRequest, _context: Any) -> pb.ServerMetadataResponse:
        """Name, version, and the extensions that are served."""
        extensions = (*EXTENSIONS, OF_DEVICES) if self._devices() else EXTENSIONS
        return pb.ServerMetadataResponse(name="apportion", version=installed("apportion"), extensions=extensions)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, _context: Any) -> pb.ModelMetadataResponse:
        """Tensors of the version, with whole shapes. Refusals as ModelInfer's while its signature is not known."""
        route, version, signature = self._found(request.name, request.version)
        response = pb.ModelMetadataResponse(
            name=route.model,
            versions=[str(version.version)] if request.version else _ready_versions(route),
            platform=self._platform(route, version),
        )
        for tensors, told in ((signature.inputs, response.inputs), (signature.outputs, response.outputs)):
            for tensor in tensors:
                told.add(name=tensor.name, datatype=tensor.datatype, shape=describe.shape(tensor))
        return response

    async def ModelConfig(self, request: pb.ModelConfigRequest, _context: Any) -> pb.ModelConfigResponse:
        """The version's configuration in Triton's terms. Refusals as ModelMetadata's."""
        route, version, signature = self._found(request.name, request.version)
        platform, rows = self._platform(route, version), describe.batch_rows(signature)
        config = config_pb.ModelConfig(
            name=route.model, platform=platform, backend=BACKENDS.get(platform, ""), max_batch_size=rows
        )
        config.version_policy.specific.versions.extend(map(int, _ready_versions(route)))
        for tensor in signature.inputs:
            dims, kind = describe.dims(tensor, rows), describe.TYPES[tensor.datatype]
            config.input.add(name=tensor.name, data_type=kind, dims=dims, optional=tensor.optional)  # type: ignore[arg-type]
        for tensor in signature.outputs:
            dims, kind = describe.dims(tensor, rows), describe.TYPES[tensor.datatype]
            config.output.add(name=tensor.name, data_type=kind, dims=dims)  # type: ignore[arg-type]
        if rows:
            config.dynamic_batching.SetInParent()
        return pb.ModelConfigResponse(config=config)

    def _found(self, name: str, named: str) -> tuple[Route, Version, Signature]:
        route = self._table.route(calling().tenant, name)
        version = find(route, named) if named else self._table.version(route, "")
        if version.signature is None:
            raise Refusal(
                Reason.MODEL_NOT_READY,
                f'model "{name}" version {version.version}: its tensors are not known yet; it is {version.state}',
                retry_after_s=1,
            )
        return route, version, version.signature

    def _platform(self, route: Route, version: Version) -> str:
        return self._platforms().get((route.tenant, route.model, version.version), "")


BACKENDS = {"onnxruntime_onnx": "onnxruntime", "pytorch_export": "pytorch", "python": "python"}


def _ready_versions(route: Route) -> list[str]:
    return [str(number) for number, version in route.versions.items() if version.state is State.READY]


SERVED = {
    Describer: ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig"),
    Statistics: ("ModelStatistics",),
    Repository: ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
    MemoryService: (
        "SystemSharedMemoryStatus",
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus",
        "CudaSharedMemoryRegister",
        "CudaSharedMemoryUnregister",
    ),
}
"""Who serves which method, beside those of the path of requests."""


def handlers(inference: Inference, streams: Streams, *servicers: object) -> grpc.GenericRpcHandler:
    """The service's methods. ModelInfer and ModelStreamInfer take and give bytes as they are on the wire.

    servicers: one of each kind in SERVED.
    """
    methods = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(inference.infer),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(streams.infer),
    }
    for servicer in servicers:
        for name in SERVED[type(servicer)]:
            methods[name] = grpc.unary_unary_rpc_method_handler(
                getattr(servicer, name),
                request_deserializer=getattr(pb, f"{name}Request").FromString,
                response_serializer=getattr(pb, f"{name}Response").SerializeToString,
            )
    for name, instead in INSTEAD.items():
        methods[name] = grpc.unary_unary_rpc_method_handler(_unsupported(name, instead))
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _unsupported(name: str, instead: str) -> Callable[[bytes, Any], Any]:
    async def refuse(_request: bytes, _context: Any) -> bytes:
        raise Refusal(Reason.UNSUPPORTED, f"{name} is not served; {instead}")

    return refuse
