"""Weights by segment: how they lie side by side, and how many of them must be there before the first segment starts. PURE."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpu_sharing.units import Bytes, MiB, Nanoseconds

ALIGNMENT: Bytes = 256
"""Of each tensor, as cudaMalloc gives it."""
PIECE: Bytes = 16 * MiB
"""What is copied at once, at most: so that progress is seen."""


@dataclass(frozen=True)
class Layout:
    """size_bytes: of all weights, in the order in which segments need them. upto: by segment, the end of the last that it needs.

    upto never falls: what an earlier segment needs is there for a later one.
    """

    size_bytes: Bytes
    upto: tuple[Bytes, ...]

    def pieces(self, size_bytes: Bytes | None = None) -> Iterator[tuple[Bytes, Bytes]]:
        """(offset, length) of what to copy, in order: cut where a segment has all that it needs, and at PIECE.

        size_bytes: of the memory behind it, which may be longer; it is written to its end.
        """
        end = self.size_bytes if size_bytes is None else size_bytes
        edges = sorted({0, *self.upto, end})
        for low, high in itertools.pairwise(edges):
            for offset in range(low, high, PIECE):
                yield offset, min(PIECE, high - offset)

    def needed(self, segment: int) -> Bytes:
        """How much must be there before this segment runs. Beyond the last: everything."""
        return self.upto[segment] if segment < len(self.upto) else self.size_bytes


def placed(lengths: Sequence[Bytes]) -> tuple[tuple[Bytes, ...], Bytes]:
    """Offsets of tensors of these lengths side by side, each aligned; and where the last ends, aligned."""
    offsets, position = [], 0
    for length in lengths:
        offsets.append(position)
        position += -(-length // ALIGNMENT) * ALIGNMENT
    return tuple(offsets), position


def start_after(layout: Layout, segments_ns: Sequence[Nanoseconds], ns_per_byte: float) -> Bytes:
    """How much must be there so that, from then on, no segment waits: each has all it needs when those before it have run.

    Starting earlier would end no earlier, and the lane would wait meanwhile, with everybody else on it. segments_ns: what each
    takes, the least; where it is not known for each, everything must be there.
    """
    if len(segments_ns) != len(layout.upto):
        return layout.size_bytes
    needed, passed = layout.needed(0), 0
    for upto, took in zip(layout.upto, segments_ns, strict=True):
        ahead = int(passed / ns_per_byte) if ns_per_byte > 0 else layout.size_bytes
        needed = max(needed, upto - ahead)
        passed += took
    return min(needed, layout.size_bytes)
