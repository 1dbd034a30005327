"""Where weights lie on a device, and wait on the host; and a processor's own, on which eviction is as real as on a GPU."""

from __future__ import annotations

import ctypes
import mmap
import threading
from dataclasses import dataclass, field
from typing import Any, Protocol

from gpu_sharing.memory.arena import Arena
from gpu_sharing.units import Bytes

PIECE: Bytes = 4 << 20
_COPIED_S = 30.0


class CopyFailed(RuntimeError):
    """Weights did not come in. The message says why."""


@dataclass(eq=False)
class Berth:
    """One model's place. host: its weights as they wait, to be written once. memory: where they lie on the device, at addresses that
    never change; what torch can look at. there_bytes: of the copy, what has been started and can be waited for in order.

    is_there: all of it has landed. failed: why it never will.
    """

    size_bytes: Bytes
    host: memoryview
    memory: Any
    offset: int = 0
    there_bytes: Bytes = 0
    is_there: bool = False
    failed: str = ""
    marks: list[tuple[Bytes, Any]] = field(default_factory=list)
    behind: Any = None


class Space(Protocol):
    """What a device's memory is to the mover, whose thread calls all of this but `take`, `give_back` and `await_bytes`."""

    def enter(self) -> None:
        """Called first on the mover's thread."""
        ...

    def take(self, size_bytes: Bytes, owner: str) -> Berth | None:
        """A place for so many bytes, nothing behind it yet; None where the host has no room. owner: whose; others' are wiped."""
        ...

    def give_back(self, berth: Berth) -> None:
        """The model is gone, and nothing on the device uses it."""
        ...

    def fill(self, berth: Berth) -> None:
        """Puts memory behind it. An error of the device where there is none; then it is empty."""
        ...

    def copy(self, berth: Berth, offset: Bytes, length_bytes: Bytes) -> Bytes:
        """Starts the next piece on its way in; how much has landed for certain."""
        ...

    def settle(self, berth: Berth) -> None:
        """Returns once all has landed."""
        ...

    def empty(self, berth: Berth) -> None:
        """Takes the memory away; the addresses stay. Nothing on the device uses it."""
        ...

    def await_bytes(self, berth: Berth, upto: Bytes) -> None:
        """On the lane's thread: what is launched after this finds so many bytes there. CopyFailed where they never will be."""
        ...


class HostSpace:
    """A processor's: weights wait in one memory and lie in another. What is evicted goes back to the system, and reads as zeros."""

    def __init__(self, host_bytes: Bytes) -> None:
        """host_bytes: for all weights that wait, a whole number of pages. OSError where the system refuses."""
        self._arena = Arena.create(host_bytes, "weights")
        self._lock = threading.Lock()
        self._landed = threading.Condition()

    def enter(self) -> None:
        """Nothing."""

    def take(self, size_bytes: Bytes, owner: str) -> Berth | None:
        """See `Space`."""
        size = -(-max(1, size_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        with self._lock:
            offset = self._arena.allocate(size, self._arena.owner(owner))
        if offset is None:
            return None
        # Shared: a private mapping would count as memory of the process even while it is empty.
        memory = mmap.mmap(-1, size)
        return Berth(size, self._arena.view[offset : offset + size], memory, offset)

    def give_back(self, berth: Berth) -> None:
        """See `Space`."""
        self.empty(berth)
        berth.host.release()
        with self._lock:
            self._arena.free(berth.offset)

    def fill(self, berth: Berth) -> None:
        """Pages come with the bytes."""
        berth.there_bytes, berth.is_there, berth.failed = 0, False, ""

    def copy(self, berth: Berth, offset: Bytes, length_bytes: Bytes) -> Bytes:
        """See `Space`. Has landed when it returns; other threads run meanwhile."""
        source = ctypes.addressof(ctypes.c_char.from_buffer(berth.host))
        target = ctypes.addressof(ctypes.c_char.from_buffer(berth.memory))
        for start in range(offset, offset + length_bytes, PIECE):
            ctypes.memmove(target + start, source + start, min(PIECE, offset + length_bytes - start))
        with self._landed:
            berth.there_bytes = offset + length_bytes
            self._landed.notify_all()
        return berth.there_bytes

    def settle(self, berth: Berth) -> None:
        """See `Space`."""
        berth.is_there = True

    def empty(self, berth: Berth) -> None:
        """See `Space`."""
        berth.there_bytes, berth.is_there = 0, False
        berth.memory.madvise(mmap.MADV_REMOVE)

    def await_bytes(self, berth: Berth, upto: Bytes) -> None:
        """See `Space`. Waits for them."""
        with self._landed:
            came = self._landed.wait_for(lambda: berth.there_bytes >= upto or bool(berth.failed), _COPIED_S)
        if berth.failed or not came:
            raise CopyFailed(berth.failed or f"weights did not come in within {_COPIED_S} s")
