"""Whose turn it is to read a worker's commands."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from gpu_sharing.units import MS
from gpu_sharing.worker.reading import SHORT, UNLIKELY, Reading
from gpu_sharing.worker.wire import WireError

USUAL = SHORT // 10


class Source:
    """What is read: each round takes one item, or waits for it; "end" ends it. readers: the threads that took something."""

    def __init__(self) -> None:
        self._items: list[str] = []
        self._come = threading.Condition()
        self.readers: list[str] = []

    def put(self, item: str) -> None:
        with self._come:
            self._items.append(item)
            self._come.notify_all()

    def read(self, wait: bool) -> bool:
        with self._come:
            if wait:
                assert self._come.wait_for(lambda: self._items, 5)
            if not self._items:
                return True
            item = self._items.pop(0)
        if item == "rubbish":
            raise WireError(item)
        self.readers.append(threading.current_thread().name)
        return item != "end"


@pytest.fixture
def source() -> Source:
    return Source()


def started(source: Source, **options: bool) -> tuple[Reading, threading.Thread, list[Exception]]:
    """A reading, and the thread that runs it, with what that raised."""
    reading = Reading(source.read, clock=lambda: 10 * MS, **options)
    raised: list[Exception] = []

    def run() -> None:
        try:
            reading.run()
        except WireError as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="reader", daemon=True)
    thread.start()
    return reading, thread, raised


def ended(thread: threading.Thread) -> bool:
    thread.join(5)
    return not thread.is_alive()


def wait_for(holds: Callable[[], bool]) -> None:
    ends = threading.Event()
    for _ in range(500):
        if holds():
            return
        ends.wait(0.01)
    raise AssertionError("it did not happen")


def test_the_lane_reads_once_it_has_been_offered_to(source: Source) -> None:
    reading, thread, _ = started(source)
    reading.look(reading.rounds)
    assert source.readers == []
    # The reader waits inside its first round, from which it offers.
    reading.offer()
    source.put("one")
    wait_for(lambda: reading.rounds == 1)
    source.put("two")
    reading.look(reading.rounds)
    assert source.readers == ["reader", "MainThread"]
    source.put("end")
    reading.look(reading.rounds)
    assert ended(thread)
    assert not reading.is_lanes


def test_the_lane_does_not_wait_for_more_where_the_other_thread_has_taken_something_since(source: Source) -> None:
    reading, thread, _ = started(source)
    reading.offer()
    before = reading.rounds
    source.put("one")
    wait_for(lambda: reading.rounds == before + 1)
    reading.look(before)
    assert source.readers == ["reader"]
    reading.keep()
    source.put("end")
    assert ended(thread)


@pytest.mark.parametrize(
    ("usual", "predicted"),
    [(None, USUAL), (SHORT + 1, USUAL), (USUAL, None), (USUAL, UNLIKELY * SHORT + 1)],
)
def test_before_a_slice_that_may_be_long_the_turn_is_given_back(
    source: Source, usual: int | None, predicted: int | None
) -> None:
    reading, thread, _ = started(source)
    reading.offer()
    reading.begin(usual, predicted)
    assert not reading.is_lanes
    source.put("end")
    assert ended(thread)
    assert source.readers == ["reader"]


def test_a_slice_that_is_longer_than_expected_loses_the_turn_after_two_looks(source: Source) -> None:
    reading, thread, _ = started(source)
    reading.offer()
    source.put("one")
    wait_for(lambda: reading.rounds == 1)
    reading.begin(USUAL, USUAL)
    reading.beat()
    assert reading.is_lanes
    reading.beat()
    assert not reading.is_lanes
    source.put("end")
    assert ended(thread)
    assert source.readers == ["reader", "reader"]


def test_slices_one_after_the_other_are_not_taken_for_one(source: Source) -> None:
    reading, thread, _ = started(source)
    reading.offer()
    source.put("one")
    wait_for(lambda: reading.rounds == 1)
    for _ in range(4):
        reading.begin(USUAL, USUAL)
        reading.beat()
        reading.end()
    assert reading.is_lanes
    reading.keep()
    source.put("end")
    assert ended(thread)


def test_what_the_lane_finds_wrong_with_the_commands_ends_the_other_thread(source: Source) -> None:
    reading, thread, raised = started(source)
    reading.offer()
    source.put("one")
    wait_for(lambda: reading.rounds == 1)
    source.put("rubbish")
    reading.look(reading.rounds)
    assert ended(thread)
    assert [str(each) for each in raised] == ["rubbish"]


def test_a_lane_that_may_not_read_never_does(source: Source) -> None:
    reading, thread, _ = started(source, shared=False)
    reading.offer()
    assert not reading.is_lanes
    source.put("end")
    assert ended(thread)
    assert source.readers == ["reader"]
