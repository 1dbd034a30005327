"""What a device is to the rest of the system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gpu_sharing.units import Bytes, ComputeUnits


class Device(Protocol):
    """One device, seen from a process that may use it. Profiles hold for equal `device_kind`s.

    device_kind: the hardware, such as "cpu:AMD EPYC".
    backend: how lanes are kept apart on it: "cpu".
    compute_units: how many it has in all.
    memory_bytes: what models may take together.
    reason: why this backend, for people.
    """

    @property
    def device_kind(self) -> str: ...

    @property
    def backend(self) -> str: ...

    @property
    def compute_units(self) -> ComputeUnits: ...

    @property
    def memory_bytes(self) -> Bytes: ...

    @property
    def reason(self) -> str: ...

    def units(self) -> Sequence[int]:
        """The numbers by which a layout names its compute units, ascending."""
        ...

    def occupy(self, units: Sequence[int]) -> None:
        """Confines this process to these compute units. OSError where the system refuses."""
        ...
