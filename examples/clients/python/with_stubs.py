"""Plain stubs against Apportion: key, deadline, trace context, and retries as the service asks for them.

pip install grpcio grpcio-tools grpcio-status numpy
python -m grpc_tools.protoc -I protos --python_out=OUT --grpc_python_out=OUT inference/grpc_service.proto inference/model_config.proto
PYTHONPATH=OUT APPORTION_KEY=ap_… python with_stubs.py HOST:PORT MODEL INPUT
"""

from __future__ import annotations

import os
import random
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc as stubs

Metadata = tuple[tuple[str, str], ...]


def retry_after_s(error: grpc.RpcError) -> float | None:
    """After how many seconds the service wants to be asked again; None: not at all."""
    status = rpc_status.from_call(error)
    hint = error_details_pb2.RetryInfo()
    found = any(detail.Unpack(hint) for detail in (status.details if status else ()))
    return hint.retry_delay.ToNanoseconds() / 1e9 if found else None


def metadata(key: str | None) -> Metadata:
    """The tenant's key, and a trace of one's own (W3C); pass the one that you have instead."""
    trace = ("traceparent", f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01")
    return (trace, ("authorization", f"Bearer {key}")) if key else (trace,)


def request(model: str, name: str, values: np.ndarray[Any, Any], request_id: str = "") -> pb.ModelInferRequest:
    """A request with one tensor of FP32: raw bytes, little-endian, row-major."""
    made = pb.ModelInferRequest(model_name=model, id=request_id, raw_input_contents=[values.astype("<f4").tobytes()])
    made.inputs.add(name=name, datatype="FP32", shape=values.shape)
    return made


def infer(stub: Any, asked: pb.ModelInferRequest, *, key: str | None, deadline_s: float = 1.0) -> pb.ModelInferResponse:
    """One request. The deadline holds over all tries: another is made only where the service names a delay that fits."""
    ends, sent = time.monotonic() + deadline_s, metadata(key)
    while True:
        try:
            return stub.ModelInfer(asked, metadata=sent, timeout=max(0.001, ends - time.monotonic()))
        except grpc.RpcError as error:
            delay_s = retry_after_s(error)
            if delay_s is None or time.monotonic() + delay_s >= ends:
                raise
            # Half as much again by chance, so that callers do not come back as one.
            time.sleep(delay_s * (1 + random.random() / 2))


def stream(stub: Any, asked: Iterable[pb.ModelInferRequest], *, key: str | None, deadline_s: float = 10.0) -> Iterator[pb.ModelInferResponse]:  # fmt: skip
    """Many requests over one stream; answers as they are ready, each with the id of its request."""
    for answer in stub.ModelStreamInfer(iter(asked), metadata=metadata(key), timeout=deadline_s):
        if answer.error_message:
            raise RuntimeError(answer.error_message)
        yield answer.infer_response


def main() -> None:
    """One request and a stream; prints the values that came back."""
    target, model, name = sys.argv[1:4]
    key = os.environ.get("APPORTION_KEY")
    with grpc.insecure_channel(target) as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)
        answer = infer(stub, request(model, name, np.array([[1, 2, 3]])), key=key, deadline_s=20)
        print(np.frombuffer(answer.raw_output_contents[0], "<f4").tolist())
        several = [request(model, name, np.array([[n]]), str(n)) for n in range(3)]
        for each in stream(stub, several, key=key):
            print(each.id, np.frombuffer(each.raw_output_contents[0], "<f4").tolist())


if __name__ == "__main__":
    main()
