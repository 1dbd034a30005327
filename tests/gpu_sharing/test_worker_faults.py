"""A tenant whose model goes wrong is told so; the others in its worker notice nothing. Real workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import worker_models as models
from worker_models import Books, MiB

from gpu_sharing.runtimes.base import Tensors
from gpu_sharing.units import MS, SECOND
from gpu_sharing.worker.messages import Done, Failed, Loaded, LoadFailed, Stage
from gpu_sharing.worker.scatter import holds_nan


@pytest_asyncio.fixture
async def books() -> AsyncIterator[Books]:
    books = await Books.open(hang_after_ns=300 * MS, memory_bytes=256 * MiB)
    yield books
    await books.client.stop(1.0)


async def neighbour(books: Books, path: Path) -> None:
    """Loads a neighbour as replica 9."""
    assert isinstance(await books.load(models.doubling(path / "neighbour.onnx"), 9, tenant="neighbour"), Loaded)


async def is_served(books: Books) -> bool:
    answer = await asyncio.wait_for(books.submit([np.ones((1, 4), np.float32)], replica=9), 20)
    return isinstance(answer, Done) and bool((books.read(answer) == 2).all())


async def test_nan_in_one_row_fails_the_request_it_belongs_to(books: Books, tmp_path: Path) -> None:
    await books.load(models.logarithm(tmp_path / "m.onnx"), max_batch_size=8)
    futures = [books.submit([np.full((1, 1), value, np.float32)]) for value in (1.0, -1.0, 0.0)]
    sound, broken, infinite = await asyncio.gather(*futures)
    assert books.read(sound) == 0
    assert (broken.reason, broken.message) == (
        "MODEL_FAILED",
        "model 'model1' version 1: output 'y' holds NaN (not a number)",
    )
    assert np.isneginf(books.read(infinite))


async def test_of_a_batch_that_raises_only_the_request_fails_that_makes_it_raise(books: Books, tmp_path: Path) -> None:
    loaded = await books.load(models.looking_up(tmp_path / "m.onnx"), max_batch_size=8)
    assert isinstance(loaded, Loaded), loaded
    assert loaded.signature.max_batch_size == 8
    await books.load(models.looping(tmp_path / "busy.onnx"), 2, max_batch_size=0)
    busy = books.submit([np.array(200_000, np.int64)], replica=2)
    futures = [books.submit([np.full((1, 1), value, np.int64)]) for value in (1, 99, 3, 4)]
    answers = await asyncio.wait_for(asyncio.gather(*futures), 20)
    await busy
    assert [type(each) for each in answers] == [Done, Failed, Done, Done]
    assert [books.read(answers[at], "INT64").item() for at in (0, 2, 3)] == [1, 9, 16]
    assert answers[1].reason == "MODEL_FAILED"
    assert "out of data bounds" in answers[1].message or "indices" in answers[1].message, answers[1].message
    assert [each.batch.requests for each in answers] == [1, 1, 1, 1]


async def test_a_model_that_asks_for_too_much_memory_is_told_so(books: Books, tmp_path: Path) -> None:
    await neighbour(books, tmp_path)
    await books.load(models.filling(tmp_path / "m.onnx"), max_batch_size=0)
    greedy = books.submit([np.array([3 << 28], np.int64)])
    failed = await greedy
    assert isinstance(failed, Failed)
    assert (failed.reason, "model 'model1' version 1" in failed.message) == ("OUT_OF_MEMORY", True)
    assert await is_served(books)
    assert isinstance(await books.submit([np.array([100], np.int64)]), Done)


async def test_a_model_that_loops_is_stopped_and_its_neighbour_served(books: Books, tmp_path: Path) -> None:
    await neighbour(books, tmp_path)
    loaded = await books.load(models.looping(tmp_path / "m.onnx"), max_batch_size=0)
    assert isinstance(loaded, Loaded), loaded
    endless = books.submit([np.array(1 << 60, np.int64)])
    assert await is_served(books)
    failed = await endless
    assert failed.reason == "MODEL_FAILED"
    assert "stopped, since it did not return in time" in failed.message
    assert (await books.submit([np.array(3, np.int64)])).outputs[0].length_bytes == 8


async def test_an_operator_that_cannot_be_stopped_costs_the_worker_which_says_whose_it_was(tmp_path: Path) -> None:
    books = await Books.open(hang_after_ns=100 * MS, cores=())
    await neighbour(books, tmp_path)
    loaded = await books.load(models.recurring(tmp_path / "m.onnx"), max_batch_size=0)
    assert isinstance(loaded, Loaded), loaded
    hung = books.submit([np.ones((12 << 20, 1, 1), np.float32)])
    failed = await asyncio.wait_for(hung, 20)
    assert failed.reason == "MODEL_FAILED"
    assert "replica 1, model 'model1' version 1: a segment has not returned for" in failed.message
    assert await asyncio.wait_for(books.client.lost, 5) == "exited with status 3"
    assert "replica 1, model 'model1' version 1: a segment" in books.client._process.stderr_tail()
    await books.client.stop(0.0)


async def test_two_tenants_with_one_artefact_take_its_memory_once(tmp_path: Path) -> None:
    books = await Books.open()
    path = models.heavy(tmp_path / "m.onnx", 64)
    await neighbour(books, tmp_path)
    first, grown = await books.load(path, 1, tenant="a", max_batch_size=0), resident(books)
    second, after = await books.load(path, 2, tenant="b", max_batch_size=0), resident(books)
    assert isinstance(first, Loaded)
    assert isinstance(second, Loaded)
    assert grown > 64 * MiB
    assert after - grown < 24 * MiB
    assert (first.memory_bytes, first.profile, first.signature) == (
        second.memory_bytes,
        second.profile,
        second.signature,
    )
    stages = {
        replica: [e.stage for e in books.events if isinstance(e, Stage) and e.replica == replica] for replica in (1, 2)
    }
    assert stages[1] == stages[2]
    await books.unload(1, drain_ns=SECOND)
    answer = await books.submit([np.ones((1, 1024), np.float32)], replica=2)
    assert isinstance(answer, Done)
    await books.unload(2, drain_ns=SECOND)
    assert resident(books) < after - 48 * MiB
    await books.client.stop(1.0)


async def test_a_load_that_never_ends_is_refused_and_ends_neither_the_loader_nor_the_worker(
    tmp_path: Path,
) -> None:
    books = await Books.open(load_limit_ns=500 * MS)
    await neighbour(books, tmp_path)
    failed = await asyncio.wait_for(books.load(models.endless_loop(tmp_path / "m.onnx"), max_batch_size=0), 20)
    assert failed == LoadFailed(
        1, True, "model 'model1' version 1: Interrupted: stopped, since it did not return in time"
    )
    assert await is_served(books)
    assert isinstance(await books.load(models.looping(tmp_path / "other.onnx"), 3, max_batch_size=0), Loaded)
    await books.client.stop(1.0)


def resident(books: Books) -> int:
    fields = Path(f"/proc/{books.client.pid}/statm").read_text().split()
    return int(fields[1]) * 4096


@pytest.mark.parametrize(
    ("tensors", "holds"),
    [
        ({"FP32": np.array([[1.0, np.inf], [-np.inf, 3e38]], np.float32)}, False),
        ({"FP32": np.array([[1.0, np.nan]], np.float32)}, True),
        ({"FP32": np.array([[1.0, np.nan]], np.float32).T[::2]}, False),
        ({"FP64": np.array(np.nan)}, True),
        ({"FP16": np.array([np.nan], np.float16)}, True),
        ({"FP16": np.array([6e4, -6e4], np.float16)}, False),
        ({"BF16": np.array([0x7FC0], np.uint16)}, True),
        ({"BF16": np.array([0x7F80, 0xFF80, 0x3F80], np.uint16)}, False),
        ({"INT32": np.array([5])}, False),
        ({"BYTES": np.array([b"nan"], object)}, False),
        ({"FP32": np.zeros((0, 3), np.float32)}, False),
    ],
)
def test_nan_is_found_in_every_kind_of_float(tensors: Tensors, holds: bool) -> None:
    ((datatype, tensor),) = tensors.items()
    assert holds_nan(tensor, datatype) is holds
