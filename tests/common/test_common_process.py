"""A service's process: what it does about garbage while it runs."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from services.common import process
from services.common.process import generation_due, tend


class Circle:
    """Holds itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def no_rounds() -> Iterator[None]:
    """The collector does nothing by itself."""
    gc.disable()
    yield
    gc.enable()


async def test_circles_do_not_wait_until_there_are_many_of_them(
    no_rounds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled, gone = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(process, "SETTLED_S", 0.0)
    monkeypatch.setattr(process, "YOUNG_S", 0.05)
    # Freezing what the tests' process holds would not end with the test.
    monkeypatch.setattr(process, "settle", settled.set)
    tending = asyncio.create_task(tend())
    await asyncio.wait_for(settled.wait(), 5)
    held = weakref.ref(Circle(), lambda _: gone.set())
    assert held() is not None
    await asyncio.wait_for(gone.wait(), 5)
    tending.cancel()


def test_older_generations_are_looked_at_as_much_more_seldom_as_by_the_thresholds() -> None:
    due = [generation_due(number) for number in range(1, 801)]
    assert [due.count(generation) for generation in (0, 1, 2)] == [760, 38, 2]
    assert due[18:20] == [0, 1]
    assert due[399] == due[799] == 2
