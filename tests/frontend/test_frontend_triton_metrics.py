"""Triton's metric names, beside our own."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from frontend_fakes import FakeExecutor, infer_request
from frontend_world import Start
from prometheus_client import CollectorRegistry, generate_latest

from services._proto.apportion.v1 import executor_pb2
from services.common.errors import Reason, Refusal
from services.frontend.triton_metrics import TritonMetrics

KEY = ("acme", "m", 2)
STAGES = executor_pb2.Stages(
    decode_ns=1_000, queue_ns=2_000, compute_ns=3_000, encode_ns=4_000, rows=3, batch_requests=4
)


def shown(collector) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(collector)
    lines = generate_latest(registry).decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line and line[0] != "#"}


def test_answered_requests_count_rows_their_part_of_a_batch_and_where_their_time_went():
    metrics = TritonMetrics()
    for _ in range(4):
        metrics.close(KEY, "ok", 12_000, STAGES)
    metrics.close(KEY, "late", 12_000, STAGES)
    labels = '{model="m",tenant="acme",version="2"}'
    found = shown(metrics)
    assert found[f"nv_inference_request_success{labels}"] == 5
    assert found[f"nv_inference_count{labels}"] == 15
    assert found[f"nv_inference_exec_count{labels}"] == 1.25
    assert found[f"nv_inference_request_duration_us{labels}"] == 60
    assert found[f"nv_inference_compute_input_duration_us{labels}"] == 5
    assert found[f"nv_inference_queue_duration_us{labels}"] == 10
    assert found[f"nv_inference_compute_infer_duration_us{labels}"] == 15
    assert found[f"nv_inference_compute_output_duration_us{labels}"] == 20


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Reason.OVERLOADED, "REJECTED"),
        (Reason.DEADLINE_EXCEEDED, "REJECTED"),
        (Reason.CANCELLED, "CANCELED"),
        (Reason.MODEL_FAILED, "BACKEND"),
        (Reason.FIELD_INVALID, "OTHER"),
    ],
)
def test_failures_have_tritons_reasons(outcome, reason):
    metrics = TritonMetrics()
    metrics.close(KEY, str(outcome), 1, None)
    labels = f'{{model="m",reason="{reason}",tenant="acme",version="2"}}'
    assert shown(metrics)[f"nv_inference_request_failure{labels}"] == 1


def test_callers_cannot_make_up_labels():
    metrics = TritonMetrics()
    metrics.close(("acme", "", 0), str(Reason.MODEL_NOT_FOUND), 1, None)
    assert shown(metrics) == {}


async def test_a_frontend_counts_under_both_names(start: Start) -> None:
    async def picky(executor: FakeExecutor, infer: executor_pb2.Infer, payload: bytes) -> bytes | Refusal:
        return Refusal(Reason.MODEL_FAILED, "it raised") if len(executor.infers) == 2 else payload

    world = await start(FakeExecutor(picky))
    await world.until(lambda: bool(world.executors[0].sessions))
    await world.stub.ModelInfer(infer_request("m", b"abc"))
    with pytest.raises(grpc.aio.AioRpcError):
        await world.stub.ModelInfer(infer_request("m", b"abc"))
    await asyncio.sleep(0)
    found = shown(world.frontend.accounts)
    assert found['nv_inference_request_success{model="m",tenant="default",version="1"}'] == 1
    assert found['nv_inference_request_failure{model="m",reason="BACKEND",tenant="default",version="1"}'] == 1
    assert found['nv_inference_pending_request_count{model="m",tenant="default"}'] == 0
    assert found['apportion_frontend_requests_total{model="m",outcome="ok",tenant="default"}'] == 1
