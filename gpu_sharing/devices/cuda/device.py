"""A CUDA device as the rest of the system sees one."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_sharing.devices.cuda.driver import Driver
from gpu_sharing.devices.cuda.lanes import CudaLanes
from gpu_sharing.devices.cuda.survey import Choice, Facts
from gpu_sharing.partitioning.layout import LayoutInvalid
from gpu_sharing.partitioning.partitions import Partitions
from gpu_sharing.units import Bytes, ComputeUnits


class CudaDevice:
    """Streaming multiprocessors (SMs) are its compute units; a layout counts them, and gets whole groups.

    facts: what the driver says. Making one makes no context: an executor may, and its workers do all the work.
    """

    def __init__(self, facts: Facts, choice: Choice) -> None:
        """choice: one of the ways that serve on CUDA."""
        self.facts = facts
        self.backend = choice.backend
        self.reason = choice.reason
        self.device_kind = f"cuda:{facts.name}"
        self.memory_bytes: Bytes = facts.memory_bytes
        self.occupied: tuple[int, ...] = ()
        self._groups = facts.groups if choice.backend == "cuda_green" else None

    @property
    def compute_units(self) -> ComputeUnits:
        """SMs that lanes can have."""
        return self.facts.sms if self._groups is None else self._groups.units

    def units(self) -> Sequence[int]:
        """Places of SMs, from 0: which SMs the driver puts there is its choice."""
        return range(self.compute_units)

    def fitted(self, partitions: Partitions) -> Partitions:
        """The layouts in whole groups of SMs. LayoutInvalid where lanes cannot be kept apart so, or a lane has no group."""
        if self._groups is not None:
            return self._groups.fitted(partitions)
        if self.backend != "cuda_mps" and any(len(layout) > 1 for layout in partitions.layouts):
            raise LayoutInvalid(f"layouts: one lane is all there can be: {self.reason}")
        return partitions

    def occupy(self, units: Sequence[int]) -> None:
        """Notes what the process's lanes use. ValueError for SMs that the device does not have."""
        missing = sorted(set(units) - set(self.units()))
        if missing or not units:
            raise ValueError(f"SMs: {missing or 'none'} given; places 0 to {self.compute_units - 1} are there")
        self.occupied = tuple(sorted(units))

    def lanes(self, driver: Driver, partitions: Partitions) -> CudaLanes:
        """Makes the lanes of all layouts: in a worker, once. CudaError, LayoutInvalid."""
        return CudaLanes(driver, partitions, ordinal=self.facts.ordinal, groups=self._groups)
