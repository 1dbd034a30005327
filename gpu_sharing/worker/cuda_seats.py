"""Seats for lanes on a CUDA device: its streams, its graphs and its runtimes."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpu_sharing.devices.cuda.device import CudaDevice
from gpu_sharing.devices.cuda.driver import Driver, call, load
from gpu_sharing.devices.cuda.lanes import CudaLane
from gpu_sharing.devices.cuda.regions import CudaRegions
from gpu_sharing.devices.cuda.space import CudaSpace
from gpu_sharing.devices.cuda.stream import AHEAD, CudaStream
from gpu_sharing.memory.accounts import Accounts
from gpu_sharing.memory.capped import Budget, MakeBudget
from gpu_sharing.memory.grants import Grants
from gpu_sharing.partitioning.partitions import Partitions
from gpu_sharing.runtimes.base import ArtefactRefused, Runtime
from gpu_sharing.runtimes.registry import RUNTIMES
from gpu_sharing.units import Bytes, GiB
from gpu_sharing.worker.seat import Seat

if TYPE_CHECKING:
    from gpu_sharing.runtimes.python_place import Place
    from gpu_sharing.runtimes.torch_cuda import GraphsOf
    from gpu_sharing.runtimes.torch_place import Backend


class CudaSeats:
    """The lanes of a device, made once in this process; a seat for whoever opens one. torch is imported with the first.

    lanes: as prepared, and what that cost.
    """

    def __init__(
        self,
        device: CudaDevice,
        partitions: Partitions,
        *,
        driver: Driver | None = None,
        graph_bytes: Bytes = GiB,
        ahead: int = AHEAD,
    ) -> None:
        """CudaError where the driver refuses the layouts."""
        self._driver = load() if driver is None else driver
        call(self._driver, "cuInit", 0)
        self._device, self._graph_bytes, self._ahead = device, graph_bytes, ahead
        self.lanes = device.lanes(self._driver, partitions)
        self._spaces: dict[int, CudaSpace] = {}

    def seat(self, number: int) -> Seat:
        """Of the lane of that number. KeyError where there is none."""
        from gpu_sharing.runtimes.torch_cuda import LaneGraphs
        from gpu_sharing.runtimes.torch_place import CudaBackend

        lane, ordinal = self.lanes.lanes[number], self._device.facts.ordinal
        stream = CudaStream(self._driver, lane.compute, self.lanes.primary, ahead=self._ahead)
        backend = CudaBackend(int(lane.compute), int(lane.loading), sms=lane.sms, ordinal=ordinal)
        accounts = Accounts(budgets_on(backend, int(lane.loading)), Grants(self._graph_bytes), reclaim=backend.reclaim)
        graphs_of = LaneGraphs(backend, accounts, partition=number)
        limit_bytes = self._lane_bytes()
        return Seat(
            stream,
            enter_lane=backend.enter_lane,
            enter_loader=backend.enter_loading,
            place_for=functools.partial(place_on_cuda, backend, accounts.part, limit_bytes, ordinal),
            runtime_for=lambda name: runtime_on_cuda(name, graphs_of, int(lane.compute), limit_bytes, ordinal),
            settle=backend.synchronize,
            close=stream.close,
            accounts=accounts,
            space=lambda host_bytes: self._space(lane, host_bytes),
            regions=CudaRegions(self._driver, ordinal, self.lanes.primary, lane.compute),
        )

    def _space(self, lane: CudaLane, host_bytes: Bytes) -> CudaSpace:
        """Kept for the lane: pinning memory takes long, and waits for the device."""
        found = self._spaces.get(lane.number)
        if found is None:
            found = CudaSpace(self._driver, self._device.facts.ordinal, self.lanes, lane.compute, host_bytes)
            self._spaces[lane.number] = found
        return found

    def _lane_bytes(self) -> Bytes:
        """A lane's part of the device: what one model may draw of which nobody has said how much is reserved for it."""
        return self._device.memory_bytes // max(1, len(self.lanes.lanes))

    def close(self) -> None:
        """Lets go of the device."""
        for space in self._spaces.values():
            space.close()
        self._spaces.clear()
        self.lanes.close()


def budgets_on(backend: Backend, wiping_stream: int) -> MakeBudget:
    """Makes budgets of a lane's tenants. Where pools with budgets cannot be had, ones that nobody keeps, and a line says so."""
    from gpu_sharing.memory.capped import Budgets, PlainBudget, PoolUnavailable

    try:
        return Budgets(wiping_stream)
    except PoolUnavailable as missing:
        because = str(missing)
        print(f"memory of tenants has no limits on this device: {because}", file=sys.stderr, flush=True)
        return lambda limit_bytes, _within: PlainBudget(limit_bytes, backend.pool, backend.pool_bytes, because)


def runtime_on_cuda(name: str, graphs_of: GraphsOf, stream: int, limit_bytes: Bytes, ordinal: int = 0) -> Runtime:
    """The runtime of that name, for models that live on a lane. ArtefactRefused, naming those that there are, for any other."""
    if name == "torch_export":
        from gpu_sharing.runtimes.torch_cuda import CudaExportRuntime

        return CudaExportRuntime(graphs_of)
    if name == "onnx":
        from gpu_sharing.runtimes.onnx_cuda import OnnxCudaRuntime

        return OnnxCudaRuntime(stream, limit_bytes, ordinal=ordinal)
    raise ArtefactRefused(f"format: {name!r} is not one of {', '.join(RUNTIMES)}")


def place_on_cuda(
    backend: Backend, part: Callable[[Bytes], Budget], limit_bytes: Bytes, ordinal: int, **sizes: Any
) -> Place:
    """Where one model of Python code computes, on a part of its tenant's budget. ArtefactRefused where what that takes is missing."""
    from gpu_sharing.memory.capped import PlainBudget, PoolUnavailable
    from gpu_sharing.runtimes.python_device import CupyLibrary, DevicePlace

    try:
        library = CupyLibrary(ordinal)
        budget = part(limit_bytes)
        if isinstance(budget, PlainBudget):
            raise PoolUnavailable(budget.because)
        place = DevicePlace(backend, library, budget, **sizes)
        with place.working():
            return place
    except (ImportError, PoolUnavailable) as missing:
        raise ArtefactRefused(f"format: python is not served on this device: {missing}") from missing
