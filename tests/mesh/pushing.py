"""Pushes without the command line, which would refuse by itself much of what the mesh has to refuse."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import grpc

from services._proto.apportion.v1 import common_pb2, registry_pb2, registry_pb2_grpc
from tests.mesh.running import RunningMesh, wait_until

ONNX = registry_pb2.ARTEFACT_FORMAT_ONNX
PT2 = registry_pb2.ARTEFACT_FORMAT_TORCH_EXPORT
PART_BYTES = 1 << 20
CALL_S = 20.0


class Pusher:
    """One tenant's pushes over the registry's stubs."""

    def __init__(self, mesh: RunningMesh, tenant: str) -> None:
        self._channel = grpc.insecure_channel(mesh.addresses["registry"])
        self.stub: Any = registry_pb2_grpc.RegistryServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.tenant = tenant

    def __enter__(self) -> Pusher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._channel.close()

    def upload(self, data: bytes, **header: Any) -> Any:
        """Stores an artefact. header: what to announce instead of the truth."""
        return self.stub.UploadArtefact(self._parts(data, header), timeout=CALL_S)

    def version(self, name: str, data: bytes, *, version: int | None = None, **config: Any) -> Any:
        """Creates a version of what has been uploaded."""
        return self.stub.CreateVersion(
            registry_pb2.CreateVersionRequest(
                key=self._key(name),
                version=version,
                digest=digest_of(data),
                config=registry_pb2.VersionConfig(**config),
            ),
            timeout=CALL_S,
        )

    def push(self, name: str, data: bytes, **version: Any) -> Any:
        """Uploads and creates a version."""
        self.upload(data)
        return self.version(name, data, **version)

    def inspected(self, name: str) -> Any:
        """The first version of a model, once a worker has said what it thinks of it."""

        def asked() -> Any:
            request = registry_pb2.GetModelRequest(key=self._key(name))
            return self.stub.GetModel(request, timeout=CALL_S).model.versions[0]

        pending = (registry_pb2.INSPECTION_UNSPECIFIED, registry_pb2.INSPECTION_PENDING)
        wait_until(lambda: asked().inspection not in pending, what=f"the inspection of {name}")
        return asked()

    def _key(self, name: str) -> Any:
        return common_pb2.ModelKey(tenant=self.tenant, name=name)

    def _parts(self, data: bytes, header: dict[str, Any]) -> Iterator[Any]:
        told = {"tenant": self.tenant, "digest": digest_of(data), "size_bytes": len(data), **header}
        yield registry_pb2.UploadArtefactRequest(header=registry_pb2.ArtefactHeader(**told))
        for start in range(0, len(data), PART_BYTES):
            yield registry_pb2.UploadArtefactRequest(data=data[start : start + PART_BYTES])


def digest_of(data: bytes) -> str:
    """The artefact's content address."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
