"""tritonclient's load_model and unload_model, in a process of its own.

`python triton_loading.py ADDRESS KEY` asks for the model `linear`; prints a line for each thing that worked.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

WAIT_S = 30.0
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


def inputs(module: Any) -> list[Any]:
    made = module.InferInput("x", list(ROWS.shape), "FP32")
    made.set_data_from_numpy(ROWS)
    return [made]


def told_by(call: Any) -> tuple[str, str]:
    """The status and the message of a call that must fail."""
    try:
        call()
    except triton.InferenceServerException as error:
        return str(error.status()), str(error.message())
    raise AssertionError("the call went through")


def standing(client: Any, headers: dict[str, str]) -> list[tuple[str, str, str]]:
    models = client.get_model_repository_index(headers=headers).models
    return [(each.version, each.state, each.reason) for each in models if each.name == "linear"]


def check_sync(client: Any, headers: dict[str, str]) -> None:
    """Unloaded it says so everywhere; loaded it serves at once."""
    for _ in range(3):
        client.unload_model("linear", headers=headers, client_timeout=WAIT_S)
        assert not client.is_model_ready("linear", headers=headers)
        assert standing(client, headers) == [("1", "UNAVAILABLE", "unloaded")]
        status, message = told_by(lambda: client.infer("linear", inputs(triton), headers=headers))
        assert status == "StatusCode.UNAVAILABLE", status
        assert "is unloaded: by request" in message, message
        assert "apportion model load linear" in message, message
        client.unload_model("linear", unload_dependents=True, headers=headers, client_timeout=WAIT_S)
        client.load_model("linear", headers=headers, client_timeout=WAIT_S)
        assert client.is_model_ready("linear", headers=headers)
        assert standing(client, headers) == [("1", "READY", "")]
        client.infer("linear", inputs(triton), headers=headers, client_timeout=WAIT_S)
    print("sync")


def check_refusals(client: Any, headers: dict[str, str]) -> None:
    """What is not served is named; what is not there is not found."""
    status, message = told_by(lambda: client.load_model("linear", config="{}", headers=headers))
    assert (status, "parameters[config]" in message) == ("StatusCode.UNIMPLEMENTED", True), message
    files = {"file:1/model.onnx": b"x"}
    status, message = told_by(lambda: client.load_model("linear", files=files, headers=headers))
    assert (status, "parameters[file:1/model.onnx]" in message) == ("StatusCode.UNIMPLEMENTED", True), message
    for call in (client.load_model, client.unload_model):
        assert told_by(lambda call=call: call("nobody", headers=headers))[0] == "StatusCode.NOT_FOUND"
        assert told_by(lambda call=call: call("linear"))[0] == "StatusCode.NOT_FOUND"
    print("refusals")


async def check_aio(address: str, headers: dict[str, str]) -> None:
    """The same of its third client, while requests come; those that were taken are answered."""
    async with triton_aio.InferenceServerClient(address) as client:
        asked = [client.infer("linear", inputs(triton_aio), headers=headers) for _ in range(50)]
        going = asyncio.gather(*asked, return_exceptions=True)
        await client.unload_model("linear", headers=headers, client_timeout=WAIT_S)
        for each in await going:
            if isinstance(each, Exception):
                # Those that had been sent to the replica as it left are told so by its executor.
                assert "UNAVAILABLE" in str(each), each
                assert "is unloaded" in str(each) or "is not served here" in str(each), each
        await client.load_model("linear", headers=headers, client_timeout=WAIT_S)
        assert await client.is_model_ready("linear", headers=headers)
        await client.infer("linear", inputs(triton_aio), headers=headers, client_timeout=WAIT_S)
    print("aio")


def main(address: str, key: str) -> None:
    """Everything, in order."""
    headers = {"authorization": f"Bearer {key}"}
    with triton.InferenceServerClient(address) as client:
        check_sync(client, headers)
        check_refusals(client, headers)
    asyncio.run(check_aio(address, headers))


main(sys.argv[1], sys.argv[2])
