"""Which segments are worth a CUDA graph, and which of them go when there is no room. PURE.

A graph bakes in addresses and the SMs it was captured for: so it is kept per model, lane, rows and shape, for all segments of a
batch together (a *chain*). Two batches of one key may be in flight at once, one of them set aside at a boundary; a chain holds
one batch's values, so it is leased to one batch at a time, and the other one runs without.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    """Decides for one lane. budget_bytes: what all its chains may hold together. One thread."""

    def __init__(self, budget_bytes: Bytes, *, warm_runs: int = WARM_RUNS) -> None:
        """Raises ValueError for a negative budget."""
        if budget_bytes < 0 or warm_runs < 0:
            raise ValueError(f"budget_bytes, warm_runs: must not be negative, are {budget_bytes} and {warm_runs}")
        self.budget_bytes = budget_bytes
        self._warm_runs = warm_runs
        self._chains: dict[Key, _Chain] = {}
        self._runs: dict[Key, int] = {}
        self._never: set[Key] = set()
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
        if key in self._never or self._capturing is not None or not self.budget_bytes:
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

    def captured(self, key: Key, size_bytes: Bytes, now: Nanoseconds) -> list[Key]:
        """All segments of the key are captured, and leased to the batch that did it. Which chains are to be let go of.

        The key itself is among them where it does not fit beside what is leased: then it is never captured again, and the
        caller lets go of it once its batch has ended.
        """
        self._expect(key)
        self._capturing = None
        room = self.budget_bytes - sum(each.size_bytes for each in self._chains.values() if each.leased)
        if size_bytes > room:
            self._never.add(key)
            self._counts[3] += 1
            return [key]
        gone = list(self._victims(self.size_bytes + size_bytes - self.budget_bytes))
        for each in gone:
            self._drop(each)
        self._counts[1] += 1
        self._counts[2] += len(gone)
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

    def end(self, key: Key) -> None:
        """The batch that had the chain's lease is over. ValueError where it had none."""
        chain = self._chains.get(key)
        if chain is None or not chain.leased:
            raise ValueError(f"{key} is not leased")
        chain.leased = False

    def forget(self, model: int) -> list[Key]:
        """The model goes: the chains to be let go of."""
        gone = [key for key in self._chains if key.model == model]
        for key in gone:
            self._drop(key)
        self._runs = {key: runs for key, runs in self._runs.items() if key.model != model}
        self._never = {key for key in self._never if key.model != model}
        return gone

    def snapshot(self) -> Snapshot:
        """How things stand."""
        return Snapshot(len(self._chains), self.size_bytes, *self._counts)

    def check_invariants(self) -> None:
        """Raises AssertionError unless sizes add up and fit."""
        total = sum(each.size_bytes for each in self._chains.values())
        if total != self.size_bytes or total > self.budget_bytes:
            raise AssertionError(f"{self.size_bytes} bytes counted, {total} there, {self.budget_bytes} allowed")
        if self._capturing in self._chains or self._never & set(self._chains):
            raise AssertionError("a chain is captured twice, or never and yet")

    def _victims(self, needed: Bytes) -> Iterator[Key]:
        """Those that have gone unused for longest, of the rest the least used."""
        free = [(each.used_at, each.uses, key) for key, each in self._chains.items() if not each.leased]
        for _, _, key in sorted(free):
            if needed <= 0:
                return
            needed -= self._chains[key].size_bytes
            yield key

    def _drop(self, key: Key) -> None:
        self.size_bytes -= self._chains.pop(key).size_bytes

    def _expect(self, key: Key) -> None:
        if self._capturing != key:
            raise ValueError(f"{key} is not being captured; {self._capturing} is")
