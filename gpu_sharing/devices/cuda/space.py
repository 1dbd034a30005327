"""Where weights lie on a GPU and wait beside it: a pinned arena on the host, ranges whose addresses stay, copies timed by events."""

from __future__ import annotations

import ctypes
import threading
from typing import Any, Protocol

from gpu_sharing.devices.cuda.driver import Driver, Handle, call
from gpu_sharing.devices.cuda.vmm import Range, Ranges
from gpu_sharing.memory.berths import Berth, CopyFailed
from gpu_sharing.memory.extents import Extents
from gpu_sharing.units import Bytes

AHEAD = 2
"""Copies that are started and have not ended, at most: enough to keep the bus busy, few enough to know how far it is."""
_STARTED_S = 30.0


class _Lanes(Protocol):
    """What is needed of prepared lanes."""

    primary: Handle


class ArrayOnDevice:
    """Bytes at an address of the device, as torch and CuPy take them without a copy."""

    def __init__(self, address: int, size_bytes: Bytes) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size_bytes,), "typestr": "|u1", "data": (address, False), "version": 3, "strides": None,
        }  # fmt: skip


class PinnedArena:
    """Host memory that the device copies from without help of the processor: allocated once, since allocating it waits for the
    device. What is given back is wiped."""

    def __init__(self, driver: Driver, capacity_bytes: Bytes) -> None:
        """A context must be current on the thread. CudaError where so much cannot be pinned."""
        self._driver = driver
        self.address = int(call(driver, "cuMemHostAlloc", capacity_bytes, 0))
        ctypes.memset(self.address, 0, capacity_bytes)
        self._extents = Extents(capacity_bytes)
        self._lock = threading.Lock()
        self._view = memoryview((ctypes.c_char * capacity_bytes).from_address(self.address)).cast("B")

    def allocate(self, size_bytes: Bytes) -> tuple[int, memoryview] | None:
        """Offset and bytes, all zero; None where there is no room."""
        with self._lock:
            offset = self._extents.allocate(size_bytes)
        return None if offset is None else (offset, self._view[offset : offset + size_bytes])

    def free(self, offset: int) -> None:
        """Gives it back, wiped. KeyError where nothing is allocated there."""
        ctypes.memset(self.address + offset, 0, self._extents.length_bytes(offset))
        with self._lock:
            self._extents.free(offset)

    def close(self) -> None:
        """Gives the memory back."""
        self._view.release()
        call(self._driver, "cuMemFreeHost", self.address)


class CudaSpace:
    """See `gpu_sharing.memory.berths.Space`. Copies go on a stream of their own, which runs no kernel: the range is written to its
    end, zeros behind the weights, so that nothing of another tenant's is left in it and nothing has to be wiped on an SM.
    """

    def __init__(self, driver: Driver, ordinal: int, lanes: _Lanes, compute: Handle, host_bytes: Bytes) -> None:
        """compute: the lane's stream, whose segments wait for copies. host_bytes: pinned at once. CudaError."""
        self._driver, self._primary, self._compute = driver, lanes.primary, compute
        self._lock = threading.Lock()
        self._started = threading.Condition()
        self.enter()
        self._ranges = Ranges(driver, ordinal)
        self._arena = PinnedArena(driver, host_bytes)
        flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self._stream = self._do("cuStreamCreateWithPriority", flags, 0)
        self._free_events: list[Handle] = []

    def enter(self) -> None:
        """The primary context, which green contexts share memory with, is the calling thread's."""
        self._do("cuCtxSetCurrent", self._primary)

    def take(self, size_bytes: Bytes, owner: str) -> Berth | None:  # noqa: ARG002 - everybody's is wiped
        """See `Space`."""
        self.enter()
        with self._lock:
            held = self._ranges.reserve(max(1, size_bytes))
            found = self._arena.allocate(held.size_bytes)
            if found is None:
                self._ranges.free(held)
                return None
        return Berth(held.size_bytes, found[1], ArrayOnDevice(held.address, held.size_bytes), found[0], behind=held)

    def give_back(self, berth: Berth) -> None:
        """See `Space`."""
        self.enter()
        self.empty(berth)
        with self._lock:
            self._ranges.free(self._range(berth))
        berth.host.release()
        self._arena.free(berth.offset)

    def fill(self, berth: Berth) -> None:
        """See `Space`."""
        with self._lock:
            self._ranges.fill(self._range(berth))
        berth.there_bytes, berth.is_there, berth.failed = 0, False, ""

    def copy(self, berth: Berth, offset: Bytes, length_bytes: Bytes) -> Bytes:
        """See `Space`. Returns at once while fewer than AHEAD are out."""
        source, target = self._arena.address + berth.offset + offset, self._range(berth).address + offset
        self._do("cuMemcpyHtoDAsync", target, source, length_bytes, self._stream)
        event = self._free_events.pop() if self._free_events else self._do("cuEventCreate", self._flags())
        self._do("cuEventRecord", event, self._stream)
        with self._started:
            berth.marks.append((offset + length_bytes, event))
            berth.there_bytes = offset + length_bytes
            self._started.notify_all()
        return self._landed(berth, AHEAD)

    def settle(self, berth: Berth) -> None:
        """See `Space`."""
        self._landed(berth, 0)
        with self._started:
            berth.is_there = True
            self._free_events += [event for _, event in berth.marks]
            berth.marks.clear()

    def empty(self, berth: Berth) -> None:
        """See `Space`. A copy that broke off is waited for first."""
        if berth.marks:
            self._do("cuStreamSynchronize", self._stream)
            berth.marks.clear()
        berth.there_bytes, berth.is_there = 0, False
        with self._lock:
            self._ranges.empty(self._range(berth))

    def await_bytes(self, berth: Berth, upto: Bytes) -> None:
        """See `Space`. The lane's stream waits, not its thread, once the copy has been started."""
        with self._started:
            started = lambda: berth.is_there or berth.there_bytes >= upto or bool(berth.failed)
            came = self._started.wait_for(started, _STARTED_S)
            if berth.failed or not came:
                raise CopyFailed(berth.failed or f"weights were not on their way within {_STARTED_S} s")
            event = next((event for end, event in berth.marks if end >= upto), None)
            if event is not None and not berth.is_there:
                self._do("cuStreamWaitEvent", self._compute, event, 0)

    def close(self) -> None:
        """Lets go of everything; nothing on the device uses it."""
        self.enter()
        self._do("cuStreamSynchronize", self._stream)
        for event in self._free_events:
            self._do("cuEventDestroy", event)
        self._free_events.clear()
        self._do("cuStreamDestroy", self._stream)
        self._ranges.close()
        self._arena.close()

    def _landed(self, berth: Berth, ahead: int) -> Bytes:
        """What is in for certain, once at most so many pieces are on their way."""
        if len(berth.marks) <= ahead:
            return 0
        end, event = berth.marks[-1 - ahead]
        self._do("cuEventSynchronize", event)
        return end

    def _flags(self) -> int:
        flags = self._driver.CUevent_flags
        return int(flags.CU_EVENT_BLOCKING_SYNC) | int(flags.CU_EVENT_DISABLE_TIMING)

    @staticmethod
    def _range(berth: Berth) -> Range:
        held = berth.behind
        assert isinstance(held, Range)
        return held

    def _do(self, name: str, *arguments: Any) -> Any:
        return call(self._driver, name, *arguments)
