"""Triton's own client against Apportion: key, deadline, trace context, and retries as the service asks for them.

pip install 'tritonclient[grpc]' grpcio-status
APPORTION_KEY=ap_… python with_tritonclient.py HOST:PORT MODEL INPUT
"""

from __future__ import annotations

import os
import random
import secrets
import sys
import time
from collections.abc import Sequence

import grpc
import numpy as np
import tritonclient.grpc as oip
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tritonclient.utils import InferenceServerException


def retry_after_s(error: InferenceServerException) -> float | None:
    """After how many seconds the service wants to be asked again; None: not at all."""
    cause = error.__cause__ or error.__context__
    status = rpc_status.from_call(cause) if isinstance(cause, grpc.Call) else None
    hint = error_details_pb2.RetryInfo()
    found = any(detail.Unpack(hint) for detail in (status.details if status else ()))
    return hint.retry_delay.ToNanoseconds() / 1e9 if found else None


def traceparent() -> str:
    """A trace of one's own (W3C); pass the one that you have instead."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def infer(
    client: oip.InferenceServerClient,
    model: str,
    inputs: Sequence[oip.InferInput],
    *,
    key: str,
    deadline_s: float = 1.0,
) -> oip.InferResult:
    """One request. The deadline holds over all tries: another is made only where the service names a delay that fits."""
    ends = time.monotonic() + deadline_s
    headers = {"authorization": f"Bearer {key}", "traceparent": traceparent()} if key else {}
    while True:
        try:
            return client.infer(model, inputs, headers=headers, client_timeout=max(0.001, ends - time.monotonic()))
        except InferenceServerException as error:
            delay_s = retry_after_s(error)
            if delay_s is None or time.monotonic() + delay_s >= ends:
                raise
            # Half as much again by chance, so that callers do not come back as one.
            time.sleep(delay_s * (1 + random.random() / 2))


def main() -> None:
    """One request; prints the first output."""
    target, model, name = sys.argv[1:4]
    values = np.array([[1, 2, 3]], np.float32)
    tensor = oip.InferInput(name, list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    with oip.InferenceServerClient(target) as client:
        answer = infer(client, model, [tensor], key=os.environ.get("APPORTION_KEY", ""), deadline_s=20)
    print(answer.as_numpy(answer.get_response().outputs[0].name).tolist())


if __name__ == "__main__":
    main()
