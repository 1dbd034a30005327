"""Which segments are worth a CUDA graph, and which of them go when there is no room. PURE.

A graph bakes in addresses and the SMs it was captured for: so it is kept per model, lane, rows and shape, for all segments of a
batch together (a *chain*). Two batches of one key may be in flight at once, one of them set aside at a boundary; a chain holds
one batch's values, so it is leased to one batch at a time, and the other one runs without.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from gpu_sharing.units import Bytes, Nanoseconds

WARM_RUNS = 2
"""Runs without a graph before one is captured: libraries make handles, load modules and try kernels in the first ones."""
KNOWN_KEYS = 4096
"""Keys that runs are counted for, of those that have no graph."""


class Key(NamedTuple):
    """What a chain was captured for. model: as the worker knows it; partition: the SMs it runs on, as the lane's number."""

    model: int
    partition: int
    rows: int
    shape: str


class Way(Enum):
    """How a batch runs."""

    EAGER = "eager"
    CAPTURE = "capture"
    REPLAY = "replay"


@dataclass(slots=True)
class _Chain:
    size_bytes: Bytes
    leased: bool
    used_at: Nanoseconds
    uses: int = 0


class Snapshot(NamedTuple):
    """chains, size_bytes: kept now. replays, captures, evictions, refusals: since the start; refusals: no room or not capturable."""

    chains: int
    size_bytes: Bytes
    replays: int
    captures: int
    evictions: int
    refusals: int


class GraphPolicy:
    """Decides for one tenant on one lane. budget_bytes: what all its chains may hold together. One thread at a time."""

    def __init__(self, budget_bytes: Bytes, *, warm_runs: int = WARM_RUNS) -> None:
        """Raises ValueError for a negative budget."""
        if budget_bytes < 0 or warm_runs < 0:
            raise ValueError(f"budget_bytes, warm_runs: must not be negative, are {budget_bytes} and {warm_runs}")
        self.budget_bytes = budget_bytes
        self._warm_runs = warm_runs
        self._chains: dict[Key, _Chain] = {}
        self._runs: dict[Key, int] = {}
        self._never: set[Key] = set()
        # Those that had no room: once, and for good.
        self._crowded: set[Key] = set()
        self._roomless: set[Key] = set()
        self._row_bytes: dict[int, float] = {}
        self._capturing: Key | None = None
        self.size_bytes: Bytes = 0
        self._counts = [0, 0, 0, 0]

    def begin(self, key: Key, now: Nanoseconds) -> Way:
        """A batch of this key starts. CAPTURE: to be followed by `captured` or `failed`; REPLAY: by `end`."""
        chain = self._chains.get(key)
        if chain is not None:
            if chain.leased:
                return Way.EAGER
            chain.leased, chain.used_at = True, now
            chain.uses += 1
            self._counts[0] += 1
            return Way.REPLAY
        if key in self._never or key in self._roomless or self._capturing is not None or not self.budget_bytes:
            return Way.EAGER
        runs = self._runs.pop(key, 0)
        if runs >= self._warm_runs:
            self._capturing = key
            return Way.CAPTURE
        if len(self._runs) >= KNOWN_KEYS:
            # The one that was seen first and least lately goes: dicts keep the order in which keys were last counted.
            del self._runs[next(iter(self._runs))]
        self._runs[key] = runs + 1
        return Way.EAGER

    def make_room(self, key: Key) -> list[Key]:
        """The key is about to be captured. Which chains are to be let go of, so that there is room for one like its model's others."""
        self._expect(key)
        expected = math.ceil(self._row_bytes.get(key.model, 0.0) * key.rows)
        gone = list(self._victims(self.size_bytes + min(expected, self.budget_bytes) - self.budget_bytes))
        self._let_go(gone)
        return gone

    def captured(self, key: Key, size_bytes: Bytes, now: Nanoseconds) -> list[Key]:
        """All segments of the key are captured, and leased to the batch that did it. Which chains are to be let go of.

        The key itself is among them where it does not fit beside what is leased: then it is never captured again, and the
        caller lets go of it once its batch has ended.
        """
        self._expect(key)
        self._capturing = None
        room = self.budget_bytes - sum(each.size_bytes for each in self._chains.values() if each.leased)
        if size_bytes > room:
            self._roomless.add(key)
            self._counts[3] += 1
            return [key]
        gone = list(self._victims(self.size_bytes + size_bytes - self.budget_bytes))
        self._let_go(gone)
        self._counts[1] += 1
        self._row_bytes[key.model] = max(self._row_bytes.get(key.model, 0.0), size_bytes / max(1, key.rows))
        self._crowded.discard(key)
        self._chains[key] = _Chain(size_bytes, True, now)
        self.size_bytes += size_bytes
        return gone

    def failed(self, key: Key) -> None:
        """The key cannot be captured: its batches run without a graph from now on."""
        self._expect(key)
        self._capturing = None
        self._never.add(key)
        self._counts[3] += 1

    def given_up(self, key: Key) -> None:
        """The batch that was to capture it ended before it had: the next one tries again."""
        self._expect(key)
        self._capturing = None
        self._runs[key] = self._warm_runs

    def crowded(self, key: Key) -> list[Key]:
        """Memory was used up before the key was captured whole. Which chains are to be let go of, so that there is room.

        They are those unused for longest, half of the budget's worth. The key is tried once more, after as many runs as at first;
        where nothing could be let go of, or it was the second time, never again.
        """
        self._expect(key)
        self._capturing = None
        self._counts[3] += 1
        gone = list(self._victims(self.size_bytes - self.budget_bytes // 2)) if key not in self._crowded else []
        if gone:
            self._crowded.add(key)
            self._let_go(gone)
        else:
            self._roomless.add(key)
        return gone

    def resize(self, budget_bytes: Bytes) -> list[Key]:
        """There is more or less from now on. Which chains are to be let go of; those that are leased go with their batch."""
        if budget_bytes < 0:
            raise ValueError(f"budget_bytes: must not be negative, is {budget_bytes}")
        if budget_bytes > self.budget_bytes:
            # What had none may have room now.
            self._crowded, self._roomless = set(), set()
        self.budget_bytes = budget_bytes
        gone = list(self._victims(self.size_bytes - budget_bytes))
        self._let_go(gone)
        return gone

    def end(self, key: Key) -> list[Key]:
        """The batch that had the chain's lease is over. Which chains are to be let go of. ValueError where it had none."""
        chain = self._chains.get(key)
        if chain is None or not chain.leased:
            raise ValueError(f"{key} is not leased")
        chain.leased = False
        gone = list(self._victims(self.size_bytes - self.budget_bytes))
        self._let_go(gone)
        return gone

    def forget(self, model: int) -> list[Key]:
        """The model goes: the chains to be let go of."""
        gone = [key for key in self._chains if key.model == model]
        for key in gone:
            self._drop(key)
        self._row_bytes.pop(model, None)
        self._runs = {key: runs for key, runs in self._runs.items() if key.model != model}
        self._never = {key for key in self._never if key.model != model}
        self._crowded = {key for key in self._crowded if key.model != model}
        self._roomless = {key for key in self._roomless if key.model != model}
        return gone

    def snapshot(self) -> Snapshot:
        """How things stand."""
        return Snapshot(len(self._chains), self.size_bytes, *self._counts)

    def check_invariants(self) -> None:
        """Raises AssertionError unless sizes add up, and what no batch has fits."""
        total = sum(each.size_bytes for each in self._chains.values())
        over = total > self.budget_bytes and not all(each.leased for each in self._chains.values())
        if total != self.size_bytes or over:
            raise AssertionError(f"{self.size_bytes} bytes counted, {total} there, {self.budget_bytes} allowed")
        if self._capturing in self._chains or (self._never | self._roomless) & set(self._chains):
            raise AssertionError("a chain is captured twice, or never and yet")

    def _victims(self, needed: Bytes) -> Iterator[Key]:
        """Those that have gone unused for longest, of the rest the least used."""
        free = [(each.used_at, each.uses, key) for key, each in self._chains.items() if not each.leased]
        for _, _, key in sorted(free):
            if needed <= 0:
                return
            needed -= self._chains[key].size_bytes
            yield key

    def _let_go(self, keys: Sequence[Key]) -> None:
        for key in keys:
            self._drop(key)
        self._counts[2] += len(keys)

    def _drop(self, key: Key) -> None:
        self.size_bytes -= self._chains.pop(key).size_bytes

    def _expect(self, key: Key) -> None:
        if self._capturing != key:
            raise ValueError(f"{key} is not being captured; {self._capturing} is")
