"""Callers that send tensors of many sizes and check that every answer belongs to its question."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np

from services._proto.inference import grpc_service_pb2 as oip
from services._proto.inference import grpc_service_pb2_grpc as oip_grpc

LIMIT = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),
)
OPERATORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"identity": lambda x: x, "neg": np.negative, "abs": np.abs}
LARGEST_BYTES = 32 << 20


@dataclass
class Tally:
    """What a group of callers saw. latencies_s by payload bytes."""

    latencies_s: dict[int, list[float]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def note(self, size_bytes: int, took_s: float) -> None:
        self.latencies_s.setdefault(size_bytes, []).append(took_s)

    def quantile_ms(self, q: float, *, at_most_bytes: int) -> float:
        """The q-quantile over requests whose payload is no larger, in milliseconds."""
        samples = [took for size, all_of_it in self.latencies_s.items() if size <= at_most_bytes for took in all_of_it]
        return float(np.quantile(samples, q)) * 1e3

    @property
    def answered(self) -> int:
        return sum(len(samples) for samples in self.latencies_s.values())


@dataclass(frozen=True)
class Question:
    """One request: which model, how many bytes, and a number that makes its content its own."""

    model: str
    size_bytes: int
    number: int


async def ask(
    address: str, key: str, questions: Iterator[Question], callers: int, tally: Tally, stop: asyncio.Event | None = None
) -> None:
    """`callers` callers, each on a connection of its own, take questions until there are none (or `stop` is set)."""
    values = np.random.default_rng(1).standard_normal(LARGEST_BYTES // 4 + (1 << 16), dtype=np.float32)

    async def caller() -> None:
        async with grpc.aio.insecure_channel(address, options=LIMIT) as channel:
            stub = oip_grpc.GRPCInferenceServiceStub(channel)
            for question in questions:
                if stop is not None and stop.is_set():
                    return
                await _one(stub, key, question, values, tally)

    await asyncio.gather(*(caller() for _ in range(callers)))


async def _one(
    stub: oip_grpc.GRPCInferenceServiceStub, key: str, question: Question, values: np.ndarray, tally: Tally
) -> None:
    count = question.size_bytes // 4
    offset = question.number % (1 << 16)
    tensor = values[offset : offset + count].copy()
    tensor[0] = question.number
    request = oip.ModelInferRequest(model_name=question.model, id=str(question.number))
    request.inputs.add(name="x", datatype="FP32", shape=[1, count])
    request.raw_input_contents.append(tensor.tobytes())
    begun = time.perf_counter()
    try:
        answer = await stub.ModelInfer(request, timeout=120, metadata=(("authorization", f"Bearer {key}"),))
    except grpc.RpcError as error:
        tally.failed.append(f"{question}: {error.code()}: {error.details()}")
        return
    tally.note(question.size_bytes, time.perf_counter() - begun)
    got = np.frombuffer(answer.raw_output_contents[0], np.float32)
    if answer.id != request.id or not np.array_equal(got, OPERATORS[question.model](tensor)):
        tally.wrong.append(str(question))


def mixed(total: int, sizes: Sequence[int], weights: Sequence[float], *, seed: int) -> Iterator[Question]:
    """`total` questions over all models, sizes drawn by weight; repeatable by seed."""
    draw = np.random.default_rng(seed)
    models = list(OPERATORS)
    chosen = draw.choice(len(sizes), size=total, p=np.asarray(weights) / sum(weights))
    return (Question(models[int(draw.integers(3))], sizes[int(index)], number) for number, index in enumerate(chosen))
