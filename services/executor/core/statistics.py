"""What has become of requests, counted by version where they run: over all replicas of this executor and their reloads."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from gpu_sharing.measurements import Batch
from gpu_sharing.units import Nanoseconds

MOST_SIZES = 256
"""Sizes of batches that are told apart, a version; further ones are counted in the totals alone."""

MOST_VERSIONS = 512
"""Versions whose counts are kept, beyond those that are loaded."""


@dataclass(slots=True)
class Size:
    """Batches of one size. compute_ns: a batch once; the others are sums over its requests."""

    batches: int = 0
    compute_ns: Nanoseconds = 0
    decode_ns: Nanoseconds = 0
    encode_ns: Nanoseconds = 0


@dataclass(slots=True)
class Counts:
    """Of one version. last_arrived: on the monotonic clock; 0: nothing has arrived."""

    rows: int = 0
    batches: int = 0
    answered: int = 0
    answered_ns: Nanoseconds = 0
    failed: int = 0
    failed_ns: Nanoseconds = 0
    decode_ns: Nanoseconds = 0
    queue_ns: Nanoseconds = 0
    compute_ns: Nanoseconds = 0
    encode_ns: Nanoseconds = 0
    last_arrived: Nanoseconds = 0
    sizes: dict[int, Size] = field(default_factory=dict)
    last_batch: dict[int, tuple[int, Nanoseconds]] = field(default_factory=dict)
    """By lane, the batch that was counted last: its number and start. A batch's requests are told together."""

    def succeeded(self, batch: Batch, rows: int, arrived: Nanoseconds, handed: Nanoseconds, now: Nanoseconds) -> None:
        """Counts a request of `rows` rows that was answered."""
        self.rows += rows
        self.answered += 1
        self.answered_ns += now - arrived
        self._ran(batch, arrived, handed, now)

    def refused(self, batch: Batch | None, arrived: Nanoseconds, handed: Nanoseconds, now: Nanoseconds) -> None:
        """Counts a request that was refused, dropped or broken; batch: the one that it broke in, if it came so far."""
        self.failed += 1
        self.failed_ns += now - arrived
        if batch is not None:
            self._ran(batch, arrived, handed, now)
        else:
            self.last_arrived = arrived

    def _ran(self, batch: Batch, arrived: Nanoseconds, handed: Nanoseconds, now: Nanoseconds) -> None:
        self.last_arrived = arrived
        compute_ns = max(0, batch.ended - batch.started)
        decode_ns, encode_ns = handed - arrived, max(0, now - batch.ended)
        self.decode_ns += decode_ns
        self.queue_ns += max(0, batch.started - handed)
        self.compute_ns += compute_ns
        self.encode_ns += encode_ns
        size = self.sizes.get(batch.rows)
        if size is None:
            size = Size()
            if len(self.sizes) < MOST_SIZES:
                self.sizes[batch.rows] = size
        this = (batch.number, batch.started)
        if self.last_batch.get(batch.lane) != this:
            self.last_batch[batch.lane] = this
            self.batches += 1
            size.batches += 1
            size.compute_ns += compute_ns
        size.decode_ns += decode_ns
        size.encode_ns += encode_ns


class StatisticsLedger:
    """Counts by (tenant, model, version). A version that has left keeps its counts, so that they do not shrink; of very many
    that have left, those that came first are forgotten."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str, int], Counts] = {}

    def of(self, tenant: str, model: str, version: int) -> Counts:
        """The version's counts."""
        counts = self.counts[tenant, model, version] = self.counts.pop((tenant, model, version), Counts())
        return counts

    def trim(self, loaded: Collection[tuple[str, str, int]]) -> None:
        """Forgets versions that are not loaded, those first that were loaded longest ago, where there are too many."""
        for key in [key for key in self.counts if key not in loaded][
            : max(0, len(self.counts) - len(loaded) - MOST_VERSIONS)
        ]:
            del self.counts[key]

    def find(self, tenant: str, model: str) -> list[tuple[str, int, Counts]]:
        """(model, version, counts) of a tenant's versions, in order; of one model, unless its name is empty."""
        return sorted(
            (
                (name, version, counts)
                for (owner, name, version), counts in self.counts.items()
                if owner == tenant and model in ("", name)
            ),
            key=lambda found: found[:2],
        )
