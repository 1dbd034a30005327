"""tritonclient in a process of its own: its messages and ours cannot be loaded together."""

from __future__ import annotations

import asyncio
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio


def inputs(values: np.ndarray, module: object = triton) -> list[object]:
    tensor = module.InferInput("x", list(values.shape), "FP32")  # type: ignore[attr-defined]
    tensor.set_data_from_numpy(values)
    return [tensor]


def main(address: str) -> None:
    client = triton.InferenceServerClient(address)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    assert client.get_model_config("m").config.max_batch_size == 8
    assert client.get_model_metadata("m", as_json=True)["inputs"][0]["shape"] == ["-1", "16"]
    print("ready")
    values = np.arange(32, dtype=np.float32).reshape(2, 16)
    result = client.infer(
        "m", inputs(values), request_id="7", priority=1, timeout=5_000_000, parameters={"slo_ms": 500}
    )
    assert result.get_response().id == "7"
    assert (result.as_numpy("X") == values).all()
    print("sync")
    answers: queue.Queue[tuple[object, object]] = queue.Queue()
    for _ in range(20):
        client.async_infer("m", inputs(values), lambda result, error: answers.put((result, error)))
    for _ in range(20):
        got, error = answers.get(timeout=10)
        assert error is None
        assert (got.as_numpy("X") == values).all()  # type: ignore[attr-defined]
    print("async")
    asyncio.run(in_aio(address, values))
    large = np.random.default_rng(1).random((128, 8192), dtype=np.float32)
    assert (client.infer("m", inputs(large)).as_numpy("X") == large).all()
    print("large")
    for told, code, model, sequence in (("error", "NOT_FOUND", "nobody", 0), ("sequence", "UNIMPLEMENTED", "m", 3)):
        try:
            client.infer(model, inputs(values), sequence_id=sequence, sequence_start=bool(sequence))
        except triton.InferenceServerException as error:
            print(told if code in error.status() else error)


async def in_aio(address: str, values: np.ndarray) -> None:
    async with triton_aio.InferenceServerClient(address) as client:
        results = await asyncio.gather(*(client.infer("m", inputs(values, triton_aio)) for _ in range(20)))
        assert all((result.as_numpy("X") == values).all() for result in results)
    print("aio")


main(sys.argv[1])
