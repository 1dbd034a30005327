"""What a device is to the rest of the system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NewType, Protocol

from gpu_sharing.partitioning.partitions import Partitions
from gpu_sharing.units import Bytes, ComputeUnits, Nanoseconds

Mark = NewType("Mark", int)
"""A segment that has been launched, by its number on its stream."""


class Device(Protocol):
    """One device, seen from a process that may use it. Profiles hold for equal `device_kind`s.

    device_kind: the hardware, such as "cpu:AMD EPYC".
    backend: how lanes are kept apart on it: "cpu", "cuda_green" and others of devices.cuda.survey.
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

    def fitted(self, partitions: Partitions) -> Partitions:
        """The layouts nearest to these that the device can have. LayoutInvalid where it can have none of that shape."""
        ...

    def occupy(self, units: Sequence[int]) -> None:
        """Confines this process to these compute units. OSError where the system refuses."""
        ...


class LaneStream(Protocol):
    """Where a lane launches segments that run by themselves, in order. One thread.

    ahead: how many may be launched and not ended.
    """

    ahead: int

    @property
    def out(self) -> int:
        """How many are."""
        ...

    def begin(self) -> None:
        """A segment is launched next. RuntimeError where `ahead` are out."""
        ...

    def end(self) -> Mark:
        """It has been launched."""
        ...

    def drop(self) -> None:
        """It could not be launched whole; returns once what was launched of it has ended. Nothing happens where none was begun."""
        ...

    def wait(self) -> tuple[Mark, Nanoseconds]:
        """Waits for the oldest that is out: its mark, and how long the device took. IndexError where none is."""
        ...
