"""Which permission each method needs: what its contract says, or this table for the contracts that are not ours."""

from __future__ import annotations

from functools import cache

from google.protobuf import descriptor_pool

from services._proto.apportion.v1 import common_pb2, executor_pb2, registry_pb2, rollups_pb2, scheduler_pb2

_OIP = "/inference.GRPCInferenceService/"
_JAEGER = "/jaeger.api_v3.QueryService/"
_PUBLIC, _READ, _WRITE, _INFER, _MESH = (
    common_pb2.PERMISSION_PUBLIC,
    common_pb2.PERMISSION_TENANT_READ,
    common_pb2.PERMISSION_TENANT_WRITE,
    common_pb2.PERMISSION_TENANT_INFER,
    common_pb2.PERMISSION_MESH,
)
OTHERS: dict[str, int] = {
    **{_OIP + name: _PUBLIC for name in ("ServerLive", "ServerReady", "ServerMetadata")},
    **{_OIP + name: _READ for name in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")},
    **{_OIP + name: _READ for name in ("RepositoryIndex", "TraceSetting", "LogSettings")},
    **{_OIP + name: _READ for name in ("SystemSharedMemoryStatus", "CudaSharedMemoryStatus")},
    **{_OIP + name: _WRITE for name in ("RepositoryModelLoad", "RepositoryModelUnload")},
    **{_OIP + name: _INFER for name in ("ModelInfer", "ModelStreamInfer")},
    **{
        _OIP + f"{kind}SharedMemory{what}": _INFER for kind in ("System", "Cuda") for what in ("Register", "Unregister")
    },
    **{_JAEGER + name: _READ for name in ("GetTrace", "FindTraces", "GetServices", "GetOperations")},
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export": _MESH,
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": _MESH,
    **{f"/grpc.health.v1.Health/{name}": _PUBLIC for name in ("Check", "Watch", "List")},
    # It tells of methods, not of tenants; still, nobody without a credential needs to know them.
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _READ,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": _READ,
}
"""By the method's path."""
_OURS = (registry_pb2, scheduler_pb2, executor_pb2, rollups_pb2)


@cache
def named() -> dict[str, int]:
    """The permission of every method that has one, by its path: what is not here is denied to everybody."""
    found = dict(OTHERS)
    pool = descriptor_pool.Default()
    for module in _OURS:
        for service in pool.FindFileByName(module.DESCRIPTOR.name).services_by_name.values():
            for method in service.methods:
                permission: int = method.GetOptions().Extensions[common_pb2.permission]  # type: ignore[index]
                if permission != common_pb2.PERMISSION_UNSPECIFIED:
                    found[f"/{service.full_name}/{method.name}"] = permission
    return found
