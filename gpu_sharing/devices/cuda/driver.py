"""The driver as this room calls it: `cuda.bindings.driver`, or whatever has its shape."""

from __future__ import annotations

import importlib
from typing import Any, Protocol, TypeAlias

from gpu_sharing.devices.cuda.errors import CudaError

Handle: TypeAlias = Any
"""A context, stream, event, resource: the binding's own object."""


class Driver(Protocol):
    """The calls that are made, with the names and the positional arguments of `cuda.bindings.driver`.

    Each returns a tuple whose first element is a CUresult. A recording double of this is what tests run on.
    """

    CUdevResourceType: Any
    CUdevice_attribute: Any
    CUgreenCtxCreate_flags: Any
    CUstream_flags: Any
    CUevent_flags: Any
    CUmemAllocationProp: Any
    CUmemAccessDesc: Any
    CUmemAllocationType: Any
    CUmemLocationType: Any
    CUmemAccess_flags: Any
    CUmemAllocationGranularity_flags: Any
    CUipcMemHandle: Any
    CUipcMem_flags: Any

    def cuInit(self, flags: int) -> tuple[Any, ...]: ...
    def cuDriverGetVersion(self) -> tuple[Any, ...]: ...
    def cuDeviceGetCount(self) -> tuple[Any, ...]: ...
    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]: ...
    def cuDeviceGetName(self, length: int, dev: Handle) -> tuple[Any, ...]: ...
    def cuDeviceGetAttribute(self, attrib: Any, dev: Handle) -> tuple[Any, ...]: ...
    def cuDeviceTotalMem(self, dev: Handle) -> tuple[Any, ...]: ...
    def cuDevicePrimaryCtxRetain(self, dev: Handle) -> tuple[Any, ...]: ...
    def cuDevicePrimaryCtxRelease(self, dev: Handle) -> tuple[Any, ...]: ...
    def cuCtxSetCurrent(self, ctx: Handle) -> tuple[Any, ...]: ...
    def cuCtxGetStreamPriorityRange(self) -> tuple[Any, ...]: ...
    def cuMemGetInfo(self) -> tuple[Any, ...]: ...
    def cuDeviceGetDevResource(self, device: Handle, typename: Any) -> tuple[Any, ...]: ...
    def cuDevSmResourceSplitByCount(self, groups: int, whole: Handle, flags: int, least: int) -> tuple[Any, ...]: ...
    def cuDevResourceGenerateDesc(self, resources: list[Handle], count: int) -> tuple[Any, ...]: ...
    def cuGreenCtxCreate(self, desc: Handle, dev: Handle, flags: int) -> tuple[Any, ...]: ...
    def cuGreenCtxDestroy(self, context: Handle) -> tuple[Any, ...]: ...
    def cuGreenCtxGetDevResource(self, context: Handle, typename: Any) -> tuple[Any, ...]: ...
    def cuGreenCtxStreamCreate(self, context: Handle, flags: int, priority: int) -> tuple[Any, ...]: ...
    def cuStreamCreateWithPriority(self, flags: int, priority: int) -> tuple[Any, ...]: ...
    def cuStreamSynchronize(self, stream: Handle) -> tuple[Any, ...]: ...
    def cuStreamDestroy(self, stream: Handle) -> tuple[Any, ...]: ...
    def cuEventCreate(self, flags: int) -> tuple[Any, ...]: ...
    def cuEventRecord(self, event: Handle, stream: Handle) -> tuple[Any, ...]: ...
    def cuEventSynchronize(self, event: Handle) -> tuple[Any, ...]: ...
    def cuEventElapsedTime(self, start: Handle, end: Handle) -> tuple[Any, ...]: ...
    def cuEventDestroy(self, event: Handle) -> tuple[Any, ...]: ...


class NoDriver(Exception):
    """There is no driver to call. The message says why, in a line."""


def load() -> Driver:
    """The real one, not initialised yet. NoDriver where the binding or the driver's library is missing."""
    try:
        driver: Driver = importlib.import_module("cuda.bindings.driver")  # type: ignore[assignment]
    except ImportError as missing:
        raise NoDriver(f"the package cuda-bindings is not installed ({missing})") from missing
    return driver


def call(driver: Driver, name: str, *arguments: Any) -> Any:
    """Calls the driver: what it returns without its result, unpacked where that is one value, None where it is none.

    CudaError where it failed; NoDriver where its library cannot be loaded, which the first call finds out.
    """
    try:
        result, *values = getattr(driver, name)(*arguments)
    except (RuntimeError, AttributeError, OSError) as broken:
        # The binding finds out at the first call that libcuda.so.1 is missing, or lacks this function.
        raise NoDriver(f"{name}: {_line(broken)}") from broken
    number = int(result)
    if number:
        raise CudaError(name, getattr(result, "name", str(result)), number)
    return None if not values else values[0] if len(values) == 1 else tuple(values)


def _line(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return words[:200] or type(error).__name__
