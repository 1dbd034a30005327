"""CUDA shared memory as tritonclient uses it, in a process of its own.

`python triton_regions.py ADDRESS KEY OTHER_KEY cuda|host [PID…]` asks for the model `linear`; prints a line for each thing that
worked, and with `cuda` a last line of JSON with what requests took. host: files in place of a GPU's memory. PID…: processes that are
killed, one after another, while regions are registered.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton

WAIT_S = 60.0
SEEN_S = 0.3
"""Until whoever talks to a killed process has noticed."""
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
HANDLE_BYTES = 64
SIZE = 4096


class HostMemory:
    """The functions of tritonclient.utils.cuda_shared_memory, over files below /dev/shm whose names are their handles."""

    @staticmethod
    def create_shared_memory_region(name: str, byte_size: int, _device_id: int) -> Path:
        path = Path(f"/dev/shm/regions_{os.getpid()}_{name}")
        path.write_bytes(bytes(byte_size))
        return path

    @staticmethod
    def get_raw_handle(region: Path) -> bytes:
        return base64.b64encode(region.name.encode().ljust(HANDLE_BYTES, b"\0"))

    @staticmethod
    def set_shared_memory_region(region: Path, values: list[np.ndarray]) -> None:
        with region.open("r+b") as file:
            for value in values:
                file.write(value.tobytes())

    @staticmethod
    def get_contents_as_numpy(region: Path, datatype: Any, shape: Any) -> np.ndarray:
        return np.frombuffer(region.read_bytes(), datatype, int(np.prod(shape))).reshape(shape)

    @staticmethod
    def destroy_shared_memory_region(region: Path) -> None:
        region.unlink()


def told_by(call: Any) -> tuple[str, str]:
    """The status and the message of a call that must fail."""
    try:
        call()
    except triton.InferenceServerException as error:
        return str(error.status()).removeprefix("StatusCode."), str(error.message())
    return "OK", ""


def plain(rows: np.ndarray) -> Any:
    made = triton.InferInput("x", list(rows.shape), "FP32")
    made.set_data_from_numpy(rows)
    return made


def placed(shape: tuple[int, ...], *, offset: int = 0) -> tuple[Any, Any]:
    """An input of that shape in `in`, and the output to `out`."""
    given, wanted = triton.InferInput("x", list(shape), "FP32"), triton.InferRequestedOutput("y")
    given.set_shared_memory("in", 4 * int(np.prod(shape)), offset=offset)
    wanted.set_shared_memory("out", SIZE)
    return given, wanted


class Check:
    """One client, two tenants, one kind of memory."""

    def __init__(self, client: Any, key: str, other: str, memory: Any) -> None:
        self.client, self.memory = client, memory
        self.mine, self.others = {"authorization": f"Bearer {key}"}, {"authorization": f"Bearer {other}"}
        self.regions = {name: memory.create_shared_memory_region(name, SIZE, 0) for name in ("in", "out")}

    def register(self, name: str, headers: dict[str, str] | None = None, size: int = SIZE) -> None:
        handle = self.memory.get_raw_handle(self.regions[name])
        self.client.register_cuda_shared_memory(name, handle, 0, size, headers=headers or self.mine)

    def infer(self, rows: np.ndarray) -> np.ndarray:
        """By way of both regions."""
        self.memory.set_shared_memory_region(self.regions["in"], [rows])
        given, wanted = placed(rows.shape)
        answer = self.client.infer("linear", [given], outputs=[wanted], headers=self.mine)
        assert list(answer.get_response().raw_output_contents) == [b""]
        told = answer.get_output("y")
        assert told.parameters["shared_memory_region"].string_param == "out"
        assert told.parameters["shared_memory_byte_size"].int64_param == 4 * 3 * len(rows)
        got: np.ndarray = self.memory.get_contents_as_numpy(self.regions["out"], np.float32, [len(rows), 3])
        return got.copy()

    def tensors(self) -> None:
        assert "cuda_shared_memory" in self.client.get_server_metadata(headers=self.mine).extensions
        for name in self.regions:
            self.register(name)
        told = self.client.get_cuda_shared_memory_status(headers=self.mine, as_json=True)["regions"]
        assert {name: int(each["byte_size"]) for name, each in told.items()} == {"in": SIZE, "out": SIZE}
        for turn in range(8):
            rows = ROWS * (turn + 1)
            expected = self.client.infer("linear", [plain(rows)], headers=self.mine).as_numpy("y")
            assert expected.any()
            np.testing.assert_allclose(self.infer(rows), expected, rtol=1e-5, atol=1e-5)
        print("tensors", flush=True)

    def bounds(self) -> None:
        given, wanted = placed((2, 4), offset=SIZE - 31)
        status, said = told_by(lambda: self.client.infer("linear", [given], outputs=[wanted], headers=self.mine))
        assert (status, "reach beyond" in said) == ("INVALID_ARGUMENT", True), said
        self.client.unregister_cuda_shared_memory("out", headers=self.mine)
        status, said = told_by(lambda: self.register("out", size=1 << 40))
        # Beyond what a tenant may have; within it, the memory's own size is what counts.
        assert status in ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"), said
        status, said = told_by(lambda: self.register("out", size=1 << 30))
        assert (status, "are more than" in said) == ("INVALID_ARGUMENT", True), said
        bad = lambda: self.client.register_cuda_shared_memory(
            "bad", base64.b64encode(os.urandom(HANDLE_BYTES)), 0, 64, headers=self.mine
        )
        assert told_by(bad)[0] == "INVALID_ARGUMENT", told_by(bad)
        self.register("out")
        print("bounds", flush=True)

    def tenants(self) -> None:
        given, wanted = placed((2, 4))
        assert (
            told_by(lambda: self.client.infer("linear", [given], outputs=[wanted], headers=self.others))[0]
            == "NOT_FOUND"
        )
        assert not self.client.get_cuda_shared_memory_status(headers=self.others).regions
        assert told_by(lambda: self.register("in", self.others))[0] == "INVALID_ARGUMENT"
        self.infer(ROWS)
        print("tenants", flush=True)

    def restart(self, process: int) -> None:
        """Regions are there again with the process that takes the place of one that was killed."""
        os.kill(process, signal.SIGKILL)
        time.sleep(SEEN_S)
        ends = time.monotonic() + WAIT_S
        while True:
            status, said = told_by(lambda: self.infer(ROWS))
            if status == "OK":
                break
            # Typed, whatever it is just then: the process, its model or its regions are not there yet.
            assert status in ("UNAVAILABLE", "NOT_FOUND"), (status, said)
            assert time.monotonic() < ends, said
            time.sleep(0.1)
        print("restart", flush=True)

    def leave(self) -> None:
        self.client.unregister_cuda_shared_memory(headers=self.mine)
        given, wanted = placed((2, 4))
        assert (
            told_by(lambda: self.client.infer("linear", [given], outputs=[wanted], headers=self.mine))[0] == "NOT_FOUND"
        )
        for region in self.regions.values():
            self.memory.destroy_shared_memory_region(region)
        print("gone", flush=True)

    def figures(self, turns: int = 300) -> dict[str, float]:
        """Medians in milliseconds of one caller's requests: through regions, and with tensors in the request."""
        given, wanted = placed((2, 4))
        ways = {
            "regions_ms": lambda: self.client.infer("linear", [given], outputs=[wanted], headers=self.mine),
            "request_ms": lambda: self.client.infer("linear", [plain(ROWS)], headers=self.mine),
        }
        told = {}
        for name, way in ways.items():
            took = []
            for _ in range(turns):
                began = time.perf_counter()
                way()
                took.append(1000 * (time.perf_counter() - began))
            told[name] = round(statistics.median(took), 3)
        return told


def main(address: str, key: str, other: str, kind: str, processes: list[int]) -> None:
    """Everything, in order."""
    if kind == "cuda":
        from tritonclient.utils import cuda_shared_memory as memory
    else:
        memory = HostMemory()
    with triton.InferenceServerClient(address) as client:
        check = Check(client, key, other, memory)
        check.tensors()
        check.bounds()
        check.tenants()
        for each in processes:
            check.restart(each)
        figures = check.figures()
        check.leave()
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], [int(each) for each in sys.argv[5:]])
