"""Which bytes of a capacity are taken: a first-fit allocator over extents. PURE."""

from __future__ import annotations

import bisect

from gpu_sharing.units import Bytes

ALIGNMENT_BYTES: Bytes = 64
"""A cache line, and what vector loads and DLPack consumers ask for."""


class Extents:
    """Hands out aligned extents of [0, capacity_bytes), lowest address first.

    Lowest first keeps the same few pages warm, and leaves the rest of a sparse capacity without memory behind it.
    Free neighbours are joined at once, so that what has been freed can be allocated as one.
    """

    def __init__(self, capacity_bytes: Bytes) -> None:
        """Raises ValueError for a capacity that is not a positive multiple of 64 bytes."""
        if capacity_bytes <= 0 or capacity_bytes % ALIGNMENT_BYTES:
            raise ValueError(f"capacity_bytes: must be a positive multiple of {ALIGNMENT_BYTES}, is {capacity_bytes}")
        self.capacity_bytes = capacity_bytes
        self._free_offsets: list[Bytes] = [0]
        self._free_bytes: dict[Bytes, Bytes] = {0: capacity_bytes}
        self._taken_bytes: dict[Bytes, Bytes] = {}
        self._used_bytes: Bytes = 0

    @property
    def used_bytes(self) -> Bytes:
        """What is taken, alignment included."""
        return self._used_bytes

    @property
    def largest_free_bytes(self) -> Bytes:
        """The longest extent that could be allocated now."""
        return max(self._free_bytes.values(), default=0)

    @property
    def end_bytes(self) -> Bytes:
        """Where the highest of what is taken ends."""
        return max((offset + length for offset, length in self._taken_bytes.items()), default=0)

    def allocate(self, length_bytes: Bytes) -> Bytes | None:
        """The offset of an extent of at least that length; None where none is free. ValueError for a negative length."""
        if length_bytes < 0:
            raise ValueError(f"length_bytes: must not be negative, is {length_bytes}")
        length = max(ALIGNMENT_BYTES, -(-length_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
        place = next((at for at, free in enumerate(self._free_offsets) if self._free_bytes[free] >= length), None)
        if place is None:
            return None
        offset = self._free_offsets[place]
        available = self._free_bytes.pop(offset)
        if available == length:
            del self._free_offsets[place]
        else:
            self._free_offsets[place] = offset + length
            self._free_bytes[offset + length] = available - length
        self._taken_bytes[offset] = length
        self._used_bytes += length
        return offset

    def length_bytes(self, offset: Bytes) -> Bytes:
        """How long the extent is that `allocate` returned, alignment included. KeyError where nothing is allocated there."""
        return self._taken_bytes[offset]

    def free(self, offset: Bytes) -> Bytes:
        """Gives back what `allocate` returned, and says how long it was. KeyError where nothing is allocated there."""
        length = self._taken_bytes.pop(offset)
        self._used_bytes -= length
        place = bisect.bisect_left(self._free_offsets, offset)
        joined = length
        after = offset + length
        if after in self._free_bytes:
            joined += self._free_bytes.pop(after)
            del self._free_offsets[place]
        if place and (before := self._free_offsets[place - 1]) + self._free_bytes[before] == offset:
            self._free_bytes[before] += joined
        else:
            self._free_offsets.insert(place, offset)
            self._free_bytes[offset] = joined
        return length

    def check_invariants(self) -> None:
        """Raises AssertionError unless taken and free extents tile the capacity, aligned, with no free neighbours."""
        free = [(offset, self._free_bytes[offset], True) for offset in self._free_offsets]
        tiles = sorted([*free, *((offset, length, False) for offset, length in self._taken_bytes.items())])
        position, was_free = 0, False
        for offset, length, is_free in tiles:
            if offset != position or length <= 0 or length % ALIGNMENT_BYTES:
                raise AssertionError(f"extent at {offset} of {length} bytes, expected one at {position}: {tiles}")
            if is_free and was_free:
                raise AssertionError(f"free neighbours were not joined at {offset}: {tiles}")
            position, was_free = offset + length, is_free
        if position != self.capacity_bytes or len(self._free_bytes) != len(self._free_offsets):
            raise AssertionError(f"the extents end at {position}, not at {self.capacity_bytes}: {tiles}")
        if self._used_bytes != sum(self._taken_bytes.values()):
            raise AssertionError(f"{self._used_bytes} bytes counted as used, {sum(self._taken_bytes.values())} are")
