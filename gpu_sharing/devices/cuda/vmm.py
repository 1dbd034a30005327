"""Device memory whose addresses stay while what is behind them comes and goes: so that graphs survive an eviction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpu_sharing.devices.cuda.driver import Driver, Handle, call
from gpu_sharing.devices.cuda.errors import CudaError
from gpu_sharing.units import Bytes


@dataclass(eq=False)
class Range:
    """Addresses that are nobody else's. handle: the memory behind them; None: there is none, and whoever touches them faults."""

    address: int
    size_bytes: Bytes
    handle: Handle | None = None


class Ranges:
    """Reserves, fills and empties ranges of one device. Whoever empties one makes sure that nothing on the device uses it."""

    def __init__(self, driver: Driver, ordinal: int) -> None:
        """A context must be current on the thread, here and in every call. CudaError where the device cannot do this."""
        self._driver = driver
        location, access = driver.CUmemAllocationProp(), driver.CUmemAccessDesc()
        location.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        for each in (location.location, access.location):
            each.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
            each.id = ordinal
        access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        self._location, self._access = location, access
        kind = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
        self.granule_bytes: Bytes = int(self._do("cuMemGetAllocationGranularity", location, kind))
        self._ranges: list[Range] = []

    @property
    def filled_bytes(self) -> Bytes:
        """Memory behind ranges now."""
        return sum(each.size_bytes for each in self._ranges if each.handle is not None)

    def reserve(self, size_bytes: Bytes) -> Range:
        """Addresses for at least so much, rounded up to whole granules, without memory. ValueError for nothing."""
        if size_bytes <= 0:
            raise ValueError(f"size_bytes: must be positive, is {size_bytes}")
        size = -(-size_bytes // self.granule_bytes) * self.granule_bytes
        made = Range(int(self._do("cuMemAddressReserve", size, 0, 0, 0)), size)
        self._ranges.append(made)
        return made

    def fill(self, held: Range, *, wiped_on: Handle | None = None) -> None:
        """Puts memory behind the range. CudaError, leaving it empty, where there is none. Does nothing where it is filled.

        wiped_on: a stream that zeroes it first: what another tenant left in it must not be read.
        """
        if held.handle is not None:
            return
        handle = self._do("cuMemCreate", held.size_bytes, self._location, 0)
        try:
            self._do("cuMemMap", held.address, held.size_bytes, 0, handle, 0)
        except CudaError:
            self._do("cuMemRelease", handle)
            raise
        held.handle = handle
        try:
            self._do("cuMemSetAccess", held.address, held.size_bytes, [self._access], 1)
            if wiped_on is not None:
                self._do("cuMemsetD8Async", held.address, 0, held.size_bytes, wiped_on)
        except CudaError:
            self.empty(held)
            raise

    def empty(self, held: Range) -> None:
        """Takes the memory away and gives it back to the device; the addresses stay. Does nothing where it is empty."""
        handle, held.handle = held.handle, None
        if handle is None:
            return
        self._do("cuMemUnmap", held.address, held.size_bytes)
        self._do("cuMemRelease", handle)

    def free(self, held: Range) -> None:
        """Gives the addresses back, too. ValueError for a range that is not one of these."""
        if held not in self._ranges:
            raise ValueError(f"the range at {held.address:#x} is not reserved")
        self.empty(held)
        self._ranges.remove(held)
        self._do("cuMemAddressFree", held.address, held.size_bytes)

    def close(self) -> None:
        """Frees all."""
        for held in list(self._ranges):
            self.free(held)

    def _do(self, name: str, *arguments: Any) -> Any:
        return call(self._driver, name, *arguments)
