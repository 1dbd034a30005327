"""Small ONNX models, and a client that keeps its books, for tests of real workers."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from gpu_sharing.tensors import NUMPY_NAMES
from gpu_sharing.worker.client import WorkerClient, WorkerConfig
from gpu_sharing.worker.messages import Done, Failed, Load, Loaded, LoadFailed, Release, Submit, TensorRef, Unloaded

MiB = 1 << 20


def save(path: Path, nodes: list, inputs: list, outputs: list) -> Path:
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 9
    onnx.save(model, path)
    return path


def doubling(path: Path) -> Path:
    """y = x + x over [n, 4]."""
    float32 = TensorProto.FLOAT
    x, y = (helper.make_tensor_value_info(name, float32, ["n", 4]) for name in "xy")
    return save(path, [helper.make_node("Add", ["x", "x"], ["y"])], [x], [y])


def scaling(path: Path) -> Path:
    """y = x * k over [3, n], joined along axis 1; k is a scalar without a batch axis; text passes through."""
    float32 = TensorProto.FLOAT
    x, y = (helper.make_tensor_value_info(name, float32, [3, "n"]) for name in "xy")
    k = helper.make_tensor_value_info("k", float32, [])
    return save(path, [helper.make_node("Mul", ["x", "k"], ["y"])], [x, k], [y])


def echoing_text(path: Path) -> Path:
    s, t = (helper.make_tensor_value_info(name, TensorProto.STRING, ["n"]) for name in "st")
    return save(path, [helper.make_node("Identity", ["s"], ["t"])], [s], [t])


def gathering(path: Path) -> Path:
    """y = table[i]: an index out of range breaks it while it runs."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [4], [0.0, 10.0, 20.0, 30.0])
    i = helper.make_tensor_value_info("i", TensorProto.INT64, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    constant = helper.make_node("Constant", [], ["table"], value=table)
    return save(path, [constant, helper.make_node("Gather", ["table", "i"], ["y"])], [i], [y])


class Books:
    """A worker's client as an executor would keep it: futures by call, memory given back."""

    def __init__(self, client: WorkerClient) -> None:
        self.client = client
        self.events: list = []
        self._calls = itertools.count(1)
        self.waiting: dict[int, asyncio.Future] = {}
        self._replies: dict[tuple[type, int], asyncio.Future] = {}

    @classmethod
    async def open(cls, **config: object) -> Books:
        books: list[Books] = []
        given = {"cores": (0,), "input_arena_bytes": 64 * MiB, "output_arena_bytes": 64 * MiB, **config}
        client = await WorkerClient.start(WorkerConfig(**given), on_events=lambda events: books[0].on_events(events))
        books.append(cls(client))
        return books[0]

    def on_events(self, events: Sequence) -> None:
        self.events += events
        for event in events:
            if isinstance(event, Done | Failed):
                self.waiting.pop(event.call).set_result(event)
            for key in ((type(event), getattr(event, "replica", 0)), (type(event), 0)):
                if key in self._replies:
                    self._replies.pop(key).set_result(event)

    def reply(self, kind: type, replica: int) -> asyncio.Future:
        """The next event of that kind."""
        future = self._replies[(kind, replica)] = asyncio.get_running_loop().create_future()
        return future

    async def load(self, path: Path, replica: int = 1, **fields: object) -> Loaded | LoadFailed:
        tenant = fields.pop("tenant", "tenant")
        given = {"format": "onnx", "bandwidth": 0, "weight": 1, "digest": digest_of(path), **fields}
        good, bad = self.reply(Loaded, replica), self.reply(LoadFailed, replica)
        self.client.send(Load(replica, tenant, f"model{replica}", 1, path=str(path), **given))
        await asyncio.wait([good, bad], return_when=asyncio.FIRST_COMPLETED)
        return good.result() if good.done() else bad.result()

    def submit(
        self, inputs: list[np.ndarray], *, replica: int = 1, rows: int = 1, key: bytes = b"", **fields: object
    ) -> asyncio.Future:
        """Sends a request. The future holds its Done or Failed."""
        call = next(self._calls)
        refs = tuple(self._write(index, tensor) for index, tensor in enumerate(inputs))
        future = self.waiting[call] = asyncio.get_running_loop().create_future()
        given = {"arrived": time.monotonic_ns(), **fields}
        self.client.send(Submit(call, replica, rows, key, refs, (0,), **given))
        return future

    def _write(self, index: int, tensor: np.ndarray) -> TensorRef:
        data = packed(tensor) if tensor.dtype == object else tensor.tobytes()
        offset = self.client.inputs.allocate(len(data))
        assert offset is not None
        self.client.inputs.view[offset : offset + len(data)] = data
        return TensorRef(index, tensor.shape, offset, len(data))

    def read(self, done: Done, datatype: str = "FP32", *, release: bool = True) -> np.ndarray:
        (ref,) = done.outputs
        data = bytes(self.client.outputs[ref.offset : ref.offset + ref.length_bytes])
        if release:
            self.client.send(Release(done.call))
        return (
            np.frombuffer(data, NUMPY_NAMES[datatype]).reshape(ref.shape)
            if datatype != "BYTES"
            else np.array(unpacked(data), dtype=object)
        )

    async def unload(self, replica: int, drain_ns: int) -> Unloaded:
        from gpu_sharing.worker.messages import Unload

        gone = self.reply(Unloaded, replica)
        self.client.send(Unload(replica, drain_ns))
        return await gone


def packed(tensor: np.ndarray) -> bytes:
    return b"".join(len(element).to_bytes(4, "little") + element for element in tensor.ravel())


def unpacked(data: bytes) -> list[bytes]:
    elements = []
    while data:
        length = int.from_bytes(data[:4], "little")
        elements.append(data[4 : 4 + length])
        data = data[4 + length :]
    return elements


def digest_of(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def logarithm(path: Path) -> Path:
    """y = log x over [n, 1]: NaN below zero."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in "xy")
    return save(path, [helper.make_node("Log", ["x"], ["y"])], [x], [y])


def looking_up(path: Path) -> Path:
    """y = a table of ten at x, over INT64 [n, 1]: it raises where x is not one of them."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.INT64, ["n", 1]) for name in "xy")
    table = helper.make_tensor("v", TensorProto.INT64, [10], [number * number for number in range(10)])
    nodes = [
        helper.make_node("Constant", [], ["table"], value=table),
        helper.make_node("Gather", ["table", "x"], ["y"]),
    ]
    return save(path, nodes, [x], [y])


def looping(path: Path) -> Path:
    """y = k counted one by one."""
    int64 = TensorProto.INT64
    step = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["goes_on"]),
            helper.make_node("Add", ["count", "one"], ["counted"]),
        ],
        "step",
        [
            helper.make_tensor_value_info("turn", int64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("count", int64, []),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("counted", int64, []),
        ],
    )
    constants = [
        helper.make_node("Constant", [], ["one"], value=helper.make_tensor("v", int64, [], [1])),
        helper.make_node("Constant", [], ["zero"], value=helper.make_tensor("v", int64, [], [0])),
        helper.make_node("Constant", [], ["true"], value=helper.make_tensor("v", TensorProto.BOOL, [], [True])),
    ]
    loop = helper.make_node("Loop", ["k", "true", "zero"], ["y"], body=step)
    k, y = (helper.make_tensor_value_info(name, int64, []) for name in "ky")
    return save(path, [*constants, loop], [k], [y])


def endless_loop(path: Path) -> Path:
    """As `looping`, but it does not even end for the ones that it is tried with."""
    looping(path)
    model = onnx.load(path)
    model.graph.node.insert(
        0, helper.make_node("Constant", [], ["many"], value=helper.make_tensor("v", TensorProto.INT64, [], [1 << 60]))
    )
    model.graph.node.insert(1, helper.make_node("Mul", ["k", "many"], ["times"]))
    loop = next(node for node in model.graph.node if node.op_type == "Loop")
    loop.input[0] = "times"
    onnx.save(model, path)
    return path


def recurring(path: Path) -> Path:
    """A recurrent layer over x [steps, 1, 1]: one operator, which nothing interrupts, over as many steps as there are."""
    weights = [helper.make_tensor(name, TensorProto.FLOAT, [1, 1, 1], [0.5]) for name in "wr"]
    constants = [helper.make_node("Constant", [], [name], value=each) for name, each in zip("wr", weights, strict=True)]
    layer = helper.make_node("RNN", ["x", "w", "r"], ["", "y"], hidden_size=1)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["steps", 1, 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 1])
    return save(path, [*constants, layer], [x], [y])


def filling(path: Path) -> Path:
    """y = the sum of as many zeros as s says: no file shows what it will take."""
    s = helper.make_tensor_value_info("s", TensorProto.INT64, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["y"], keepdims=0),
    ]
    return save(path, nodes, [s], [y])


def heavy(path: Path, mebibytes: int) -> Path:
    """y = x w over [n, 1024]; w takes as much."""
    columns = mebibytes * MiB // 4 // 1024
    w = np.random.default_rng(4).standard_normal((1024, columns)).astype(np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1024])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", columns])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [onnx.numpy_helper.from_array(w, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path
