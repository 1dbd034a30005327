"""The shared memory extensions: regions of system memory; of device memory there are none."""

from __future__ import annotations

import asyncio
from typing import Any

from services._proto.inference import grpc_service_pb2 as pb
from services.common.access.callers import calling
from services.common.errors import Reason, Refusal
from services.frontend.core.regions import Region, unknown
from services.frontend.peers import Endpoint, local_users
from services.frontend.regions import Regions

SWEEP_S = 1.0


class MemoryService:
    """A caller's regions. allowed: the setting `shared_memory`. port: the one that callers are connected to; 0: not known yet."""

    def __init__(self, regions: Regions, *, allowed: bool) -> None:
        self._regions, self._allowed = regions, allowed
        self.port = 0

    async def watch(self) -> None:
        """Lets go of regions whose connection has ended, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            if self._regions.any():
                self._regions.sweep(await self._users())

    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: Any
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """Binds a region to the caller's tenant until it is unregistered or this connection ends. Raises Refusal."""
        tenant = calling().tenant
        if not self._allowed:
            raise Refusal(Reason.UNSUPPORTED, "shared memory is switched off here; send tensors in the request")
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

    async def CudaSharedMemoryStatus(
        self, request: pb.CudaSharedMemoryStatusRequest, _context: Any
    ) -> pb.CudaSharedMemoryStatusResponse:
        """None: regions of device memory are not served. Raises Refusal (REGION_NOT_FOUND) where one is named."""
        if request.name:
            raise unknown(request.name, "name")
        return pb.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryUnregister(
        self,
        _request: pb.CudaSharedMemoryUnregisterRequest,
        _context: Any,
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        """Done already: there are none. Clients that clean up let go of both kinds."""
        return pb.CudaSharedMemoryUnregisterResponse()

    async def _users(self) -> dict[Endpoint, int]:
        # The kernel's table has a line for each connection: a long one is read aside.
        return await asyncio.to_thread(local_users, self.port)
