"""Where a worker's lane sits on a device that computes by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpu_sharing.devices.base import LaneStream
from gpu_sharing.devices.regions import DeviceRegions
from gpu_sharing.memory.accounts import Accounts
from gpu_sharing.memory.berths import Space
from gpu_sharing.runtimes.base import Runtime
from gpu_sharing.runtimes.python_place import PlaceFor
from gpu_sharing.units import Bytes


@dataclass(frozen=True, slots=True)
class Seat:
    """stream: of the lane. runtime_for: runtimes whose models run on it; None: the registered ones.

    enter_lane, enter_loader: called first on the lane's thread and on those that load, to make its streams their current ones.
    place_for: where operators' Python code computes; None: on the processor.
    threads: of the processor, that one segment may use. settle: waits until what the calling thread has launched has ended.
    regions: what opens memory that other processes share; None: nothing does.
    close: once the lane's thread has ended. accounts: tenants' pools on the device; None: it has none. space: where so many bytes of weights wait on the host; None: they stay on the device.
    """

    stream: LaneStream
    enter_lane: Callable[[], None] = lambda: None
    enter_loader: Callable[[], None] = lambda: None
    runtime_for: Callable[[str], Runtime] | None = None
    place_for: PlaceFor | None = None
    threads: int = 1
    settle: Callable[[], None] = lambda: None
    close: Callable[[], None] = lambda: None
    accounts: Accounts | None = None
    space: Callable[[Bytes], Space] | None = None
    regions: DeviceRegions | None = None
