"""Units. Every quantity that is not obvious bears one of these, in its type or its name."""

from __future__ import annotations

from typing import TypeAlias

Nanoseconds: TypeAlias = int
"""A duration, or a moment of the machine's monotonic clock, which all processes of one machine share."""

Bytes: TypeAlias = int

ComputeUnits: TypeAlias = int
"""What a partition is counted in: SMs on a GPU, cores on a CPU."""

Millidevices: TypeAlias = int
"""Thousandths of a device: how reservations and bandwidths are written, so that sums are exact."""

US: Nanoseconds = 1_000
MS: Nanoseconds = 1_000_000
SECOND: Nanoseconds = 1_000_000_000
MiB: Bytes = 1 << 20
GiB: Bytes = 1 << 30
