"""The pause between messages: none where nobody would share them, short where many come."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.pacing import Pace, Pause

MS = 1_000_000


def after(pace: Pace, *, apart_ms: float, calls: int, in_hand: int, messages: int = 60) -> float:
    """The pause after many messages that were so far apart."""
    found = 0.0
    for number in range(messages):
        found = pace.pause_s(calls, in_hand, int(number * apart_ms * MS))
    return found


def test_a_caller_who_waits_for_each_answer_never_waits_for_others() -> None:
    assert after(Pace(), apart_ms=0.2, calls=1, in_hand=1) == 0.0


def test_a_stream_with_little_to_do_has_no_pause() -> None:
    assert after(Pace(), apart_ms=50, calls=1, in_hand=20) == 0.0
    assert after(Pace(), apart_ms=2.5, calls=1, in_hand=20) == 0.0


def test_a_busy_stream_waits_for_about_as_many_calls_as_are_to_share_a_message() -> None:
    assert 0.0003 < after(Pace(gather=4), apart_ms=0.1, calls=1, in_hand=20) <= 0.0005
    assert after(Pace(gather=4, most_s=0.002), apart_ms=1.0, calls=1, in_hand=20) == 0.002


def test_the_pause_ends_when_the_rush_does() -> None:
    pace = Pace()
    assert after(pace, apart_ms=0.5, calls=1, in_hand=20) > 0
    start = 1_000 * MS
    for number in range(30):
        last = pace.pause_s(1, 20, start + number * 40 * MS)
    assert last == 0.0


def test_messages_without_calls_say_nothing_of_the_rate() -> None:
    pace = Pace()
    before = after(pace, apart_ms=0.1, calls=1, in_hand=20)
    for number in range(50):
        assert pace.pause_s(0, 20, (1_000 + number) * MS) == before


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 100), st.integers(0, 10**10)), max_size=60))
def test_no_pause_is_ever_longer_than_the_longest(steps: list[tuple[int, int, int]]) -> None:
    pace, now = Pace(most_s=0.002), 0
    for calls, in_hand, passed in steps:
        now += passed
        assert 0 <= pace.pause_s(calls, in_hand, now) <= 0.002


async def test_a_pause_ends_when_its_time_is_over() -> None:
    began = time.monotonic()
    await Pause().wait(0.02)
    assert time.monotonic() - began >= 0.015


async def test_a_pause_ends_early_when_the_other_side_has_nothing_left_to_do() -> None:
    pause = Pause()
    waiting = asyncio.create_task(pause.wait(3600))
    await asyncio.sleep(0)
    pause.end()
    await asyncio.wait_for(waiting, 5)
    pause.end()
    await pause.wait(0.001)


async def test_a_pause_that_was_cancelled_can_be_used_again() -> None:
    pause = Pause()
    waiting = asyncio.create_task(pause.wait(3600))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await pause.wait(0.001)


async def test_two_never_wait_on_one_pause() -> None:
    pause = Pause()
    waiting = asyncio.create_task(pause.wait(3600))
    await asyncio.sleep(0)
    with pytest.raises(AssertionError, match="two wait"):
        await pause.wait(1)
    pause.end()
    await waiting
