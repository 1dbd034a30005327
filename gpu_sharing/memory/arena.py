"""Memory that two processes share by a file descriptor: one allocates and writes, the other only reads.

The memory is a memfd: it has no name, so nothing of it is left when its processes are gone, however they went. It is
sparse: pages without data take no memory. It is sealed against resizing, so that neither side can make the other fault.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os

from gpu_sharing.memory.extents import Extents
from gpu_sharing.memory.owners import PageOwners
from gpu_sharing.units import Bytes, MiB

WARM_BYTES: Bytes = 256 * MiB
"""Freed pages below this offset stay, ready for the next request; those above go back to the system at once."""
ROUND = 2048
"""So many allocations later, pages that none of them has needed go back too: a moment of many requests leaves nothing behind."""


class ArenaView:
    """The other side's mapping of an arena. view: its bytes, read-only unless `writable`."""

    def __init__(self, fd: int, capacity_bytes: Bytes, *, writable: bool = False) -> None:
        """Maps the arena and keeps `fd` to itself. OSError where the descriptor cannot be mapped so."""
        self.fd = fd
        self.capacity_bytes = capacity_bytes
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = mmap.mmap(fd, capacity_bytes, flags=mmap.MAP_SHARED, prot=access)
        self.view = memoryview(self._map)

    def close(self) -> None:
        """Lets go of descriptor and mapping; memory that views still refer to stays mapped until they are gone."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        try:
            self.view.release()
            self._map.close()
        except BufferError:
            # Someone still reads: the mapping goes with the last view.
            pass


class Arena(ArenaView):
    """The owner's side: `allocate` and `free` extents of `view`, which may be written. One thread at a time."""

    def __init__(self, fd: int, capacity_bytes: Bytes) -> None:
        """Takes over an arena that another process created and gave up. Most want `Arena.create`."""
        super().__init__(fd, capacity_bytes, writable=True)
        self._extents = Extents(capacity_bytes)
        self._owners = PageOwners(capacity_bytes)
        self._numbers: dict[str, int] = {}
        self._allocations = 0
        self._needed_bytes = self._kept_bytes = 0
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    @classmethod
    def create(cls, capacity_bytes: Bytes, name: str = "arena") -> Arena:
        """A new arena of a whole number of pages. OSError where the system refuses the memory."""
        return cls(create_memory(capacity_bytes, name), capacity_bytes)

    @property
    def used_bytes(self) -> Bytes:
        """What is allocated, alignment included."""
        return self._extents.used_bytes

    @property
    def largest_free_bytes(self) -> Bytes:
        """The longest extent that could be allocated now."""
        return self._extents.largest_free_bytes

    def owner(self, name: str) -> int:
        """The number that stands for this owner in `allocate`."""
        return self._numbers.setdefault(name, len(self._numbers) + 1)

    def allocate(self, length_bytes: Bytes, owner: int = 1) -> int | None:
        """The offset of at least that many bytes, a multiple of 64; None where the arena has no such extent free.

        owner: who it is for, as `owner` tells; what anybody else may have left there is wiped.
        """
        offset = self._extents.allocate(length_bytes)
        if offset is None:
            return None
        taken_bytes = self._extents.length_bytes(offset)
        self._note(offset + taken_bytes)
        if self._owners.take(offset, taken_bytes, owner):
            ctypes.memset(self._address + offset, 0, taken_bytes)
        return offset

    def free(self, offset: int) -> None:
        """Gives an extent back. KeyError where nothing is allocated there."""
        length_bytes = self._extents.free(offset)
        start = max(WARM_BYTES, -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE)
        end = (offset + length_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if start < end:
            self._map.madvise(mmap.MADV_REMOVE, start, end - start)
            self._owners.clean(start, end - start)

    def _note(self, end: int) -> None:
        """Notes how far up pages are needed, and once a round gives back those above."""
        self._needed_bytes = max(self._needed_bytes, end)
        self._kept_bytes = max(self._kept_bytes, end)
        self._allocations += 1
        if self._allocations % ROUND:
            return
        needed = -(-max(self._needed_bytes, self._extents.end_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        kept = -(-self._kept_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        if needed < kept:
            self._map.madvise(mmap.MADV_REMOVE, needed, kept - needed)
            self._owners.clean(needed, kept - needed)
        self._needed_bytes, self._kept_bytes = 0, needed

    def close(self) -> None:
        """See `ArenaView.close`; nothing may be allocated any more."""
        self._address = 0
        super().close()

    def check_invariants(self) -> None:
        """Raises AssertionError where the books do not add up."""
        self._extents.check_invariants()


def create_memory(capacity_bytes: Bytes, name: str) -> int:
    """A descriptor of new, sparse, unnamed memory that can never be resized. ValueError unless it is whole pages."""
    if capacity_bytes <= 0 or capacity_bytes % mmap.PAGESIZE:
        raise ValueError(f"capacity_bytes: must be a positive multiple of {mmap.PAGESIZE}, is {capacity_bytes}")
    fd = os.memfd_create(f"apportion-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, capacity_bytes)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def read_only(fd: int) -> int:
    """A second descriptor of the same memory, through which it cannot be written."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
