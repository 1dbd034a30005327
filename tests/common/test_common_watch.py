"""Following a watch through reconnections, and anew where the position is no longer held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from services.common import watch
from services.common.errors import Reason, Refusal
from services.common.status import DETAILS_KEY, to_status
from services.common.watch import Follower


def rpc_error(code: grpc.StatusCode, refusal: Refusal | None = None) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata()
    if refusal is not None:
        trailing = grpc.aio.Metadata((DETAILS_KEY, to_status(refusal).SerializeToString()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing)


class Source:
    """Streams by turn: each is a list of revisions, and then what ends it; after the last, silence."""

    def __init__(self, *streams: list[Any]) -> None:
        self.streams, self.asked = list(streams), []

    async def opens(self, position: int) -> AsyncIterator[int]:
        self.asked.append(position)
        for step in self.streams.pop(0) if self.streams else [None]:
            if isinstance(step, Exception):
                raise step
            if step is None:
                await asyncio.Event().wait()
            yield step


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(**_: float) -> Any:
        while True:
            yield 0.0

    monkeypatch.setattr(watch, "backoff", at_once)


@asynccontextmanager
async def following(source: Source) -> AsyncIterator[tuple[Follower[int, int], list[int]]]:
    applied: list[int] = []

    def applies(revision: int) -> int:
        applied.append(revision)
        return revision

    follower: Follower[int, int] = Follower("numbers", 0, source.opens, applies)
    task = asyncio.create_task(follower.run())
    try:
        yield follower, applied
        assert not task.done(), "following never ends by itself"
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came to hold")


Wait = Callable[[], Awaitable[None]]


async def test_a_follower_takes_a_snapshot_and_then_every_change() -> None:
    source = Source([5, 6, 7, None])
    async with following(source) as (follower, applied):
        await until(lambda: applied == [5, 6, 7])
        assert follower.synced.is_set()
        assert source.asked == [0]


async def test_after_an_interruption_it_goes_on_where_it_was() -> None:
    source = Source([5, 6, rpc_error(grpc.StatusCode.UNAVAILABLE)], [rpc_error(grpc.StatusCode.UNAVAILABLE)], [7, None])
    async with following(source) as (_, applied):
        await until(lambda: applied == [5, 6, 7])
        assert source.asked == [0, 6, 6]


async def test_a_stream_that_simply_ends_is_opened_again() -> None:
    source = Source([5], [6, None])
    async with following(source) as (_, applied):
        await until(lambda: applied == [5, 6])
        assert source.asked == [0, 5]


async def test_one_that_is_too_far_behind_takes_a_new_snapshot() -> None:
    compacted = rpc_error(grpc.StatusCode.OUT_OF_RANGE, Refusal(Reason.REVISION_COMPACTED, "gone"))
    source = Source([5, 6, rpc_error(grpc.StatusCode.UNAVAILABLE)], [compacted], [40, None])
    async with following(source) as (_, applied):
        await until(lambda: applied == [5, 6, 40])
        assert source.asked == [0, 6, 0]


async def test_a_position_is_kept_until_a_snapshot_has_come_in_its_place() -> None:
    compacted = rpc_error(grpc.StatusCode.OUT_OF_RANGE, Refusal(Reason.REVISION_COMPACTED, "gone"))
    away = rpc_error(grpc.StatusCode.UNAVAILABLE)
    source = Source([5, 6, away], [compacted], [away], [compacted], [40, away], [41, None])
    async with following(source) as (_, applied):
        await until(lambda: applied == [5, 6, 40, 41])
        assert source.asked == [0, 6, 0, 6, 0, 40]


async def test_while_the_source_is_away_the_copy_is_not_called_synced() -> None:
    source = Source([5, rpc_error(grpc.StatusCode.UNAVAILABLE)], [None])
    async with following(source) as (follower, _):
        await until(lambda: source.asked == [0, 5])
        assert not follower.synced.is_set()


async def test_a_message_that_cannot_be_applied_does_not_end_the_following() -> None:
    source = Source([5, 6, None], [7, None])
    seen: list[int] = []

    def applies(revision: int) -> int:
        if revision == 6:
            raise KeyError("what is this")
        seen.append(revision)
        return revision

    follower: Follower[int, int] = Follower("numbers", 0, source.opens, applies)
    task = asyncio.create_task(follower.run())
    await until(lambda: seen == [5, 7])
    assert source.asked == [0, 0]
    task.cancel()
