"""What executors counted, added up: every frontend that asks them gets the same sums."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Duration(msgspec.Struct):
    """How many, and their time in all."""

    count: int = 0
    ns: int = 0

    def add(self, count: int, ns: int) -> None:
        """Adds that many more."""
        self.count += count
        self.ns += ns


class Size(msgspec.Struct):
    """Batches of one size."""

    batches: int = 0
    decode_ns: int = 0
    compute_ns: int = 0
    encode_ns: int = 0


class Counted(msgspec.Struct):
    """One version's counts. rows: that were answered. success, fail: requests, and their time at executors. ran: requests that
    came into a batch, whose stages the other times are."""

    model: str
    version: int
    rows: int = 0
    batches: int = 0
    success: Duration = msgspec.field(default_factory=Duration)
    fail: Duration = msgspec.field(default_factory=Duration)
    queue_ns: int = 0
    decode_ns: int = 0
    compute_ns: int = 0
    encode_ns: int = 0
    last_arrival_ms: int = 0
    sizes: dict[int, Size] = {}

    def merge(self, other: Counted) -> None:
        """Adds another executor's counts of the same version."""
        self.rows += other.rows
        self.batches += other.batches
        self.success.add(other.success.count, other.success.ns)
        self.fail.add(other.fail.count, other.fail.ns)
        self.queue_ns += other.queue_ns
        self.decode_ns += other.decode_ns
        self.compute_ns += other.compute_ns
        self.encode_ns += other.encode_ns
        self.last_arrival_ms = max(self.last_arrival_ms, other.last_arrival_ms)
        for rows, size in other.sizes.items():
            mine = self.sizes.setdefault(rows, Size())
            mine.batches += size.batches
            mine.decode_ns += size.decode_ns
            mine.compute_ns += size.compute_ns
            mine.encode_ns += size.encode_ns


def summed(told: Iterable[Counted], known: Iterable[tuple[str, int]]) -> list[Counted]:
    """The sums by model and version, in that order: of the versions that are `known`, those without any count as zeros."""
    sums = {key: Counted(*key) for key in sorted(known)}
    for counted in told:
        total = sums.get((counted.model, counted.version))
        if total is not None:
            total.merge(counted)
    return list(sums.values())
