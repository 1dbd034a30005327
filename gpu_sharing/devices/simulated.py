"""A device that is not there: for what plans and reports on devices without touching one."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_sharing.partitioning.partitions import Partitions
from gpu_sharing.units import Bytes, ComputeUnits, GiB


class SimulatedDevice:
    """As many compute units and as much memory as it is given. Profiles measured on it hold for its name alone."""

    backend = "simulated"

    def __init__(
        self, name: str = "device", *, compute_units: ComputeUnits = 1, memory_bytes: Bytes = 16 * GiB
    ) -> None:
        """Raises ValueError for a device without a compute unit, or with less than no memory."""
        if compute_units < 1:
            raise ValueError(f"compute_units: must be at least 1, is {compute_units}")
        if memory_bytes < 0:
            raise ValueError(f"memory_bytes: must not be negative, is {memory_bytes}")
        self.device_kind = f"simulated:{name}"
        self.compute_units = compute_units
        self.memory_bytes = memory_bytes
        self.reason = "simulated on request"
        self.occupied: tuple[int, ...] = ()

    def units(self) -> Sequence[int]:
        """From 0."""
        return range(self.compute_units)

    def fitted(self, partitions: Partitions) -> Partitions:
        """Units come one by one: as they are."""
        return partitions

    def occupy(self, units: Sequence[int]) -> None:
        """Notes that these compute units are the process's. ValueError for units that it does not have."""
        missing = sorted(set(units) - set(self.units()))
        if missing or not units:
            raise ValueError(f"units: {missing or 'none'} given; there are {list(self.units())}")
        self.occupied = tuple(sorted(units))
