from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytest_asyncio
import worker_models as models
from worker_models import Books

from gpu_sharing.worker import wire
from gpu_sharing.worker.client import WorkerClient, WorkerConfig, WorkerLost
from gpu_sharing.worker.messages import Cancel, Done, Failed, Loaded, LoadFailed, Release, Stage, Statistics


@pytest_asyncio.fixture
async def books() -> AsyncIterator[Books]:
    books = await Books.open()
    yield books
    await books.client.stop(1.0)


async def test_every_answer_belongs_to_its_question(books: Books, tmp_path: Path) -> None:
    loaded = await books.load(models.doubling(tmp_path / "m.onnx"), max_batch_size=8)
    assert isinstance(loaded, Loaded), loaded
    assert loaded.signature.max_batch_size == 8

    async def ask(number: int) -> int:
        rows = number % 3 + 1
        question = np.full((rows, 4), number, np.float32)
        done = await books.submit([question], rows=rows)
        assert isinstance(done, Done), done
        assert (books.read(done) == 2 * question).all()
        assert done.batch.started <= done.batch.ended
        return done.batch.requests

    together = await asyncio.gather(*(ask(number) for number in range(300)))
    assert max(together) > 1, "nothing was ever batched"
    assert {type(event) for event in books.events[:2]} == {Stage}


async def test_requests_are_joined_along_the_axis_their_model_names(books: Books, tmp_path: Path) -> None:
    loaded = await books.load(
        models.scaling(tmp_path / "m.onnx"), max_batch_size=64, batch_axes={"x": 1, "y": 1, "k": -1}
    )
    assert isinstance(loaded, Loaded), loaded
    questions = [np.arange(3 * rows, dtype=np.float32).reshape(3, rows) + rows for rows in (1, 2, 3, 1, 2)] * 4
    scales = [np.float32(2 + number % 2) for number in range(len(questions))]
    futures = [
        books.submit([question, np.asarray(scale)], rows=question.shape[1], key=scale.tobytes())
        for question, scale in zip(questions, scales, strict=True)
    ]
    answers = await asyncio.gather(*futures)
    for question, scale, done in zip(questions, scales, answers, strict=True):
        assert (books.read(done) == question * scale).all()
    assert max(done.batch.requests for done in answers) > 1


async def test_text_goes_in_and_comes_out(books: Books, tmp_path: Path) -> None:
    await books.load(models.echoing_text(tmp_path / "m.onnx"), max_batch_size=8)
    texts = [np.array([b"", "zwölf".encode()], dtype=object), np.array([b"x" * 1000], dtype=object)]
    answers = await asyncio.gather(*(books.submit([text], rows=len(text)) for text in texts))
    for text, done in zip(texts, answers, strict=True):
        assert (books.read(done, "BYTES") == text).all()


async def test_a_model_that_breaks_fails_its_own_requests_only(books: Books, tmp_path: Path) -> None:
    await books.load(models.gathering(tmp_path / "a.onnx"), 1, max_batch_size=1)
    await books.load(models.doubling(tmp_path / "b.onnx"), 2, max_batch_size=8)
    broken = books.submit([np.array([9], np.int64)])
    sound = books.submit([np.array([2], np.int64)])
    other = books.submit([np.ones((1, 4), np.float32)], replica=2)
    failed = await broken
    assert (failed.reason, "model 'model1' version 1" in failed.message) == ("MODEL_FAILED", True)
    assert failed.batch.requests == 1
    assert books.read(await sound).tolist() == [20.0]
    assert (books.read(await other) == 2).all()


async def test_an_unknown_replica_is_answered_as_not_ready(books: Books) -> None:
    failed = await books.submit([np.ones((1, 4), np.float32)], replica=9)
    assert isinstance(failed, Failed)
    assert (failed.reason, failed.received > 0) == ("MODEL_NOT_READY", True)


async def test_a_broken_artefact_is_refused_and_an_unreadable_one_is_not(books: Books, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    refused = await books.load(tmp_path / "bad.onnx")
    assert isinstance(refused, LoadFailed)
    assert refused.refused
    unknown = await books.load(tmp_path / "bad.onnx", 2, format="pickle")
    assert isinstance(unknown, LoadFailed)


async def test_a_model_that_does_not_fit_the_device_is_told_the_numbers(tmp_path: Path) -> None:
    books = await Books.open(memory_bytes=10)
    failed = await books.load(models.doubling(tmp_path / "m.onnx"))
    assert isinstance(failed, LoadFailed)
    assert not failed.refused
    assert "10 of 10 are free" in failed.message
    await books.client.stop(1.0)


async def test_outputs_that_are_never_released_fill_the_arena_and_say_so(tmp_path: Path) -> None:
    books = await Books.open(output_arena_bytes=4096)
    await books.load(models.doubling(tmp_path / "m.onnx"), max_batch_size=128)
    question = np.ones((128, 4), np.float32)
    first, second = [await books.submit([question], rows=128) for _ in range(2)]
    third = await books.submit([question], rows=128)
    assert isinstance(third, Failed)
    assert third.reason == "OUT_OF_MEMORY"
    assert third.facts == {"asked_bytes": "2048", "free_bytes": "0", "capacity_bytes": "4096"}
    books.read(first)
    assert isinstance(await books.submit([question], rows=128), Done)
    assert isinstance(second, Done)
    await books.client.stop(1.0)


async def test_small_answers_are_released_with_the_next_command_or_a_little_later(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: list[bytes] = []
    client = books.client
    assert client._transport is not None
    monkeypatch.setattr(client, "_transport", SimpleNamespace(write=frames.append, abort=client._transport.abort))
    client.release(1, 100)
    await asyncio.sleep(0)
    assert frames == []
    client.send(Cancel(2))
    await asyncio.sleep(0)
    assert wire.commands().feed(frames.pop()) == [[Release(1), Cancel(2)]]
    client.release(3, 100)
    await asyncio.sleep(0.1)
    assert wire.commands().feed(frames.pop()) == [[Release(3)]]
    client.release(4, len(client.outputs) // 2)
    await asyncio.sleep(0)
    assert wire.commands().feed(frames.pop()) == [[Release(4)]]
    monkeypatch.undo()


async def test_an_unloaded_replica_answers_what_it_has_before_it_goes(books: Books, tmp_path: Path) -> None:
    await books.load(models.doubling(tmp_path / "m.onnx"), max_batch_size=1)
    futures = [books.submit([np.ones((1, 4), np.float32)]) for _ in range(50)]
    await books.unload(1, drain_ns=5_000_000_000)
    assert all(isinstance(future.result(), Done) for future in futures)
    late = await books.submit([np.ones((1, 4), np.float32)])
    assert late.reason == "MODEL_NOT_READY"
    assert isinstance(await books.load(tmp_path / "m.onnx"), Loaded)


async def test_unloading_what_is_still_loading_unloads_it(books: Books, tmp_path: Path) -> None:
    loading = asyncio.ensure_future(books.load(models.doubling(tmp_path / "m.onnx")))
    await asyncio.sleep(0)
    await books.unload(1, drain_ns=0)
    assert isinstance(await loading, Loaded)
    failed = await books.submit([np.ones((1, 4), np.float32)])
    assert failed.reason == "MODEL_NOT_READY"


async def test_device_time_is_metered_per_replica(books: Books, tmp_path: Path) -> None:
    await books.load(models.doubling(tmp_path / "a.onnx"), 1)
    await books.load(models.doubling(tmp_path / "b.onnx"), 2)
    for _ in range(5):
        await books.submit([np.ones((1, 4), np.float32)], replica=2)
    while True:
        statistics: Statistics = await books.reply(Statistics, 0)
        used = {used.replica: used for used in statistics.used}
        if used[2].requests == 5:
            break
    assert (used[1].device_ns, used[1].requests) == (0, 0)
    assert used[2].device_ns == statistics.busy_ns > 0
    assert statistics.memory_used_bytes > 0


async def test_a_worker_that_is_killed_is_noticed(books: Books) -> None:
    os.kill(books.client.pid, signal.SIGKILL)
    assert await asyncio.wait_for(books.client.lost, 5) == "killed by SIGKILL"
    books.client.send(Cancel(1))


async def test_a_worker_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkerLost, match=r"exited with status 1(.|\n)*cores: \[4095\] given"):
        await WorkerClient.start(WorkerConfig(cores=(4095,)), on_events=lambda events: None)


async def test_a_worker_that_stops_leaves_its_reason(books: Books) -> None:
    await books.client.stop(1.0)
    assert books.client.lost.result() == "exited with status 0"
    with pytest.raises(ProcessLookupError):
        os.kill(books.client.pid, 0)


async def test_a_worker_sees_no_credentials_and_leaves_no_files(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPORTION_SECRET", "hunter2")
    other = await Books.open()
    environment = of_process(other.client.pid, "environ")
    assert b"hunter2" not in environment
    assert b"HOME=" not in environment
    assert not [name for name in os.listdir("/dev/shm") if "apportion" in name]
    await other.client.stop(1.0)


async def test_a_worker_keeps_its_hands_off_the_inputs(books: Books) -> None:
    maps = of_process(books.client.pid, "maps").decode().splitlines()
    (inputs,) = [line.split()[1] for line in maps if "apportion-inputs" in line]
    (outputs,) = [line.split()[1] for line in maps if "apportion-outputs" in line]
    assert (inputs, outputs) == ("r--s", "rw-s")


def of_process(pid: int, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


PARENT = """
import asyncio, sys
from gpu_sharing.worker.client import WorkerClient, WorkerConfig
async def main():
    client = await WorkerClient.start(WorkerConfig(cores=(0,)), on_events=print)
    print(client.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_a_worker_dies_with_its_executor() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)
    parent.kill()
    parent.wait()
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up and is_alive(worker):
        time.sleep(0.01)
    assert not is_alive(worker)
    parent.stdout.close()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
