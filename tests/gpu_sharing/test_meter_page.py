"""The meter page: what it says whenever its writer is cut short, and what is left of a worker killed in a slice."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import time
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from worker_models import Books

from gpu_sharing.memory.arena import create_memory
from gpu_sharing.worker.client import WorkerClient, WorkerConfig
from gpu_sharing.worker.messages import Reading
from gpu_sharing.worker.meter import PAGE_BYTES, RECORDS, Meter, read
from tests.mesh.tiny import slow

MS = 1_000_000


class CutShort(Exception):
    """The writer died."""


class Dying:
    """A page's words whose writer dies after so many stores."""

    def __init__(self, fd: int, stores: int) -> None:
        self._words = memoryview(mmap.mmap(fd, PAGE_BYTES)).cast("Q")
        self._left = stores

    def cast(self, _format: str) -> Dying:
        return self

    def __getitem__(self, at: int) -> int:
        return self._words[at]

    def __setitem__(self, at: int, value: int) -> None:
        if not self._left:
            raise CutShort
        self._left -= 1
        self._words[at] = value


SLICES = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 50), st.booleans()), max_size=30)


@given(slices=SLICES, stores=st.integers(0, 250))
def test_whenever_the_writer_dies_every_slice_that_ended_is_counted_once_and_at_most_one_more_was_running(
    slices, stores
):
    fd = create_memory(PAGE_BYTES, "meter")
    meter = Meter(Dying(fd, stores))  # type: ignore[arg-type]
    ended: dict[int, int] = {}
    now, running = 1000, None
    try:
        for replica, took, first in slices:
            running = (replica, now, took)
            meter.begin(replica, now, int(first))
            now += took
            meter.end(took)
            ended[replica] = ended.get(replica, 0) + took
            running = None
    except CutShort:
        pass
    reading = read(fd)
    os.close(fd)
    counted = {used.replica: used.device_ns for used in reading.used}
    with_running = dict(ended)
    if running is not None:
        with_running[running[0]] = ended.get(running[0], 0) + running[2]
    # The slice it died in either is not counted, and may be told as running, or is counted whole and not told.
    nonzero = {replica: ns for replica, ns in counted.items() if ns}
    assert nonzero in ({r: ns for r, ns in ended.items() if ns}, {r: ns for r, ns in with_running.items() if ns})
    if reading.running is not None:
        assert running is not None
        assert (reading.running.replica, reading.running.began) == running[:2]
        assert counted[running[0]] == ended.get(running[0], 0)


def test_a_page_that_is_full_keeps_what_it_has():
    fd = create_memory(PAGE_BYTES, "meter")
    meter = Meter.of(fd)
    for replica in range(1, RECORDS + 5):
        meter.begin(replica, 10, 1)
        meter.end(3)
    meter.begin(1, 20, 0)
    meter.end(4)
    reading = read(fd)
    os.close(fd)
    assert (len(reading.used), reading.running) == (RECORDS, None)
    assert (reading.used[0].device_ns, reading.used[-1].replica, reading.used[-1].device_ns) == (7, RECORDS, 3)


def test_a_page_that_was_cut_short_or_scribbled_over_breaks_no_reader(tmp_path: Path):
    path = tmp_path / "page"
    for content in (b"", b"x" * 63, b"\xff" * PAGE_BYTES, b"\xff" * 100):
        path.write_bytes(content)
        fd = os.open(path, os.O_RDONLY)
        reading = read(fd)
        os.close(fd)
        assert isinstance(reading, Reading)
        assert reading.running is None or content[:1] == b"\xff"


def test_telling_a_slice_takes_a_few_microseconds_at_the_most():
    meter, turns = Meter(), 20_000
    started = time.perf_counter_ns()
    for now in range(1, turns + 1):
        meter.begin(7, now, 1)
        meter.end(5)
    each_ns = (time.perf_counter_ns() - started) / turns
    print(f"a slice's two words to the meter: {each_ns:.0f} ns")
    assert meter._words[9] == 5 * turns


async def test_what_a_worker_used_is_known_to_the_slice_when_it_is_killed_in_the_middle_of_one(tmp_path: Path) -> None:
    fd = create_memory(PAGE_BYTES, "meter")
    books: list[Books] = []
    client = await WorkerClient.start(
        WorkerConfig(cores=(0,), input_arena_bytes=1 << 26, output_arena_bytes=1 << 26),
        on_events=lambda events: books[0].on_events(events),
        meter_fd=fd,
    )
    books.append(Books(client))
    await books[0].load(slow(tmp_path / "slow.onnx"), max_batch_size=1, batch_axes={"turns": -1, "mean": -1})
    device_ns = 0
    for _ in range(5):
        done = await books[0].submit([np.array([50], np.int64)])
        device_ns += done.batch.ended - done.batch.started - done.batch.preempted
    reading = read(fd)
    assert (reading.running, reading.used[0].requests, reading.used[0].batches) == (None, 5, 5)
    assert abs(reading.used[0].device_ns - device_ns) < 5 * MS
    whole_ns = reading.used[0].device_ns
    sent = time.monotonic_ns()
    books[0].submit([np.array([1_000_000], np.int64)])
    while read(fd).running is None:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    began = time.monotonic_ns()
    await asyncio.sleep(0.5)
    os.kill(client.pid, signal.SIGKILL)
    killed = time.monotonic_ns()
    await client.lost
    reading = read(fd)
    assert reading.used[0].device_ns == whole_ns, "a slice that did not end is not counted as one that did"
    assert reading.used[0].requests == 6
    assert reading.running is not None
    assert sent <= reading.running.began <= began
    assert killed - 350 * MS <= reading.running.alive <= killed
    await client.stop(0.0)
    os.close(fd)


def test_a_record_that_is_given_away_begins_at_nothing_and_belongs_to_nobody_in_between():
    fd = create_memory(PAGE_BYTES, "meter")
    for stores in range(60):
        os.pwrite(fd, bytes(PAGE_BYTES), 0)
        meter = Meter(Dying(fd, stores))  # type: ignore[arg-type]
        try:
            meter.begin(1, 1000, 3)
            meter.end(40)
            meter.free(1)
            meter.begin(2, 2000, 1)
            meter.end(7)
        except CutShort:
            pass
        for used in read(fd).used:
            assert (used.replica, used.device_ns) in {(1, 0), (1, 40), (2, 0), (2, 7)}
    assert [(used.replica, used.device_ns, used.requests, used.batches) for used in read(fd).used] == [(2, 7, 1, 1)]
    os.close(fd)


def test_a_page_never_runs_out_of_records_while_those_of_the_gone_are_freed():
    fd = create_memory(PAGE_BYTES, "meter")
    meter = Meter.of(fd)
    for replica in range(1, 3 * RECORDS):
        meter.begin(replica, replica, 1)
        meter.end(5)
        assert [used.replica for used in read(fd).used] == [replica]
        meter.free(replica)
    assert len(meter._records) == 1
    os.close(fd)


def test_a_replica_that_found_no_record_is_forgotten_once_it_is_gone():
    meter = Meter()
    for replica in range(1, RECORDS + 3):
        meter.begin(replica, replica, 1)
        meter.end(5)
    meter.free(RECORDS + 1)
    meter.free(1)
    meter.begin(RECORDS + 9, 1, 1)
    assert RECORDS + 1 not in meter._records
    assert meter._records[RECORDS + 9] == 0
