"""Exponential histograms, as OpenTelemetry has them, of times in seconds: which bucket, and what a quantile is then.

Bucket i holds (base^i, base^(i+1)] seconds with base = 2^(2^-SCALE): a value read from it is within 2.2 % of the true one.
Source: OpenTelemetry's metrics data model, "ExponentialHistogram".
"""

from __future__ import annotations

import math
from collections.abc import Mapping

SCALE = 4
PER_OCTAVE = 1 << SCALE
LEAST, MOST = -30 * PER_OCTAVE, 30 * PER_OCTAVE
"""Indices from about a nanosecond to about 34 years: what lies beyond counts as these."""
_SECOND_OCTAVES = math.log2(1e9)


def index_of(nanoseconds: int) -> int:
    """The bucket of a time."""
    octaves = math.log2(nanoseconds if nanoseconds > 0 else 1) - _SECOND_OCTAVES
    return math.ceil(octaves * PER_OCTAVE) - 1


def upper_s(index: int) -> float:
    """The greatest time in a bucket, in seconds."""
    return 2.0 ** ((index + 1) / PER_OCTAVE)


def quantile_s(buckets: Mapping[int, int], quantile: float) -> float | None:
    """The quantile in seconds, on a geometric line through its bucket; None where nothing was counted."""
    total = sum(buckets.values())
    if not total:
        return None
    rank, below = quantile * total, 0
    for index in sorted(buckets):
        count = buckets[index]
        if count and below + count >= rank:
            part = min(1.0, max(0.0, (rank - below) / count))
            return 2.0 ** ((index + part) / PER_OCTAVE)
        below += count
    return upper_s(max(buckets))


def rescaled(buckets: Mapping[int, int], scale: int) -> dict[int, int]:
    """Buckets of a finer scale as ours, kept within LEAST and MOST. Raises ValueError for a coarser one."""
    if scale < SCALE:
        raise ValueError(f"scale: {scale} is coarser than {SCALE}")
    made: dict[int, int] = {}
    for index, count in buckets.items():
        place = min(MOST, max(LEAST, index >> (scale - SCALE)))
        made[place] = made.get(place, 0) + count
    return made
