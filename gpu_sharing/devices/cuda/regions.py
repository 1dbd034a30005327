"""Memory that other processes have exported by CUDA's handles (cudaIpcGetMemHandle), opened in the primary context.

What is opened belongs to the process that exported it: its content changes under us, and what becomes of it when that process frees
it is left undefined by CUDA. So nothing is kept: requests' bytes are copied out on the lane's stream before any model sees them.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Any

import numpy as np

from gpu_sharing.devices.cuda.driver import Driver, Handle, call
from gpu_sharing.devices.cuda.errors import CudaError, Fault
from gpu_sharing.devices.cuda.space import ArrayOnDevice
from gpu_sharing.devices.regions import ABSENT, HANDLE_BYTES, Opened, RegionRefused, absent
from gpu_sharing.units import Bytes

_SAID = {
    Fault.UNSUPPORTED: ("UNSUPPORTED", "this driver does not share memory of its device between processes"),
    Fault.OUT_OF_MEMORY: ("OUT_OF_MEMORY", "the device has no room to map it"),
}
"""Of errors that tell nothing about others; all others are as if there were no such memory."""


class CudaRegions:
    """See `DeviceRegions`. Copies between host and device go on a stream of their own, which runs no kernel."""

    def __init__(self, driver: Driver, ordinal: int, primary: Handle, compute: Handle) -> None:
        """compute: the lane's stream, on which what is lent is copied. Calls nothing: most lanes never open any."""
        self._driver, self._ordinal, self._primary, self._compute = driver, ordinal, primary, compute
        self._stream: Handle | None = None

    def open(self, handle: bytes) -> Opened:
        """See `DeviceRegions`. No error ends the worker, or a made-up handle might: a broken context shows at the next slice."""
        if len(handle) != HANDLE_BYTES:
            raise absent()
        try:
            self._enter()
            address = self._opened(handle)
        except CudaError as error:
            reason, message = _SAID.get(error.fault, ("FIELD_INVALID", ABSENT))
            raise RegionRefused(reason, message) from error
        try:
            return self._looked_at(address)
        except BaseException as error:
            with suppress(CudaError):
                self._do("cuIpcCloseMemHandle", address)
            if isinstance(error, CudaError):
                raise absent() from error
            raise

    def close(self, opened: Opened) -> None:
        """See `DeviceRegions`: a copy that is still to come would fault, and take every lane with it."""
        self._enter()
        self._do("cuStreamSynchronize", self._compute)
        self._do("cuIpcCloseMemHandle", opened.where)

    def read(self, opened: Opened, offset: Bytes, into: np.ndarray) -> None:
        """See `DeviceRegions`."""
        self._copied("cuMemcpyDtoHAsync", into.ctypes.data, opened.where + offset, into.nbytes)

    def write(self, opened: Opened, offset: Bytes, content: np.ndarray) -> None:
        """See `DeviceRegions`."""
        self._copied("cuMemcpyHtoDAsync", opened.where + offset, content.ctypes.data, content.nbytes)

    def lent(self, opened: Opened, offset: Bytes, length_bytes: Bytes) -> object | None:
        """See `DeviceRegions`."""
        return ArrayOnDevice(opened.where + offset, length_bytes)

    def stop(self) -> None:
        """See `DeviceRegions`."""
        stream, self._stream = self._stream, None
        if stream is not None:
            self._enter()
            self._do("cuStreamDestroy", stream)

    def _opened(self, handle: bytes) -> Any:
        told = self._driver.CUipcMemHandle()
        # Its one field has no name in every version of the binding.
        ctypes.memmove(told.getPtr(), handle, HANDLE_BYTES)
        flags = int(self._driver.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS)
        return self._do("cuIpcOpenMemHandle", told, flags)

    def _looked_at(self, address: Any) -> Opened:
        """Memory of another device would be reached over a bus whose time is not this lane's to give."""
        attribute = self._driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        if int(self._do("cuPointerGetAttribute", attribute, address)) != self._ordinal:
            raise absent()
        base, size = self._do("cuMemGetAddressRange", address)
        return Opened(int(base), int(address), int(size) - (int(address) - int(base)))

    def _copied(self, name: str, target: int, source: int, length_bytes: Bytes) -> None:
        if not length_bytes:
            return
        self._enter()
        if self._stream is None:
            flags = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
            self._stream = self._do("cuStreamCreateWithPriority", flags, 0)
        self._do(name, target, source, length_bytes, self._stream)
        self._do("cuStreamSynchronize", self._stream)

    def _enter(self) -> None:
        self._do("cuCtxSetCurrent", self._primary)

    def _do(self, name: str, *arguments: Any) -> Any:
        return call(self._driver, name, *arguments)
