"""The executor with a real worker process and a real, tiny model."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.rpc import status_pb2
from harness import Frontend, House, house, request
from tiny_models import doubling

from gpu_sharing.worker.client import WorkerClient
from services._proto.inference.grpc_service_pb2 import ModelInferResponse
from services.common.errors import Reason
from services.common.status import from_status
from services.executor.core.replica import Phase
from services.executor.core.replica_events import Fetched, Unwanted, Wanted

SMALL = np.arange(6, dtype=np.float32).reshape(2, 3)
LARGE = np.arange(2 << 20, dtype=np.float32).reshape(2, -1)


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[House]:
    path = tmp_path / "doubling"
    path.write_bytes(doubling())
    async with house(start_worker=WorkerClient.start) as built:
        load(built, 1, path)
        await built.serving(1)
        yield built


def load(built: House, replica: int, path: Path) -> None:
    built.executor.handle(Wanted(replica, "acme", "doubling", 3, "sha256:" + "0" * 64, 1, 0, 500, 1, "onnx"))
    built.executor.handle(Fetched(replica, str(path), "onnx"))


def client(built: House) -> Any:
    return built.executor.lanes[0].client


def values(payload: bytes) -> np.ndarray:
    response = ModelInferResponse.FromString(payload)
    return np.frombuffer(response.raw_output_contents[0], "<f4").reshape(response.outputs[0].shape)


async def test_requests_small_and_large_are_answered_by_the_model(real: House) -> None:
    async with Frontend(real.address) as frontend:
        small = [await frontend.infer(request(SMALL + n, request_id=str(n))) for n in range(20)]
        large = [await frontend.infer_bulk(request(LARGE + n)) for n in range(2)]
        for n, call in enumerate(small):
            assert np.array_equal(values(await frontend.payload(call)), 2 * (SMALL + n))
        for n, call in enumerate(large):
            assert np.array_equal(values(await frontend.payload(call)), 2 * (LARGE + n))
        assert frontend.results[small[0]].stages.compute_ns > 0
    await real.until(lambda: client(real).inputs.used_bytes == 0)


async def test_a_killed_worker_answers_at_once_and_service_returns(real: House) -> None:
    async with Frontend(real.address) as frontend:
        await frontend.result(await frontend.infer(request(SMALL)))
        pid = client(real).pid
        os.kill(pid, signal.SIGSTOP)  # so that the call is in its hands when it dies
        call = await frontend.infer(request(SMALL))
        await real.until(lambda: real.executor.lanes[0].calls)
        os.kill(pid, signal.SIGKILL)
        refusal = from_status(status_pb2.Status.FromString((await frontend.result(call)).status))
        assert refusal.reason is Reason.WORKER_LOST
        assert "SIGKILL" in refusal.message
        await real.serving(1)
        assert client(real).pid != pid
        again = await frontend.payload(await frontend.infer(request(SMALL)))
        assert np.array_equal(values(again), 2 * SMALL)


async def test_a_broken_artefact_is_refused_with_what_is_wrong(real: House, tmp_path: Path) -> None:
    path = tmp_path / "broken"
    path.write_bytes(b"not a model")
    load(real, 2, path)
    replica = real.executor.replicas.get(2)
    assert replica is not None
    await real.until(lambda: replica.phase is Phase.REFUSED)
    assert replica.message


async def test_an_unloaded_replica_finishes_what_it_has_and_is_gone(real: House) -> None:
    async with Frontend(real.address) as frontend:
        calls = [await frontend.infer(request(SMALL)) for _ in range(10)]
        await frontend.result(calls[0])
        real.executor.handle(Unwanted(1, 10**9))
        await real.until(lambda: real.executor.replicas.get(1) is None)
        await asyncio.gather(*(frontend.result(call) for call in calls))
        late = await frontend.result(await frontend.infer(request(SMALL)))
        assert from_status(status_pb2.Status.FromString(late.status)).reason is Reason.MODEL_NOT_READY
    await real.until(lambda: client(real).inputs.used_bytes == 0)
