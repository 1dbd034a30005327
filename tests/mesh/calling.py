"""The mesh as a caller sees it: requests over our own stubs, and what a refusal says."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import pytest

from services._proto.inference import grpc_service_pb2 as pb
from services._proto.inference import grpc_service_pb2_grpc as stubs
from services.common.errors import Refusal
from services.common.status import from_rpc_error
from tests.mesh.running import RunningMesh

DATATYPES: dict[str, str] = {
    "bool": "BOOL",
    **{f"{kind}{bits}": f"{kind.upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
    "object": "BYTES",
}
"""The protocol's data types by NumPy's names; arrays of bytes are of type object."""
KINDS = {name: datatype for datatype, name in DATATYPES.items()}
CONTENTS: dict[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
MOST_BYTES = 256 << 20
DEADLINE_S = 20.0

Parameter = bool | int | float | str
_FIELDS: dict[type, str] = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}


class Caller:
    """One tenant's calls over one connection; without a key it is whoever callers from this machine are."""

    def __init__(self, mesh: RunningMesh, tenant: str = "default") -> None:
        options = [("grpc.max_receive_message_length", MOST_BYTES), ("grpc.max_send_message_length", MOST_BYTES)]
        self._channel = grpc.insecure_channel(mesh.addresses["frontend"], options=options)
        self.stub: Any = stubs.GRPCInferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.metadata = mesh.metadata(tenant)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._channel.close()

    def send(self, request: Any, *, timeout_s: float | None = DEADLINE_S, **metadata: str) -> Any:
        """ModelInfer. Raises grpc.RpcError."""
        return self.stub.ModelInfer(request, timeout=timeout_s, metadata=(*self.metadata, *metadata.items()))

    def infer(self, model: str, **tensors: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs for these inputs, both by name."""
        return outputs(self.send(request(model, tensors)))

    def refusal(self, asked: Any, *, timeout_s: float | None = DEADLINE_S) -> tuple[grpc.StatusCode, Refusal]:
        """The code and the typed refusal of a request that must not be served."""
        with pytest.raises(grpc.RpcError) as caught:
            self.send(asked, timeout_s=timeout_s)
        return refused(caught.value)


def refused(error: Any) -> tuple[grpc.StatusCode, Refusal]:
    """The code and the refusal of a failed call; fails where the server sent no details."""
    found = from_rpc_error(error)
    assert found is not None, f"no details: {error.code()}: {error.details()}"
    assert found.message == error.details()
    return error.code(), found


def request(
    model: str,
    tensors: Mapping[str, np.ndarray],
    *,
    typed: bool = False,
    version: str = "",
    number: str = "",
    **parameters: Parameter,
) -> Any:
    """A ModelInferRequest. typed: as typed contents, else raw."""
    made = pb.ModelInferRequest(model_name=model, model_version=version, id=number)
    for name, value in parameters.items():
        setattr(made.parameters[name], _FIELDS[type(value)], value)
    for name, tensor in tensors.items():
        datatype = DATATYPES[tensor.dtype.name]
        into = made.inputs.add(name=name, datatype=datatype, shape=tensor.shape)
        if typed:
            getattr(into.contents, CONTENTS[datatype]).extend(tensor.ravel().tolist())
        else:
            made.raw_input_contents.append(raw(tensor))
    return made


def raw(tensor: np.ndarray) -> bytes:
    """A tensor as the protocol carries it; elements of BYTES each behind their length."""
    if tensor.dtype != object:
        return np.ascontiguousarray(tensor).tobytes()
    return b"".join(len(each).to_bytes(4, "little") + each for each in tensor.ravel())


def outputs(response: Any) -> dict[str, np.ndarray]:
    """The outputs of a response by name."""
    told = zip(response.outputs, response.raw_output_contents, strict=True)
    return {spec.name: _array(spec.datatype, content).reshape(tuple(spec.shape)) for spec, content in told}


def _array(datatype: str, content: bytes) -> np.ndarray:
    if datatype != "BYTES":
        return np.frombuffer(content, KINDS[datatype])
    found: list[bytes] = []
    while content:
        length = int.from_bytes(content[:4], "little")
        found.append(content[4 : 4 + length])
        content = content[4 + length :]
    return np.array(found, object)
