"""A client of the Open Inference Protocol: plain generated stubs over grpc.aio, tensors as raw bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import grpc
import numpy as np
from numpy.typing import NDArray

from services._proto.inference import grpc_service_pb2, grpc_service_pb2_grpc

TYPES: dict[str, str] = {"int32": "INT32", "int64": "INT64", "float32": "FP32"}
NUMPY: dict[str, Any] = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32}

Tensors = Mapping[str, NDArray[Any]]


class Infers(Protocol):
    """Whatever runs a model: the mesh, or the model itself in a test."""

    async def infer(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """One request."""
        ...


class Model:
    """One tenant's model behind the frontend. deadline_s: past it a call is given up."""

    def __init__(self, channel: grpc.aio.Channel, name: str, api_key: str, *, deadline_s: float = 20.0) -> None:
        self._stub: Any = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        self._name, self._deadline_s = name, deadline_s
        self._metadata = (("authorization", f"Bearer {api_key}"),)

    async def infer(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Runs one request. Raises grpc.aio.AioRpcError where it was refused."""
        return decode(await self.send(encode(self._name, inputs)))

    async def send(self, request: Any) -> Any:
        """Sends a request that was encoded before, as load generators do."""
        return await self._stub.ModelInfer(request, timeout=self._deadline_s, metadata=self._metadata)


def encode(model: str, inputs: Tensors) -> Any:
    """A ModelInferRequest with raw contents."""
    request = grpc_service_pb2.ModelInferRequest(model_name=model)
    for name, value in inputs.items():
        request.inputs.add(name=name, datatype=TYPES[value.dtype.name], shape=value.shape)
        request.raw_input_contents.append(np.ascontiguousarray(value).tobytes())
    return request


def decode(response: Any) -> dict[str, NDArray[Any]]:
    """The outputs of a ModelInferResponse by name."""
    return {
        spec.name: np.frombuffer(raw, dtype=NUMPY[spec.datatype]).reshape(tuple(spec.shape))
        for spec, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
