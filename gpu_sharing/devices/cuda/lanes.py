"""The lanes of a CUDA device: made once at the start, from one split, for every layout that it is prepared for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_sharing.devices.cuda.driver import Driver, Handle, call
from gpu_sharing.devices.cuda.errors import CudaError
from gpu_sharing.devices.cuda.survey import group_sms, split
from gpu_sharing.partitioning.groups import Groups
from gpu_sharing.partitioning.partitions import Partitions
from gpu_sharing.units import Bytes, ComputeUnits, Nanoseconds

LANE_PRIORITY = -1
LOADING_PRIORITY = 0
"""Lower goes first, among what runs on the same SMs: a load beside a lane's slices."""


@dataclass(frozen=True, slots=True)
class CudaLane:
    """compute: the stream that slices run on, loading: the one for loads and profiles; both on the same SMs.

    context: its green context; None where lanes are plain streams. sms: as granted. Streams are given to one thread each.
    """

    number: int
    context: Handle | None
    compute: Handle
    loading: Handle
    sms: ComputeUnits


@dataclass(frozen=True, slots=True)
class Prepared:
    """What preparing a layout cost beyond the ones before it, whose lanes it uses where it has them in common."""

    name: str
    lanes: tuple[int, ...]
    took_ns: Nanoseconds
    memory_bytes: Bytes


class CudaLanes:
    """All lanes of all layouts, and the primary context that they live in. Made and closed by one thread.

    prepared: by layout. notes: what was not as asked for, in words.
    """

    def __init__(
        self,
        driver: Driver,
        partitions: Partitions,
        *,
        ordinal: int = 0,
        groups: Groups | None = None,
        clock: Callable[[], Nanoseconds] = time.monotonic_ns,
    ) -> None:
        """groups: of the survey's split, for green contexts; None: plain streams on the whole device.

        CudaError where the driver refuses: then nothing is left behind. LayoutInvalid for lanes that are not whole groups.
        """
        self._driver = driver
        self._undo: list[tuple[str, Handle]] = []
        self.lanes: dict[int, CudaLane] = {}
        self.prepared: list[Prepared] = []
        self.notes: list[str] = []
        pieces = [groups.pieces(lane) for lane in partitions.lanes] if groups is not None else []
        try:
            self.device = self._do("cuDeviceGet", ordinal)
            # Every green context retains it: made first, it is made once.
            self.primary = self._do("cuDevicePrimaryCtxRetain", self.device)
            self._undo.append(("cuDevicePrimaryCtxRelease", self.device))
            self._do("cuCtxSetCurrent", self.primary)
            self._kind = driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
            resources = self._split(groups) if groups is not None else []
            for layout, name in zip(partitions.layouts, partitions.names, strict=True):
                began, before = clock(), self._free()
                for number in layout:
                    if number not in self.lanes:
                        self.lanes[number] = self._lane(number, resources, pieces, partitions)
                self.prepared.append(Prepared(name, layout, clock() - began, max(0, before - self._free())))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets go of everything, streams before their contexts, in the reverse order of their making; twice is once.

        The first CudaError is raised once all the rest has been tried: what is lost anyway must not keep the others.
        """
        first: CudaError | None = None
        self.lanes.clear()
        while self._undo:
            name, handle = self._undo.pop()
            try:
                if name == "cuStreamDestroy":
                    self._do("cuStreamSynchronize", handle)
            except CudaError as error:
                first = first or error
            try:
                self._do(name, handle)
            except CudaError as error:
                first = first or error
        if first is not None:
            raise first

    def _split(self, groups: Groups) -> list[Any]:
        """The groups, and the remainder last. ValueError where the device is divided otherwise than the survey was told."""
        whole = self._do("cuDeviceGetDevResource", self.device, self._kind)
        major = self._driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        generation = int(self._do("cuDeviceGetAttribute", major, self.device))
        parts, rest = split(self._driver, whole, group_sms((generation, 0)))
        if (len(parts), parts[0].sm.smCount, rest.sm.smCount) != (groups.count, groups.size, groups.rest):
            raise ValueError(f"the device gives {len(parts)} groups of {parts[0].sm.smCount} SMs; {groups} was planned")
        return [*parts, rest]

    def _lane(
        self, number: int, resources: list[Any], pieces: Sequence[tuple[int, ...]], partitions: Partitions
    ) -> CudaLane:
        if not resources:
            streams = (self._plain(LANE_PRIORITY), self._plain(LOADING_PRIORITY))
            return CudaLane(number, None, *streams, len(partitions.lanes[number]))
        context = self._context(
            number, [resources[piece] for piece in pieces[number]], len(resources) - 1 in pieces[number]
        )
        granted = self._do("cuGreenCtxGetDevResource", context, self._kind).sm.smCount
        return CudaLane(
            number, context, self._stream(context, LANE_PRIORITY), self._stream(context, LOADING_PRIORITY), granted
        )

    def _context(self, number: int, resources: list[Any], has_rest: bool) -> Handle:
        try:
            described = self._do("cuDevResourceGenerateDesc", resources, len(resources))
        except CudaError as error:
            # Newer drivers take a remainder only where it is aligned as the groups are.
            if not has_rest or error.name != "CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION":
                raise
            left, resources = resources[-1].sm.smCount, resources[:-1]
            self.notes.append(f"lane {number}: {left} SMs left over by the split stay unused: {error}")
            described = self._do("cuDevResourceGenerateDesc", resources, len(resources))
        # Drivers before 13 make no green context without one; nothing is ever launched there.
        flags = self._driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
        return self._kept("cuGreenCtxCreate", "cuGreenCtxDestroy", described, self.device, flags)

    def _stream(self, context: Handle, priority: int) -> Handle:
        flags = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        return self._kept("cuGreenCtxStreamCreate", "cuStreamDestroy", context, flags, priority)

    def _plain(self, priority: int) -> Handle:
        flags = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        return self._kept("cuStreamCreateWithPriority", "cuStreamDestroy", flags, priority)

    def _free(self) -> Bytes:
        return int(self._do("cuMemGetInfo")[0])

    def _kept(self, make: str, undo: str, *arguments: Any) -> Handle:
        handle = self._do(make, *arguments)
        self._undo.append((undo, handle))
        return handle

    def _do(self, name: str, *arguments: Any) -> Any:
        return call(self._driver, name, *arguments)
