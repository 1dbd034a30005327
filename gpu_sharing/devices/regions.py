"""Memory of other processes that requests' tensors may lie in: what a worker needs of whoever opens it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gpu_sharing.units import Bytes

HANDLE_BYTES: Bytes = 64
"""Of a cudaIpcMemHandle_t."""


class RegionRefused(Exception):
    """Memory that cannot be opened, or not be read or written any more. The message is for the caller.

    reason: FIELD_INVALID, UNSUPPORTED or OUT_OF_MEMORY.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


ABSENT = "is of no memory that can be opened here"
"""All that is said of a handle that is nobody's, another tenant's, or of another device: nobody can tell which."""


def absent() -> RegionRefused:
    """The refusal of such a handle."""
    return RegionRefused("FIELD_INVALID", ABSENT)


@dataclass(frozen=True, slots=True)
class Opened:
    """Memory that is open. identity: equal for two handles of the same memory. where: the opener's own. size_bytes: of all of it."""

    identity: Hashable
    where: Any
    size_bytes: Bytes


class DeviceRegions(Protocol):
    """Opens, reads and writes memory of other processes. `open` and `close` are called by one thread, the rest by the lane's."""

    def open(self, handle: bytes) -> Opened:
        """The memory that a handle of HANDLE_BYTES is of. Raises RegionRefused, leaving nothing open."""
        ...

    def close(self, opened: Opened) -> None:
        """Lets go of it, once what the lane has launched has ended."""
        ...

    def read(self, opened: Opened, offset: Bytes, into: np.ndarray) -> None:
        """Fills an array of bytes; returns when it is there. Raises RegionRefused."""
        ...

    def write(self, opened: Opened, offset: Bytes, content: np.ndarray) -> None:
        """Writes an array of bytes; returns when it is there. Raises RegionRefused."""
        ...

    def lent(self, opened: Opened, offset: Bytes, length_bytes: Bytes) -> object | None:
        """The same bytes as something that torch copies from on the device; None: there is no such thing."""
        ...

    def stop(self) -> None:
        """Nothing is read or written any more, and all is closed."""
        ...
