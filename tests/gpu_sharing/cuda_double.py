"""A double of `cuda.bindings.driver`: it records every call, keeps the books of what lives, and runs a device in virtual time.

It refuses what the driver refuses (a stream of a context that is gone, a split of a split, memory mapped twice), so that a test
on it fails where the real calls would.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

CUresult = IntEnum(
    "CUresult",
    {
        "CUDA_SUCCESS": 0, "CUDA_ERROR_INVALID_VALUE": 1, "CUDA_ERROR_OUT_OF_MEMORY": 2, "CUDA_ERROR_NOT_INITIALIZED": 3,
        "CUDA_ERROR_NO_DEVICE": 100, "CUDA_ERROR_INVALID_DEVICE": 101, "CUDA_ERROR_INVALID_CONTEXT": 201,
        "CUDA_ERROR_ALREADY_MAPPED": 208, "CUDA_ERROR_NOT_MAPPED": 211, "CUDA_ERROR_INVALID_HANDLE": 400,
        "CUDA_ERROR_NOT_READY": 600, "CUDA_ERROR_ILLEGAL_ADDRESS": 700, "CUDA_ERROR_CONTEXT_IS_DESTROYED": 709,
        "CUDA_ERROR_NOT_PERMITTED": 800, "CUDA_ERROR_NOT_SUPPORTED": 801, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": 803,
        "CUDA_ERROR_MPS_CONNECTION_FAILED": 805, "CUDA_ERROR_MPS_SERVER_NOT_READY": 807,
        "CUDA_ERROR_INVALID_RESOURCE_TYPE": 914, "CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION": 915,
        "CUDA_ERROR_STREAM_DETACHED": 917, "CUDA_ERROR_UNKNOWN": 999,
    },
)  # fmt: skip


class _Flags(IntEnum):
    """Stands for an enumeration of which only names matter."""


@dataclass(eq=False)
class Resource:
    """SMs by their numbers. split: which split it came from; 0: the whole device."""

    sms: frozenset[int]
    split: int = 0
    is_rest: bool = False

    @property
    def sm(self) -> SimpleNamespace:
        return SimpleNamespace(smCount=len(self.sms))


@dataclass(eq=False)
class Context:
    sms: frozenset[int]
    alive: bool = True


@dataclass(eq=False)
class Stream:
    """A queue of work in virtual milliseconds. free_at: when the last of it ends."""

    number: int
    context: Context | None
    priority: int
    alive: bool = True
    free_at: float = 0.0

    def __int__(self) -> int:
        return self.number


@dataclass(eq=False)
class Event:
    at: float | None = None
    alive: bool = True


class IpcHandle:
    """64 bytes, to be had by their address alone."""

    def __init__(self) -> None:
        self._bytes = ctypes.create_string_buffer(64)

    def getPtr(self) -> int:
        return ctypes.addressof(self._bytes)


@dataclass
class CudaDouble:
    """One device. calls: what was called, with its arguments. failing: by name, errors for the next calls.

    now: the host's virtual time in milliseconds; waiting for an event moves it.
    """

    sms: int = 132
    name: str = "NVIDIA H200"
    version: int = 13_000
    memory: int = 139 << 30
    generation: tuple[int, int] = (9, 0)
    devices: int = 1
    granularity: int = 8
    rest_is_aligned: bool = True
    has_library: bool = True
    context_bytes: int = 6 << 20
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    failing: dict[str, list[CUresult]] = field(default_factory=dict)
    now: float = 0.0
    ordinal_of_shared: int = 0

    CUdevResourceType = SimpleNamespace(CU_DEV_RESOURCE_TYPE_SM="SM")
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="MAJOR",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="MINOR",
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT="SMS",
        CU_DEVICE_ATTRIBUTE_COMPUTE_MODE="MODE",
    )
    CUgreenCtxCreate_flags = SimpleNamespace(CU_GREEN_CTX_NONE=0, CU_GREEN_CTX_DEFAULT_STREAM=1)
    CUstream_flags = SimpleNamespace(CU_STREAM_DEFAULT=0, CU_STREAM_NON_BLOCKING=1)
    CUevent_flags = SimpleNamespace(CU_EVENT_DEFAULT=0, CU_EVENT_BLOCKING_SYNC=1, CU_EVENT_DISABLE_TIMING=2)
    CUmemAllocationType = SimpleNamespace(CU_MEM_ALLOCATION_TYPE_PINNED=1)
    CUmemLocationType = SimpleNamespace(CU_MEM_LOCATION_TYPE_DEVICE=1)
    CUmemAccess_flags = SimpleNamespace(CU_MEM_ACCESS_FLAGS_PROT_READWRITE=3)
    CUmemAllocationGranularity_flags = SimpleNamespace(CU_MEM_ALLOC_GRANULARITY_RECOMMENDED=1)
    CUpointer_attribute = SimpleNamespace(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL="ORDINAL")
    CUipcMem_flags = SimpleNamespace(CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS=1)

    def __post_init__(self) -> None:
        self._ids = itertools.count(1)
        self.initialised = False
        self.splits = 0
        self.primary_retained = 0
        self.primary = Context(frozenset(range(self.sms)))
        self.current: dict[int, Any] = {}
        self.contexts: list[Context] = []
        self.streams: list[Stream] = []
        self.events: list[Event] = []
        self.reserved: dict[int, int] = {}
        self.next_address = 0x7F00_0000_0000
        self.handles: dict[int, int] = {}
        self.mapped: dict[int, tuple[int, int]] = {}
        self.readable: set[int] = set()
        self.pinned: dict[int, Any] = {}
        self.content: dict[int, bytes] = {}
        self.bytes_per_ms = 25e6
        self.shared: dict[bytes, int] = {}
        self.foreign: dict[int, Any] = {}
        self.opened: Counter[int] = Counter()

    # For tests.

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def launch(self, stream: Any, took_ms: float) -> None:
        """Work of this length on a stream, which does not wait for it."""
        stream.free_at = max(stream.free_at, self.now) + took_ms

    @property
    def alive(self) -> dict[str, int]:
        return {
            "contexts": sum(each.alive for each in self.contexts),
            "streams": sum(each.alive for each in self.streams),
            "events": sum(each.alive for each in self.events),
            "primary": self.primary_retained,
        }

    def CUmemAllocationProp(self) -> Any:
        return SimpleNamespace(location=SimpleNamespace())

    def CUmemAccessDesc(self) -> Any:
        return SimpleNamespace(location=SimpleNamespace())

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not name.startswith("cu") or not callable(value):
            return value

        def recorded(*arguments: Any) -> tuple[Any, ...]:
            if not self.has_library:
                raise RuntimeError("Failed to dlopen libcuda.so.1")
            self.calls.append((name, *arguments))
            queue = self.failing.get(name)
            if queue and (error := queue.pop(0)):
                return (error, *[None] * (3 if name == "cuDevSmResourceSplitByCount" else 1))
            if not self.initialised and name != "cuInit":
                return (CUresult.CUDA_ERROR_NOT_INITIALIZED, None)
            made = value(*arguments)
            return made if isinstance(made, tuple) and made and isinstance(made[0], CUresult) else _success(made)

        return recorded

    # The driver.

    def cuInit(self, Flags: int) -> Any:
        if not self.devices:
            return (CUresult.CUDA_ERROR_NO_DEVICE,)
        self.initialised = True
        return None

    def cuDriverGetVersion(self) -> Any:
        return self.version

    def cuDeviceGetCount(self) -> Any:
        return self.devices

    def cuDeviceGet(self, ordinal: int) -> Any:
        return ordinal if ordinal < self.devices else (CUresult.CUDA_ERROR_INVALID_DEVICE, None)

    def cuDeviceGetName(self, length: int, dev: Any) -> Any:
        return self.name.encode().ljust(length, b"\0")

    def cuDeviceGetAttribute(self, attrib: Any, dev: Any) -> Any:
        return {"MAJOR": self.generation[0], "MINOR": self.generation[1], "SMS": self.sms, "MODE": 0}[attrib]

    def cuDeviceTotalMem(self, dev: Any) -> Any:
        return self.memory

    def cuDevicePrimaryCtxRetain(self, dev: Any) -> Any:
        self.primary_retained += 1
        return self.primary

    def cuDevicePrimaryCtxRelease(self, dev: Any) -> Any:
        if not self.primary_retained:
            return (CUresult.CUDA_ERROR_INVALID_CONTEXT,)
        self.primary_retained -= 1
        return None

    def cuCtxSetCurrent(self, ctx: Any) -> Any:
        self.current[threading.get_ident()] = ctx
        return None

    def cuCtxGetStreamPriorityRange(self) -> Any:
        return (CUresult.CUDA_SUCCESS, 0, -5)

    def cuMemGetInfo(self) -> Any:
        if self.current.get(threading.get_ident()) is None:
            return (CUresult.CUDA_ERROR_INVALID_CONTEXT, None, None)
        used = sum(each.alive for each in self.contexts) * self.context_bytes + sum(self.handles.values())
        return (CUresult.CUDA_SUCCESS, self.memory - used, self.memory)

    def cuDeviceGetDevResource(self, device: Any, typename: Any) -> Any:
        return Resource(frozenset(range(self.sms)))

    def cuDevSmResourceSplitByCount(self, nbGroups: int, input_: Resource, flags: int, minCount: int) -> Any:
        if input_.split:
            return (CUresult.CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION, None, None, None)
        self.splits += 1
        size = -(-minCount // self.granularity) * self.granularity
        count = min(nbGroups, self.sms // size)
        # The driver's choice of SMs is its own: here every split deals them out another way.
        order = sorted(range(self.sms), key=lambda sm: ((sm * (6 * self.splits + 1)) % self.sms, sm))
        parts = [Resource(frozenset(order[at * size : (at + 1) * size]), self.splits) for at in range(count)]
        rest = Resource(frozenset(order[count * size :]), self.splits, is_rest=True)
        return (CUresult.CUDA_SUCCESS, parts, count, rest)

    def cuDevResourceGenerateDesc(self, resources: list[Resource], nbResources: int) -> Any:
        wrong = len({each.split for each in resources}) != 1 or 0 in {each.split for each in resources}
        rest = any(each.is_rest for each in resources) and not self.rest_is_aligned
        if wrong or rest or nbResources != len(resources):
            return (CUresult.CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION, None)
        return frozenset().union(*(each.sms for each in resources))

    def cuGreenCtxCreate(self, desc: Any, dev: Any, flags: int) -> Any:
        if flags != 1:
            return (CUresult.CUDA_ERROR_INVALID_VALUE, None)
        self.contexts.append(Context(desc))
        self.primary_retained += 1
        return self.contexts[-1]

    def cuGreenCtxDestroy(self, hCtx: Context) -> Any:
        if not hCtx.alive:
            return (CUresult.CUDA_ERROR_CONTEXT_IS_DESTROYED,)
        hCtx.alive = False
        self.primary_retained -= 1
        return None

    def cuGreenCtxGetDevResource(self, hCtx: Context, typename: Any) -> Any:
        return Resource(hCtx.sms, -1)

    def cuGreenCtxStreamCreate(self, greenCtx: Context, flags: int, priority: int) -> Any:
        if flags != 1 or not greenCtx.alive:
            return (CUresult.CUDA_ERROR_INVALID_VALUE, None)
        return self._stream(greenCtx, priority)

    def cuStreamCreateWithPriority(self, flags: int, priority: int) -> Any:
        return self._stream(None, priority)

    def _stream(self, context: Context | None, priority: int) -> Stream:
        self.streams.append(Stream(0x1000 + 16 * len(self.streams), context, priority))
        return self.streams[-1]

    def cuStreamSynchronize(self, hStream: Stream) -> Any:
        if hStream.context is not None and not hStream.context.alive:
            return (CUresult.CUDA_ERROR_STREAM_DETACHED,)
        self.now = max(self.now, hStream.free_at)
        return None

    def cuStreamDestroy(self, hStream: Stream) -> Any:
        if not hStream.alive:
            return (CUresult.CUDA_ERROR_INVALID_HANDLE,)
        hStream.alive = False
        return None

    def cuEventCreate(self, Flags: int) -> Any:
        if self.current.get(threading.get_ident()) is None:
            return (CUresult.CUDA_ERROR_INVALID_CONTEXT, None)
        self.events.append(Event())
        return self.events[-1]

    def cuEventRecord(self, hEvent: Event, hStream: Stream) -> Any:
        if not hEvent.alive or not hStream.alive:
            return (CUresult.CUDA_ERROR_INVALID_HANDLE,)
        hEvent.at = max(hStream.free_at, self.now)
        return None

    def cuEventSynchronize(self, hEvent: Event) -> Any:
        if hEvent.at is None or not hEvent.alive:
            return (CUresult.CUDA_ERROR_INVALID_HANDLE,)
        self.now = max(self.now, hEvent.at)
        return None

    def cuEventElapsedTime(self, hStart: Event, hEnd: Event) -> Any:
        if hStart.at is None or hEnd.at is None:
            return (CUresult.CUDA_ERROR_INVALID_HANDLE, None)
        if max(hStart.at, hEnd.at) > self.now:
            return (CUresult.CUDA_ERROR_NOT_READY, None)
        return hEnd.at - hStart.at

    def cuEventDestroy(self, hEvent: Event) -> Any:
        if not hEvent.alive:
            return (CUresult.CUDA_ERROR_INVALID_HANDLE,)
        hEvent.alive = False
        return None

    # Memory.

    def cuMemGetAllocationGranularity(self, prop: Any, option: Any) -> Any:
        return 2 << 20

    def cuMemAddressReserve(self, size: int, alignment: int, addr: Any, flags: int) -> Any:
        if size % (2 << 20):
            return (CUresult.CUDA_ERROR_INVALID_VALUE, None)
        address, self.next_address = self.next_address, self.next_address + size + (1 << 21)
        self.reserved[address] = size
        return address

    def cuMemAddressFree(self, ptr: int, size: int) -> Any:
        if self.reserved.get(int(ptr)) != size or any(int(ptr) <= at < int(ptr) + size for at in self.mapped):
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        del self.reserved[int(ptr)]
        return None

    def cuMemCreate(self, size: int, prop: Any, flags: int) -> Any:
        if sum(self.handles.values()) + size > self.memory:
            return (CUresult.CUDA_ERROR_OUT_OF_MEMORY, None)
        handle = next(self._ids)
        self.handles[handle] = size
        return handle

    def cuMemRelease(self, handle: int) -> Any:
        if any(held == handle for held, _ in self.mapped.values()) or handle not in self.handles:
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        del self.handles[handle]
        return None

    def cuMemMap(self, ptr: int, size: int, offset: int, handle: int, flags: int) -> Any:
        if int(ptr) in self.mapped or self.handles.get(handle) != size:
            return (CUresult.CUDA_ERROR_ALREADY_MAPPED,)
        self.mapped[int(ptr)] = (handle, size)
        return None

    def cuMemSetAccess(self, ptr: int, size: int, desc: Any, count: int) -> Any:
        if int(ptr) not in self.mapped:
            return (CUresult.CUDA_ERROR_NOT_MAPPED,)
        self.readable.add(int(ptr))
        return None

    def cuMemUnmap(self, ptr: int, size: int) -> Any:
        if self.mapped.get(int(ptr), (0, 0))[1] != size:
            return (CUresult.CUDA_ERROR_NOT_MAPPED,)
        del self.mapped[int(ptr)]
        self.content = {at: held for at, held in self.content.items() if not int(ptr) <= at < int(ptr) + size}
        self.readable.discard(int(ptr))
        return None

    def cuMemHostAlloc(self, bytesize: int, Flags: int) -> Any:
        if self.current.get(threading.get_ident()) is None:
            return (CUresult.CUDA_ERROR_INVALID_CONTEXT, None)
        memory = ctypes.create_string_buffer(bytesize)
        self.pinned[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def cuMemFreeHost(self, p: int) -> Any:
        return None if self.pinned.pop(int(p), None) is not None else (CUresult.CUDA_ERROR_INVALID_VALUE,)

    def cuMemcpyHtoDAsync(self, dstDevice: int, srcHost: int, ByteCount: int, hStream: Stream) -> Any:
        """Takes its time on the stream; what it brought is kept by address."""
        if self._is_foreign(dstDevice, ByteCount):
            ctypes.memmove(int(dstDevice), srcHost, ByteCount)
            return self.launch(hStream, ByteCount / self.bytes_per_ms)
        base = next((at for at, (_, size) in self.mapped.items() if at <= int(dstDevice) < at + size), None)
        if base is None or int(dstDevice) + ByteCount > base + self.mapped[base][1]:
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        if not any(at <= srcHost and srcHost + ByteCount <= at + len(held) for at, held in self.pinned.items()):
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        self.content[int(dstDevice)] = ctypes.string_at(srcHost, ByteCount)
        self.launch(hStream, ByteCount / self.bytes_per_ms)
        return None

    def cuStreamWaitEvent(self, hStream: Stream, hEvent: Event, Flags: int) -> Any:
        if hEvent.at is None:
            return (CUresult.CUDA_ERROR_INVALID_HANDLE,)
        hStream.free_at = max(hStream.free_at, hEvent.at)
        return None

    def cuMemsetD8Async(self, dstDevice: int, uc: int, N: int, hStream: Any) -> Any:
        return None

    # Memory of other processes.

    def export(self, handle: bytes, size: int) -> None:
        """Another process has shared so much of its memory by this handle."""
        memory = ctypes.create_string_buffer(size)
        self.shared[handle] = ctypes.addressof(memory)
        self.foreign[ctypes.addressof(memory)] = memory

    def CUipcMemHandle(self) -> Any:
        return IpcHandle()

    def cuIpcOpenMemHandle(self, handle: Any, Flags: int) -> Any:
        address = self.shared.get(ctypes.string_at(handle.getPtr(), 64))
        if address is None or Flags != 1:
            return (CUresult.CUDA_ERROR_INVALID_VALUE, None)
        if self.current.get(threading.get_ident()) is None:
            return (CUresult.CUDA_ERROR_INVALID_CONTEXT, None)
        self.opened[address] += 1
        return address

    def cuIpcCloseMemHandle(self, dptr: int) -> Any:
        if not self.opened[int(dptr)]:
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        self.opened[int(dptr)] -= 1
        return None

    def cuMemGetAddressRange(self, dptr: int) -> Any:
        if not self.opened[int(dptr)]:
            return (CUresult.CUDA_ERROR_INVALID_VALUE, None, None)
        return (CUresult.CUDA_SUCCESS, int(dptr), len(self.foreign[int(dptr)]))

    def cuPointerGetAttribute(self, attribute: Any, dptr: int) -> Any:
        return self.ordinal_of_shared if self.opened[int(dptr)] else (CUresult.CUDA_ERROR_INVALID_VALUE, None)

    def cuMemcpyDtoHAsync(self, dstHost: int, srcDevice: int, ByteCount: int, hStream: Stream) -> Any:
        if not self._is_foreign(srcDevice, ByteCount):
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        ctypes.memmove(dstHost, srcDevice, ByteCount)
        self.launch(hStream, ByteCount / self.bytes_per_ms)
        return None

    def _is_foreign(self, address: int, length: int) -> bool:
        """Whether these bytes lie in memory of another process that is open now."""
        return any(
            self.opened[at] and at <= int(address) and int(address) + length <= at + len(held)
            for at, held in self.foreign.items()
        )


def _success(made: Any) -> tuple[Any, ...]:
    return (CUresult.CUDA_SUCCESS,) if made is None else (CUresult.CUDA_SUCCESS, made)
