"""tritonclient as its users run it, in a process of its own: its messages and ours cannot be loaded together.

`python triton_client.py ADDRESS KEY` asks for the models `linear` and `words`; prints a line for each thing that worked.
"""

from __future__ import annotations

import asyncio
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

WAIT_S = 20.0
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
WORDS = np.array([["Grüße".encode(), b""], [b"a\x00b", b"x" * 5000]], object)


def tensor(module: Any, name: str, value: np.ndarray, datatype: str) -> list[Any]:
    """The one input of a request."""
    made = module.InferInput(name, list(value.shape), datatype)
    made.set_data_from_numpy(value)
    return [made]


def check_described(client: Any, headers: dict[str, str]) -> None:
    """Health, metadata and configuration."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("linear", headers=headers)
    assert not client.is_model_ready("nobody", headers=headers)
    print("health")
    assert client.get_server_metadata(as_json=True)["name"] == "apportion"
    told = client.get_model_metadata("linear", headers=headers, as_json=True)
    assert told["versions"] == ["1"]
    assert told["platform"] == "onnxruntime_onnx"
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]
    assert told["outputs"] == [{"name": "y", "datatype": "FP32", "shape": ["-1", "3"]}]
    print("metadata")
    config = client.get_model_config("linear", headers=headers).config
    assert (config.max_batch_size, list(config.input[0].dims), list(config.output[0].dims)) == (8, [4], [3])
    print("config")


def check_infer(client: Any, headers: dict[str, str]) -> np.ndarray:
    """One request at a time: numbers, and elements of BYTES. Returns the numbers' answer."""
    outputs = [triton.InferRequestedOutput("y")]
    asked = {"outputs": outputs, "request_id": "seven", "headers": headers, "client_timeout": WAIT_S}
    answer = client.infer("linear", tensor(triton, "x", ROWS, "FP32"), **asked)
    assert answer.get_response().id == "seven"
    assert answer.get_response().model_version == "1"
    assert answer.as_numpy("y").shape == (2, 3)
    print("infer")
    words = client.infer("words", tensor(triton, "in_object", WORDS, "BYTES"), headers=headers)
    assert (words.as_numpy("out_object") == WORDS).all()
    print("strings")
    return answer.as_numpy("y")


def check_async(client: Any, headers: dict[str, str], expected: np.ndarray) -> None:
    """Many requests at once, answers through a callback."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    for number in range(32):
        callback = lambda result, error: answers.put((result, error))
        client.async_infer(
            "linear", tensor(triton, "x", ROWS, "FP32"), callback, request_id=str(number), headers=headers
        )
    seen = set()
    for _ in range(32):
        result, error = answers.get(timeout=WAIT_S)
        assert error is None, error
        assert np.allclose(result.as_numpy("y"), expected)
        seen.add(result.get_response().id)
    assert seen == {str(number) for number in range(32)}
    print("async_infer")


async def check_aio(address: str, headers: dict[str, str], expected: np.ndarray) -> None:
    """The client for asyncio."""
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_ready()
        asked = [
            client.infer("linear", tensor(triton_aio, "x", ROWS + number, "FP32"), headers=headers)
            for number in range(32)
        ]
        answers = await asyncio.gather(*asked)
    assert np.allclose(answers[0].as_numpy("y"), expected)
    assert not np.allclose(answers[1].as_numpy("y"), expected)
    print("aio")


def told_by(call: Any) -> Any:
    """The exception that a call must end in."""
    try:
        call()
    except triton.InferenceServerException as error:
        return error
    raise AssertionError("the call went through")


def check_errors(client: Any, headers: dict[str, str]) -> None:
    """What is wrong comes as the exception of this client, with the status and our message."""
    rows, wide = tensor(triton, "x", ROWS, "FP32"), tensor(triton, "x", np.ones((2, 5), np.float32), "FP32")
    wrong: list[tuple[str, str, str, Any, dict[str, Any]]] = [
        ("NOT_FOUND", "no model", "nobody", rows, {"headers": headers}),
        ("NOT_FOUND", "no version", "linear", rows, {"headers": headers, "model_version": "9"}),
        ("INVALID_ARGUMENT", "where the model takes 4", "linear", wide, {"headers": headers}),
        ("UNAUTHENTICATED", "key", "linear", rows, {"headers": {"authorization": "Bearer ap_nobody"}}),
        ("DEADLINE_EXCEEDED", "stage", "linear", rows, {"headers": headers, "timeout": 1}),
        ("UNIMPLEMENTED", "sequences", "linear", rows, {"headers": headers, "sequence_id": 3, "sequence_start": True}),
    ]
    for status, says, model, inputs, more in wrong:
        told = told_by(lambda: client.infer(model, inputs, **more))  # noqa: B023 - called at once
        assert told.status() == f"StatusCode.{status}", told
        assert says in told.message(), told
    print("errors")


def main(address: str, key: str) -> None:
    """Everything, in order."""
    headers = {"authorization": f"Bearer {key}"}
    with triton.InferenceServerClient(address) as client:
        check_described(client, headers)
        expected = check_infer(client, headers)
        check_async(client, headers, expected)
        asyncio.run(check_aio(address, headers, expected))
        check_errors(client, headers)


main(sys.argv[1], sys.argv[2])
