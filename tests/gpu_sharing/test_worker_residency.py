"""More models than memory, in a real worker on the processor: weights go, come back, and answers are the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from worker_models import Books

from gpu_sharing.worker.messages import Done, Failed, Loaded, LoadFailed, Moved

MiB = 1 << 20
WIDTH, LAYERS = 256, 4
MODELS = 5
WEIGHTS = LAYERS * (WIDTH * WIDTH + WIDTH) * 4
ROOM = 5 * WEIGHTS // 2
"""For two models and what batches of all of them need."""


class Deep(torch.nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Deep]]:
    folder = tmp_path_factory.mktemp("models")
    made = []
    for seed in range(MODELS):
        module = Deep(seed).eval()
        batch = torch.export.Dim("batch", max=8)
        program = torch.export.export(module, (torch.zeros(2, WIDTH),), dynamic_shapes={"x": {0: batch}})
        torch.export.save(program, path := folder / f"{seed}.pt2")
        made.append((path, module))
    return made


@pytest.fixture
async def books() -> AsyncIterator[Books]:
    books = await Books.open(host_bytes=16 * MiB, memory_bytes=ROOM, prewarm=("torch_export",))
    yield books
    await books.client.stop(1.0)


async def load(books: Books, artefact: tuple[Path, Deep], replica: int, **fields: object) -> Loaded:
    loaded = await books.load(artefact[0], replica, format="torch_export", max_batch_size=2, **fields)
    assert isinstance(loaded, Loaded), loaded.message
    return loaded


async def answered(books: Books, artefact: tuple[Path, Deep], replica: int, seed: int) -> Done:
    x = np.random.default_rng(seed).standard_normal((2, WIDTH)).astype(np.float32)
    done = await books.submit([x], replica=replica, rows=2)
    assert isinstance(done, Done), done
    with torch.inference_mode():
        expected = artefact[1](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(books.read(done), expected, rtol=1e-5, atol=1e-6)
    return done


def moves(books: Books) -> Iterator[tuple[bool, int]]:
    """(in or out, first replica)."""
    return ((event.is_in, event.replicas[0]) for event in books.events if isinstance(event, Moved) and event.replicas)


async def test_five_models_serve_from_memory_for_two_and_answer_as_ever(books: Books, artefacts: list) -> None:
    for number, artefact in enumerate(artefacts):
        await load(books, artefact, number + 1)
    for turn in range(3):
        for number, artefact in enumerate(artefacts):
            await answered(books, artefact, number + 1, 10 * turn + number)
    out = [replica for is_in, replica in moves(books) if not is_in]
    assert len(out) >= 3 * (MODELS - 2)
    assert set(out) == set(range(1, MODELS + 1))
    (explained, *_) = [event for event in books.events if isinstance(event, Moved) and not event.is_in]
    assert "room for" in explained.why


@pytest.mark.slow
async def test_what_is_asked_for_all_the_time_stays_while_others_come_and_go(books: Books, artefacts: list) -> None:
    for number, artefact in enumerate(artefacts[:4]):
        await load(books, artefact, number + 1)
    await answered(books, artefacts[0], 1, 1)
    books.events.clear()
    for turn in range(4):
        for seed in range(5):
            await answered(books, artefacts[0], 1, seed)
        await answered(books, artefacts[1 + turn % 3], 2 + turn % 3, turn)
    assert (False, 1) not in list(moves(books))


@pytest.mark.slow
async def test_requests_of_all_models_at_once_are_all_answered(books: Books, artefacts: list) -> None:
    for number, artefact in enumerate(artefacts):
        await load(books, artefact, number + 1)
    asked = [
        answered(books, artefact, number + 1, 100 * turn + number)
        for turn in range(6)
        for number, artefact in enumerate(artefacts)
    ]
    assert len(await asyncio.gather(*asked)) == 6 * MODELS


@pytest.mark.slow
async def test_equal_artefacts_share_what_moves(books: Books, artefacts: list) -> None:
    for replica, number in ((1, 0), (2, 0), (3, 1), (4, 2)):
        await load(books, artefacts[number], replica, tenant=f"t{replica}")
    for turn in range(2):
        for replica, number in ((1, 0), (3, 1), (4, 2), (2, 0)):
            await answered(books, artefacts[number], replica, turn)
    await books.unload(1, 10**9)
    for replica, number in ((3, 1), (4, 2), (2, 0)):
        await answered(books, artefacts[number], replica, 7)
    await books.unload(2, 10**9)
    await load(books, artefacts[3], 5)
    await answered(books, artefacts[3], 5, 8)


@pytest.mark.slow
async def test_a_reservation_keeps_its_models_memory(artefacts: list) -> None:
    books = await Books.open(host_bytes=16 * MiB, memory_bytes=ROOM + WEIGHTS, prewarm=("torch_export",))
    try:
        await load(books, artefacts[0], 1, bandwidth=100)
        for number in (1, 2, 3):
            await load(books, artefacts[number], number + 1)
        for turn in range(2):
            for number in (1, 2, 3):
                await answered(books, artefacts[number], number + 1, turn)
        await answered(books, artefacts[0], 1, 9)
        assert (False, 1) not in list(moves(books))
        assert [is_in for is_in, _ in moves(books)].count(False) >= 2
    finally:
        await books.client.stop(1.0)


@pytest.mark.slow
async def test_a_request_whose_deadline_is_before_the_copys_end_is_refused_and_says_so(
    books: Books, artefacts: list
) -> None:
    import time

    for number, artefact in enumerate(artefacts[:3]):
        await load(books, artefact, number + 1)
    gone = next(replica for is_in, replica in reversed(list(moves(books))) if not is_in)
    x = np.zeros((2, WIDTH), np.float32)
    failed = await books.submit([x], replica=gone, rows=2, deadline=time.monotonic_ns() + 200_000)
    assert isinstance(failed, Failed)
    assert failed.reason in ("OVERLOADED", "DEADLINE_EXCEEDED")
    if failed.reason == "OVERLOADED":
        assert int(failed.facts["swap_in_us"]) > 0
    # It was asked for all the same: whoever comes next finds it there.
    await answered(books, artefacts[gone - 1], gone, 3)


@pytest.mark.slow
async def test_what_is_unloaded_gives_its_room_back(books: Books, artefacts: list) -> None:
    for turn in range(3):
        for number, artefact in enumerate(artefacts[:3]):
            await load(books, artefact, 10 * turn + number + 1)
        for number, artefact in enumerate(artefacts[:3]):
            await answered(books, artefact, 10 * turn + number + 1, number)
        for number in range(3):
            await books.unload(10 * turn + number + 1, 10**9)


@pytest.mark.slow
async def test_without_room_on_the_host_models_stay_and_the_ledger_says_when_it_is_full(artefacts: list) -> None:
    books = await Books.open(host_bytes=WEIGHTS // 4096 * 4096 + 8192, memory_bytes=4 * WEIGHTS)
    try:
        told = [
            await books.load(path, number + 1, format="torch_export", max_batch_size=2)
            for number, (path, _) in enumerate(artefacts)
        ]
        assert isinstance(told[0], Loaded)
        assert isinstance(told[-1], LoadFailed)
        assert "no room on the device" in told[-1].message
        await answered(books, artefacts[0], 1, 1)
    finally:
        await books.client.stop(1.0)
