"""The extensions of the protocol as tritonclient uses them, in a process of its own.

`python triton_protocol.py ADDRESS KEY` asks for the models `linear` and `words`; prints a line for each thing that worked.
"""

from __future__ import annotations

import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import serialize_byte_tensor, shared_memory

WAIT_S = 30.0
MANY = 300
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
WORDS = np.array([[b"a", "Grüße".encode()], [b"", b"x" * 3000]], object)


def tensor(name: str, value: np.ndarray, datatype: str) -> Any:
    made = triton.InferInput(name, list(value.shape), datatype)
    made.set_data_from_numpy(value)
    return made


def told_by(call: Any) -> str:
    """The status of a call that must fail."""
    try:
        call()
    except triton.InferenceServerException as error:
        return str(error.status())
    return "the call went through"


class Streaming:
    """A stream and what its callback got."""

    def __init__(self, client: Any, headers: dict[str, str]) -> None:
        self._client = client
        self.answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client.start_stream(lambda result, error: self.answers.put((result, error)), headers=headers)

    def __enter__(self) -> Streaming:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.stop_stream()

    def next(self) -> tuple[Any, Any]:
        return self.answers.get(timeout=WAIT_S)


def check_stream(client: Any, headers: dict[str, str]) -> None:
    """Many in flight, one answer each, each marked as final."""
    expected = client.infer("linear", [tensor("x", ROWS, "FP32")], headers=headers).as_numpy("y")
    with Streaming(client, headers) as stream:
        for number in range(MANY):
            client.async_stream_infer(
                "linear", [tensor("x", ROWS, "FP32")], request_id=str(number), enable_empty_final_response=True
            )
        seen = set()
        for _ in range(MANY):
            result, error = stream.next()
            assert error is None, error
            assert np.allclose(result.as_numpy("y"), expected)
            response = result.get_response()
            assert response.parameters["triton_final_response"].bool_param
            seen.add(response.id)
        assert seen == {str(number) for number in range(MANY)}
    print("stream")
    with Streaming(client, headers) as stream:
        for number in range(50):
            client.async_stream_infer("linear", [tensor("x", ROWS + number, "FP32")], request_id="same")
        first = [stream.next()[0].as_numpy("y")[0, 0] for _ in range(50)]
    alone = [
        client.infer("linear", [tensor("x", ROWS + number, "FP32")], headers=headers).as_numpy("y")[0, 0]
        for number in (0, 49)
    ]
    assert np.allclose([first[0], first[-1]], alone)
    assert (np.sign(np.diff(first)) == np.sign(first[-1] - first[0])).all()
    print("order")


def check_stream_errors(client: Any, headers: dict[str, str]) -> None:
    """An error comes to the callback, and the stream goes on; whoever wants it as the status gets it so."""
    with Streaming(client, headers) as stream:
        client.async_stream_infer("nobody", [tensor("x", ROWS, "FP32")], request_id="1")
        _, error = stream.next()
        assert "MODEL_NOT_FOUND" in error.message(), error
        client.async_stream_infer("linear", [tensor("x", ROWS, "FP32")], request_id="2")
        _, error = stream.next()
        assert error is None, error
    with Streaming(client, {**headers, "triton_grpc_error": "true"}) as stream:
        client.async_stream_infer("nobody", [tensor("x", ROWS, "FP32")])
        _, error = stream.next()
        assert error.status() == "StatusCode.NOT_FOUND", error
    print("stream errors")


def check_shared_memory(client: Any, headers: dict[str, str]) -> None:
    """Tensors in and out of shared memory, numbers and strings."""
    expected = client.infer("linear", [tensor("x", ROWS, "FP32")], headers=headers).as_numpy("y")
    packed = triton.InferInput("in_object", list(WORDS.shape), "BYTES")
    packed.set_data_from_numpy(WORDS)
    words = packed._get_content()
    sizes = {"numbers": 4096, "words": 1 << 16}
    regions = {name: shared_memory.create_shared_memory_region(name, f"/mesh_{name}", sizes[name]) for name in sizes}
    try:
        for name, size in sizes.items():
            client.register_system_shared_memory(name, f"/mesh_{name}", size, headers=headers)
        told = client.get_system_shared_memory_status(headers=headers, as_json=True)["regions"]
        assert set(told) == set(sizes), told
        shared_memory.set_shared_memory_region(regions["numbers"], [ROWS])
        given, wanted = triton.InferInput("x", [2, 4], "FP32"), triton.InferRequestedOutput("y")
        given.set_shared_memory("numbers", ROWS.nbytes)
        wanted.set_shared_memory("numbers", expected.nbytes, offset=1024)
        answer = client.infer("linear", [given], outputs=[wanted], headers=headers)
        assert list(answer.get_response().raw_output_contents) == [b""]
        got = shared_memory.get_contents_as_numpy(regions["numbers"], np.float32, [2, 3], offset=1024)
        assert np.array_equal(got, expected)
        assert not np.array_equal(got, np.zeros_like(got))
        shared_memory.set_shared_memory_region(regions["words"], [serialize_byte_tensor(WORDS)])
        given, wanted = triton.InferInput("in_object", [2, 2], "BYTES"), triton.InferRequestedOutput("out_object")
        given.set_shared_memory("words", len(words))
        wanted.set_shared_memory("words", 8192, offset=8192)
        client.infer("words", [given], outputs=[wanted], headers=headers)
        back = shared_memory.get_contents_as_numpy(regions["words"], np.object_, [2, 2], offset=8192)
        assert (back == WORDS).all()
        client.unregister_system_shared_memory(headers=headers)
        assert not client.get_system_shared_memory_status(headers=headers).regions
        assert told_by(lambda: client.infer("words", [given], headers=headers)) == "StatusCode.NOT_FOUND"
    finally:
        for region in regions.values():
            shared_memory.destroy_shared_memory_region(region)
    print("shared memory")


def check_classes(client: Any, headers: dict[str, str]) -> None:
    """The largest values of an output, as text."""
    values = client.infer("linear", [tensor("x", ROWS, "FP32")], headers=headers).as_numpy("y")
    wanted = triton.InferRequestedOutput("y", class_count=2)
    told = client.infer("linear", [tensor("x", ROWS, "FP32")], outputs=[wanted], headers=headers).as_numpy("y")
    assert told.shape == (2, 2)
    for row, ranked in zip(values, told, strict=True):
        order = np.argsort(-row, kind="stable")[:2]
        assert [int(each.split(b":")[1]) for each in ranked] == order.tolist()
        assert np.allclose([float(each.split(b":")[0]) for each in ranked], row[order], atol=1e-5)
    print("classes")


def check_statistics(client: Any, headers: dict[str, str]) -> None:
    """Counts grow by what was asked."""
    ask = lambda: client.get_inference_statistics("linear", "1", headers=headers).model_stats[0]
    before = ask()
    assert (before.name, before.version) == ("linear", "1")
    for _ in range(5):
        client.infer("linear", [tensor("x", ROWS, "FP32")], headers=headers)
    after = ask()
    assert after.inference_count - before.inference_count == 10
    assert 1 <= after.execution_count - before.execution_count <= 5
    assert after.inference_stats.success.count - before.inference_stats.success.count == 5
    for stage in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert getattr(after.inference_stats, stage).ns > getattr(before.inference_stats, stage).ns
    assert sum(each.compute_infer.count for each in after.batch_stats) == after.execution_count
    assert "statistics" in client.get_server_metadata().extensions
    print("statistics")


def check_repository(client: Any, headers: dict[str, str]) -> None:
    """The index, a load of what is loaded, and what is not served."""
    told = client.get_model_repository_index(headers=headers).models
    assert {(each.name, each.state) for each in told} >= {("linear", "READY"), ("words", "READY")}
    client.load_model("linear", headers=headers)
    for call in (
        lambda: client.get_trace_settings(headers=headers),
        lambda: client.get_log_settings(headers=headers),
        lambda: client.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 64, headers=headers),
    ):
        assert told_by(call) == "StatusCode.UNIMPLEMENTED"
    print("repository")


def main(address: str, key: str) -> None:
    """Everything, in order."""
    headers = {"authorization": f"Bearer {key}"}
    with triton.InferenceServerClient(address) as client:
        check_stream(client, headers)
        check_stream_errors(client, headers)
        check_shared_memory(client, headers)
        check_classes(client, headers)
        check_statistics(client, headers)
        check_repository(client, headers)


main(sys.argv[1], sys.argv[2])
