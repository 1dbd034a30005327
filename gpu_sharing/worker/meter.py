"""The meter page: what a lane has used, written where its worker's death cannot take it.

Memory that the worker maps and its executor reads through a descriptor of its own: a file, or memory without a name. The
lane writes it at both ends of every slice; no lock, no call into the system. Each counter is one aligned word, stored
whole, so that a process killed at any moment leaves every one as it was before a store or as it is after.

A slice in the middle of which its worker died is told as `Running`. It is over, and counted, from the one store that adds
its time to its replica's; what the page says of its beginning tells whether that store was made.
"""

from __future__ import annotations

import mmap
import os

from gpu_sharing.units import Bytes, Nanoseconds
from gpu_sharing.worker.messages import Reading, Running, Used

_WORD: Bytes = 8
_RECORD_WORDS = 8
_RECORD: Bytes = _WORD * _RECORD_WORDS
RECORDS = 1023
"""Replicas that one worker's life has room for; what further ones use is told by its messages alone."""
PAGE_BYTES: Bytes = (RECORDS + 1) * _RECORD

# Words of the head.
_BEGAN, _RECORD_OF, _BEFORE, _ALIVE, _TAKEN = range(5)
# Words of a replica's record.
_REPLICA, _DEVICE, _REQUESTS, _BATCHES = range(4)
_NOBODY = RECORDS


class Meter:
    """The worker's side. `begin` and `end` belong to the lane's thread, `beat` to one other."""

    def __init__(self, memory: memoryview | None = None) -> None:
        """memory: PAGE_BYTES zeros, shared with whoever reads; None: nobody does."""
        self._words = (memoryview(bytearray(PAGE_BYTES)) if memory is None else memory).cast("Q")
        self._records: dict[int, int] = {}

    @classmethod
    def of(cls, fd: int) -> Meter:
        """Maps the page behind a descriptor, which stays open. OSError, ValueError where that cannot be."""
        return cls(memoryview(mmap.mmap(fd, PAGE_BYTES)))

    def begin(self, replica: int, now: Nanoseconds, requests: int) -> None:
        """A slice of this replica begins. requests: those of its batch, where the slice is its first; else 0."""
        words = self._words
        at = self._records.get(replica)
        if at is None:
            at = self._take(replica)
        if at == _NOBODY:
            return
        record = (at + 1) * _RECORD_WORDS
        if requests:
            words[record + _REQUESTS] += requests
            words[record + _BATCHES] += 1
        words[_RECORD_OF] = at
        words[_BEFORE] = words[record + _DEVICE]
        words[_ALIVE] = now
        words[_BEGAN] = now

    def end(self, took: Nanoseconds) -> None:
        """The slice that began last has ended."""
        words = self._words
        if words[_BEGAN]:
            # From this store on it is counted.
            words[(words[_RECORD_OF] + 1) * _RECORD_WORDS + _DEVICE] = words[_BEFORE] + took
            words[_BEGAN] = 0

    def beat(self, now: Nanoseconds) -> None:
        """The worker is alive: a slice that runs is charged up to here at the least."""
        self._words[_ALIVE] = now

    def _take(self, replica: int) -> int:
        at = self._words[_TAKEN]
        if at >= RECORDS:
            at = _NOBODY
        else:
            self._words[(at + 1) * _RECORD_WORDS + _REPLICA] = replica
            self._words[_TAKEN] = at + 1
        self._records[replica] = at
        return at


def read(fd: int) -> Reading:
    """What the page behind a descriptor says now; nothing where it is no page. OSError where it cannot be read.

    It is read, not mapped: a worker that cuts its file short must not take its executor with it.
    """
    head = os.pread(fd, _RECORD, 0)
    if len(head) < _RECORD:
        return Reading()
    words = memoryview(head).cast("Q")
    taken = min(words[_TAKEN], RECORDS)
    data = os.pread(fd, taken * _RECORD, _RECORD)
    records = memoryview(data[: len(data) // _RECORD * _RECORD]).cast("Q")
    used = tuple(
        Used(records[at + _REPLICA], records[at + _DEVICE], records[at + _REQUESTS], records[at + _BATCHES], 0)
        for at in range(0, len(records), _RECORD_WORDS)
    )
    return Reading(used, _running(words, used))


def _running(head: memoryview[int], used: tuple[Used, ...]) -> Running | None:
    at, began = head[_RECORD_OF], head[_BEGAN]
    if not began or at >= len(used) or used[at].device_ns != head[_BEFORE]:
        return None
    return Running(used[at].replica, began, max(began, head[_ALIVE]))
