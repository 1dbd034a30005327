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
from collections import deque

from gpu_sharing.units import Bytes, Nanoseconds
from gpu_sharing.worker.messages import Reading, Running, Used

_WORD: Bytes = 8
_RECORD_WORDS = 8
_RECORD: Bytes = _WORD * _RECORD_WORDS
RECORDS = 1023
"""Replicas that a page has room for at once; what further ones use is told by the worker's messages alone."""
PAGE_BYTES: Bytes = (RECORDS + 1) * _RECORD

# Words of the head.
_BEGAN, _RECORD_OF, _BEFORE, _ALIVE, _TAKEN = range(5)
# Words of a replica's record.
_REPLICA, _DEVICE, _REQUESTS, _BATCHES = range(4)
_FREE = 0
"""In place of a replica: the record is nobody's. No replica has this number."""
_NOBODY = RECORDS


class Meter:
    """The worker's side. `begin` and `end` belong to the lane's thread, `beat` to one other, `free` to any."""

    def __init__(self, memory: memoryview | None = None) -> None:
        """memory: PAGE_BYTES zeros, shared with whoever reads; None: nobody does."""
        self._words = (memoryview(bytearray(PAGE_BYTES)) if memory is None else memory).cast("Q")
        self._records: dict[int, int] = {}
        self._freed: deque[int] = deque()

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

    def free(self, replica: int) -> None:
        """The replica is gone, and what its record says is settled: another may have the record."""
        self._freed.append(replica)

    def _take(self, replica: int) -> int:
        at = self._freed_record()
        if at is not None:
            self._words[(at + 1) * _RECORD_WORDS + _REPLICA] = replica
        elif (at := self._words[_TAKEN]) >= RECORDS:
            at = _NOBODY
        else:
            self._words[(at + 1) * _RECORD_WORDS + _REPLICA] = replica
            self._words[_TAKEN] = at + 1
        self._records[replica] = at
        return at

    def _freed_record(self) -> int | None:
        """A record that is nobody's any more, empty. It stops being its replica's before anything in it changes."""
        while self._freed:
            at = self._records.pop(self._freed.popleft(), _NOBODY)
            if at != _NOBODY:
                record = (at + 1) * _RECORD_WORDS
                for word in (_REPLICA, _DEVICE, _REQUESTS, _BATCHES):
                    self._words[record + word] = 0
                return at
        return None


def read(fd: int) -> Reading:
    """What the page behind a descriptor says now; nothing where it is no page. OSError where it cannot be read.

    It is read, not mapped: a worker that cuts its file short must not take its executor with it.
    """
    head = os.pread(fd, _RECORD, 0)
    if len(head) < _RECORD:
        return Reading()
    words = memoryview(head).cast("Q")
    taken = min(words[_TAKEN], RECORDS)
    # A record that changes hands between the two is left out: what is read of it may be half the one's, half the other's.
    before, records = (_records(os.pread(fd, taken * _RECORD, _RECORD)) for _ in range(2))
    used = tuple(
        Used(replica, records[at + _DEVICE], records[at + _REQUESTS], records[at + _BATCHES], 0)
        if (replica := records[at + _REPLICA]) == before[at + _REPLICA]
        else Used(_FREE, 0, 0, 0, 0)
        for at in range(0, min(len(before), len(records)), _RECORD_WORDS)
    )
    return Reading(tuple(each for each in used if each.replica != _FREE), _running(words, used))


def _records(data: bytes) -> memoryview[int]:
    return memoryview(data[: len(data) // _RECORD * _RECORD]).cast("Q")


def _running(head: memoryview[int], used: tuple[Used, ...]) -> Running | None:
    at, began = head[_RECORD_OF], head[_BEGAN]
    if not began or at >= len(used) or used[at].replica == _FREE or used[at].device_ns != head[_BEFORE]:
        return None
    return Running(used[at].replica, began, max(began, head[_ALIVE]))
