"""The shared memory extensions: regions of system memory, and of a GPU's."""

from __future__ import annotations

import asyncio
from typing import Any

from services._proto.inference import grpc_service_pb2 as pb
from services.common.access.callers import calling
from services.common.errors import Reason, Refusal
from services.frontend.core.regions import DeviceRegion, Region, unknown
from services.frontend.device_regions import DeviceRegions
from services.frontend.peers import Endpoint, local_users
from services.frontend.regions import Regions

SWEEP_S = 1.0


class MemoryService:
    """A caller's regions. allowed: the setting `shared_memory`. port: the one that callers are connected to; 0: not known yet."""

    def __init__(self, regions: Regions, devices: DeviceRegions, *, allowed: bool) -> None:
        self._regions, self._devices, self._allowed = regions, devices, allowed
        self.port = 0

    async def watch(self) -> None:
        """Lets go of regions whose connection has ended, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            if self._regions.any():
                self._regions.sweep(await self._users())
            if self._devices.any():
                await self._devices.sweep(await self._users())

    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: Any
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """Binds a region to the caller's tenant until it is unregistered or this connection ends. Raises Refusal."""
        tenant = calling().tenant
        self._check_allowed()
        if self._devices.has(tenant, request.name):
            raise Refusal(
                Reason.REGION_EXISTS,
                f"name: region {request.name!r} is registered already, as memory of a GPU; unregister it first",
                field="name",
            )
        region = Region(request.name, request.key, request.offset, request.byte_size)
        self._regions.register(tenant, region, context.peer(), await self._users())
        return pb.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, _context: Any
    ) -> pb.SystemSharedMemoryStatusResponse:
        """The caller's regions, or the one that is named. Raises Refusal (REGION_NOT_FOUND)."""
        response = pb.SystemSharedMemoryStatusResponse()
        for region in self._regions.regions(calling().tenant, request.name):
            told = response.regions[region.name]
            told.name, told.key, told.offset, told.byte_size = region.name, region.key, region.offset, region.byte_size
        return response

    async def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, _context: Any
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Lets go of the caller's region, or of all where none is named."""
        self._regions.unregister(calling().tenant, request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryRegister(
        self, request: pb.CudaSharedMemoryRegisterRequest, context: Any
    ) -> pb.CudaSharedMemoryRegisterResponse:
        """Binds memory of a GPU to the caller's tenant until it is unregistered or this connection ends. Raises Refusal."""
        tenant = calling().tenant
        self._check_allowed()
        region = DeviceRegion(request.name, request.raw_handle, request.device_id, request.byte_size)
        await self._devices.register(tenant, region, context.peer(), await self._users())
        return pb.CudaSharedMemoryRegisterResponse()

    async def CudaSharedMemoryStatus(
        self, request: pb.CudaSharedMemoryStatusRequest, _context: Any
    ) -> pb.CudaSharedMemoryStatusResponse:
        """The caller's regions, or the one that is named. Raises Refusal (REGION_NOT_FOUND)."""
        response = pb.CudaSharedMemoryStatusResponse()
        regions = self._devices.regions(calling().tenant, request.name)
        if request.name and not regions:
            raise unknown(request.name, "name")
        for region in regions:
            told = response.regions[region.name]
            told.name, told.device_id, told.byte_size = region.name, region.device_id, region.byte_size
        return response

    async def CudaSharedMemoryUnregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, _context: Any
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        """Lets go of the caller's region, or of all where none is named."""
        await self._devices.unregister(calling().tenant, request.name)
        return pb.CudaSharedMemoryUnregisterResponse()

    def _check_allowed(self) -> None:
        if not self._allowed:
            raise Refusal(Reason.UNSUPPORTED, "shared memory is switched off here; send tensors in the request")

    async def _users(self) -> dict[Endpoint, int]:
        # The kernel's table has a line for each connection: a long one is read aside.
        return await asyncio.to_thread(local_users, self.port)
