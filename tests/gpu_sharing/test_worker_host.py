"""All lanes of a GPU in one process: each a worker of its own to its executor, and one fate. The device is a double."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from worker_models import Books, MiB, doubling, gathering

from gpu_sharing.worker.client import WorkerLost
from gpu_sharing.worker.config import WorkerConfig
from gpu_sharing.worker.hosting import HostConfig
from gpu_sharing.worker.lane_host import LaneHost, host_command
from gpu_sharing.worker.messages import Done, Failed, Loaded

SCRIPT = str(Path(__file__).parent / "double_host.py")
CONFIG = HostConfig("cuda_green", "0-63;64-131|0-131")


def double(control_fd: int, config: HostConfig) -> Sequence[str]:
    return [sys.executable, SCRIPT, str(control_fd)]


@pytest_asyncio.fixture
async def host() -> AsyncIterator[LaneHost]:
    host = LaneHost(CONFIG, command=double)
    yield host
    await host.close()


async def opened(host: LaneHost, lane: int, units: int = 64) -> Books:
    books: list[Books] = []
    config = WorkerConfig(
        cores=tuple(range(units)),
        input_arena_bytes=16 * MiB,
        output_arena_bytes=16 * MiB,
        lane=lane,
        memory_bytes=1 << 30,
    )
    client = await host.start_worker(config, on_events=lambda events: books[0].on_events(events))
    books.append(Books(client))
    return books[0]


async def doubles(books: Books, tmp_path: Path) -> None:
    assert isinstance(await books.load(doubling(tmp_path / f"{id(books)}.onnx")), Loaded)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    done = await books.submit([x], rows=2)
    assert isinstance(done, Done), done
    assert (books.read(done) == 2 * x).all()


async def test_lanes_of_one_process_serve_at_the_same_time(host: LaneHost, tmp_path: Path) -> None:
    one, other = await asyncio.gather(opened(host, 0), opened(host, 1, 68))
    assert one.client.pid == other.client.pid
    assert (one.client.ready.backend, one.client.ready.compute_units) == ("cuda_green", 64)
    assert other.client.ready.compute_units == 68
    await asyncio.gather(doubles(one, tmp_path), doubles(other, tmp_path))
    assert host.ready is not None
    assert [each.name for each in host.ready.layouts] == ["0-63;64-131", "0-131"]
    assert host.ready.notes == ("a note",)
    for books in (one, other):
        await books.client.stop(1.0)


async def test_a_lane_that_is_closed_leaves_the_others_alone_and_can_be_opened_anew(
    host: LaneHost, tmp_path: Path
) -> None:
    one, other = await opened(host, 0), await opened(host, 1)
    await doubles(one, tmp_path)
    await one.client.stop(2.0)
    assert one.client.lost.result() == "its lane has ended"
    await doubles(other, tmp_path)
    again = await opened(host, 0)
    assert again.client.pid == other.client.pid
    await doubles(again, tmp_path)
    whole = await opened(host, 2, 132)
    await doubles(whole, tmp_path)
    for books in (again, other, whole):
        await books.client.stop(1.0)


async def test_the_process_is_the_fault_domain_and_is_started_anew(host: LaneHost, tmp_path: Path) -> None:
    one, other = await opened(host, 0), await opened(host, 1)
    os.kill(one.client.pid, signal.SIGKILL)
    reasons = await asyncio.wait_for(asyncio.gather(one.client.lost, other.client.lost), 10)
    assert set(reasons) == {"killed by SIGKILL"}
    await asyncio.gather(one.client.stop(0.0), other.client.stop(0.0))
    again = await opened(host, 1)
    assert again.client.pid != one.client.pid
    await doubles(again, tmp_path)
    await again.client.stop(1.0)


async def test_a_lane_that_has_to_be_killed_takes_the_others_along(host: LaneHost) -> None:
    one, other = await opened(host, 0), await opened(host, 1)
    one.client.kill("it hangs")
    reason = await asyncio.wait_for(other.client.lost, 10)
    assert "killed by SIGKILL" in reason or "exited" in reason
    assert await one.client.lost == "it hangs"
    await asyncio.gather(one.client.stop(0.0), other.client.stop(0.0))


async def test_what_breaks_in_one_lane_stays_there(host: LaneHost, tmp_path: Path) -> None:
    one, other = await opened(host, 0), await opened(host, 1)
    assert isinstance(await one.load(gathering(tmp_path / "g.onnx")), Loaded)
    broken = await one.submit([np.asarray([9], np.int64)])
    assert isinstance(broken, Failed)
    assert broken.reason == "MODEL_FAILED"
    await doubles(other, tmp_path)
    for books in (one, other):
        await books.client.stop(1.0)


async def test_a_host_that_cannot_start_says_what_it_wrote() -> None:
    host = LaneHost(CONFIG, command=lambda fd, config: [*double(fd, config), "refuses"])
    with pytest.raises(WorkerLost, match="CUDA_ERROR_OUT_OF_MEMORY"):
        await opened(host, 0)
    await host.close()


async def test_the_real_host_without_a_gpu_says_so_in_a_line() -> None:
    host = LaneHost(CONFIG, command=host_command)
    with pytest.raises(WorkerLost, match="backend: cuda_green cannot be had: no CUDA device found"):
        await opened(host, 0)
    await host.close()
