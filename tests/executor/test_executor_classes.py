"""The classification extension, and the counts behind ModelStatistics."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from fake_worker import ECHO
from harness import Frontend, house, request
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.measurements import Batch
from services._proto.apportion.v1.executor_pb2 import GetStatisticsRequest
from services._proto.apportion.v1.executor_pb2_grpc import ExecutorServiceStub
from services._proto.inference.grpc_service_pb2 import ModelInferRequest, ModelInferResponse
from services.common.channel import connect
from services.common.errors import Refusal
from services.executor.core.classes import MOST_ELEMENTS, classify
from services.executor.core.statistics import MOST_SIZES, Counts
from services.executor.encode import Encoder


def texts(content: bytes) -> list[str]:
    told = []
    while content:
        (length,) = struct.unpack("<I", content[:4])
        told.append(content[4 : 4 + length].decode())
        content = content[4 + length :]
    return told


def ranked(values: Any, datatype: str, most: int, *, batched: bool = True, labels: tuple[str, ...] = ()) -> Any:
    array = np.asarray(values)
    content, shape = classify(array.tobytes(), datatype, array.shape, most, batched=batched, labels=labels)
    return texts(content), shape


def test_each_row_tells_its_largest_values_with_their_labels() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], np.float32)
    told, shape = ranked(scores, "FP32", 2, labels=("cat", "dog"))
    assert told == ["0.700000:1:dog", "0.200000:2", "0.500000:0:cat", "0.250000:1:dog"]
    assert shape == (2, 2)


def test_an_output_without_rows_is_ranked_as_a_whole() -> None:
    told, shape = ranked(np.array([3, -7, 250], np.int16), "INT16", 9, batched=False)
    assert (told, shape) == (["250:2", "3:0", "-7:1"], (3,))


def test_values_that_are_no_numbers_come_last_and_infinities_are_told_as_such() -> None:
    told, _ = ranked(np.array([[np.nan, -np.inf, 1, np.inf]]), "FP64", 4)
    assert told == ["inf:3", "1.000000:2", "nan:0", "-inf:1"]


def test_the_upper_half_of_a_float_is_a_bf16() -> None:
    values = np.array([[1.5, -2.0, 8.0]], np.float32)
    told, _ = ranked((values.view(np.uint32) >> 16).astype(np.uint16), "BF16", 1)
    assert told == ["8.000000:2"]


def test_whole_numbers_beyond_a_double_are_told_exactly() -> None:
    big = (1 << 63) + 3
    told, _ = ranked(np.array([[big, big - 1, big + 1]], np.uint64), "UINT64", 3)
    assert told == [f"{big + 1}:2", f"{big}:0", f"{big - 1}:1"]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.integers(1, 40))
def test_the_choice_is_the_one_of_a_plain_sort(values: list[int], most: int) -> None:
    told, _ = ranked(np.array([values], np.int32), "INT32", most)
    expected = sorted(range(len(values)), key=lambda index: (-values[index], index))[:most]
    assert told == [f"{values[index]}:{index}" for index in expected]


async def test_a_request_for_classes_is_answered_with_text_and_others_with_the_output() -> None:
    x = np.array([[1, 5, 3]], np.float32)
    message = ModelInferRequest.FromString(request(x, request_id="7", outputs=("y",)))
    message.outputs[0].parameters["classification"].int64_param = 2
    async with house() as built, Frontend(built.address) as frontend:
        built.load(1, labels={"y": ("a", "b", "c")})
        await built.serving(1)
        answer = ModelInferResponse.FromString(
            await frontend.payload(await frontend.infer(message.SerializeToString()))
        )
        plain = ModelInferResponse.FromString(await frontend.payload(await frontend.infer(request(x, outputs=("y",)))))
    assert (answer.id, answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("7", "BYTES", [1, 2])
    assert texts(answer.raw_output_contents[0]) == ["5.000000:1:b", "3.000000:2:c"]
    assert plain.outputs[0].datatype == "FP32"
    assert plain.raw_output_contents[0] == x.tobytes()


def test_an_output_of_very_many_values_is_not_ranked() -> None:
    from gpu_sharing.worker.messages import TensorRef

    count = MOST_ELEMENTS + 1
    with pytest.raises(Refusal, match="rank them yourself"):
        Encoder(ECHO, 1).classified(
            "m", "", [TensorRef(0, (1, count), 0, 4 * count)], [3], memoryview(bytes(4 * count))
        )


def batch(number: int, started: int, rows: int, *, requests: int = 1, lane: int = 0) -> Batch:
    return Batch(number, lane, rows, requests, started, started + 100, 0, 0, 0)


def test_a_batch_counts_once_and_each_of_its_requests_too() -> None:
    counts = Counts()
    for _ in range(2):
        counts.succeeded(batch(1, 1_000, 3, requests=2), 1, arrived=900, handed=950, now=1_110)
    counts.succeeded(batch(2, 2_000, 1), 1, arrived=1_990, handed=1_995, now=2_101)
    counts.refused(None, arrived=3_000, handed=3_000, now=3_007)
    assert (counts.rows, counts.batches, counts.answered, counts.failed, counts.failed_ns) == (3, 2, 3, 1, 7)
    assert (counts.decode_ns, counts.queue_ns, counts.compute_ns, counts.encode_ns) == (105, 105, 300, 21)
    assert counts.answered_ns == 210 * 2 + 111
    assert {rows: (size.batches, size.compute_ns) for rows, size in counts.sizes.items()} == {3: (1, 100), 1: (1, 100)}
    assert counts.last_arrived == 3_000


def test_batches_of_two_lanes_do_not_hide_one_another() -> None:
    counts = Counts()
    for _ in range(2):
        for lane in (0, 1):
            counts.succeeded(batch(1, 1_000, 1, lane=lane), 1, arrived=900, handed=950, now=1_110)
    assert counts.batches == 2


def test_sizes_without_end_are_counted_in_the_totals_alone() -> None:
    counts = Counts()
    for rows in range(MOST_SIZES + 50):
        counts.succeeded(batch(rows, 1_000 * rows, rows), 1, arrived=0, handed=0, now=10)
    assert len(counts.sizes) == MOST_SIZES
    assert counts.batches == MOST_SIZES + 50


async def test_an_executor_tells_what_has_become_of_a_tenants_requests_also_of_models_that_have_left() -> None:
    async with house() as built, Frontend(built.address) as frontend, connect(built.address) as channel:
        stub: Any = ExecutorServiceStub(channel)  # type: ignore[no-untyped-call]
        for replica, tenant in ((1, "acme"), (2, "other")):
            built.load(replica, tenant=tenant)
        await built.serving(1, 2)
        for replica in (1, 1, 2):
            await frontend.payload(await frontend.infer(request(np.ones((2, 3))), replica=replica))
        await frontend.payload(await frontend.infer(b"rubbish"))
        built.executor.calls.serving.pop(1)
        told = await stub.GetStatistics(GetStatisticsRequest(tenant="acme"))
        none = await stub.GetStatistics(GetStatisticsRequest(tenant="acme", model="unknown"))
    assert [(each.key.name, each.version, each.rows, each.answered, each.failed) for each in told.versions] == [
        ("echo", 1, 4, 2, 1)
    ]
    assert [(size.rows, size.batches) for size in told.versions[0].by_rows] == [(2, 2)]
    assert told.versions[0].last_arrival_ms > 1_700_000_000_000
    assert not none.versions
