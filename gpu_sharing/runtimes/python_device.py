"""A GPU's lane, as an operator's Python model gets it: CuPy's arrays and torch's tensors, on the lane's stream, out of one budget."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import numpy as np

from gpu_sharing.memory.capped import Budget
from gpu_sharing.runtimes.python_place import Place, Stream
from gpu_sharing.runtimes.torch_place import ALIGNMENT, Backend
from gpu_sharing.units import Bytes


class Library(Protocol):
    """What this room does with CuPy; a double of it has NumPy's arrays."""

    xp: Any

    def current(self) -> Stream:
        """The calling thread's stream: torch's current one, as CuPy has it."""
        ...

    def computing(self, stream: Stream) -> Any:
        """A context in which this thread's kernels go to that stream, and its arrays are allocated by torch."""
        ...


class DevicePool:
    """One budget for all threads of a model; each draws on a pool of its own, since torch's are for one thread."""

    def __init__(self, budget: Budget, xp: Any) -> None:
        self._budget, self._xp = budget, xp
        self._pools: dict[int, Any] = {}
        self._lock = threading.Lock()

    @property
    def limit_bytes(self) -> Bytes:
        """See `Pool`."""
        return self._budget.limit_bytes

    @property
    def used_bytes(self) -> Bytes:
        """See `Pool`."""
        return self._budget.used_bytes

    def empty(self, shape: int | Sequence[int], dtype: Any) -> Any:
        """See `Pool`. Within a load or a slice, where everything is drawn from the pool."""
        return self._xp.empty(shape, dtype)

    def mine(self) -> Any:
        """The calling thread's."""
        with self._lock:
            mine = self._pools.get(threading.get_ident())
            if mine is None:
                mine = self._pools[threading.get_ident()] = self._budget.pool()
            return mine


class DevicePlace(Place):
    """A lane of a GPU. Inputs come in by one copy from pinned memory, outputs go back by one."""

    def __init__(
        self,
        backend: Backend,
        library: Library,
        budget: Budget,
        *,
        threads: int = 1,
        compute_units: int = 1,
    ) -> None:
        """budget: of the model, all its threads together."""
        super().__init__(threads=threads, compute_units=compute_units)
        self.device, self.xp = backend.device, library.xp
        self._backend, self._library = backend, library
        self._draws = DevicePool(budget, library.xp)
        self.pool = self._draws

    @property
    def stream(self) -> Stream:
        """See `Place`."""
        return self._library.current()

    @contextmanager
    def working(self) -> Iterator[None]:
        """See `Place`."""
        with ExitStack() as stack:
            stack.enter_context(self._backend.allocating(self._draws.mine()))
            stack.enter_context(self._library.computing(self._library.current()))
            yield

    def settle(self) -> None:
        """See `Place`."""
        self._backend.synchronize()

    def arrive(self, pieces: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """See `Place`: gathered in pinned memory, and brought in by one asynchronous copy."""
        import torch

        offsets, total = _laid_out({name: value.nbytes for name, value in pieces.items()})
        # torch keeps it until the copy has ended.
        host = torch.empty(total, dtype=torch.uint8, pin_memory=self._backend.pins)
        flat = host.numpy()
        for name, value in pieces.items():
            if value.nbytes:
                at, end = offsets[name], offsets[name] + value.nbytes
                flat[at:end].view(value.dtype).reshape(value.shape)[...] = value
                # What lies between is nobody's, and shows nobody's bytes.
                flat[end : end + -value.nbytes % ALIGNMENT] = 0
        memory = torch.empty(total, dtype=torch.uint8, device=self._backend.device)
        memory.copy_(host, non_blocking=True)
        block = self.xp.from_dlpack(memory)
        return {
            name: block[offsets[name] : offsets[name] + value.nbytes].view(value.dtype).reshape(value.shape)
            for name, value in pieces.items()
        }

    def leave(self, pieces: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """See `Place`: put side by side on the device, and brought back by one asynchronous copy."""
        import torch

        xp = self.xp
        dense = {name: xp.ascontiguousarray(value).reshape(value.shape) for name, value in pieces.items()}
        offsets, total = _laid_out({name: value.nbytes for name, value in dense.items()})
        block = xp.empty(total, np.uint8)
        for name, value in dense.items():
            if value.nbytes:
                block[offsets[name] : offsets[name] + value.nbytes] = value.reshape(-1).view(np.uint8)
        host = torch.empty(total, dtype=torch.uint8, pin_memory=self._backend.pins)
        host.copy_(torch.from_dlpack(block), non_blocking=True)
        flat = host.numpy()
        return {
            name: flat[offsets[name] : offsets[name] + value.nbytes].view(value.dtype).reshape(value.shape)
            for name, value in dense.items()
        }


def _laid_out(lengths: Mapping[str, Bytes]) -> tuple[dict[str, int], Bytes]:
    """Where each piece begins, aligned, and what all take: at least a byte, since nothing cannot be copied."""
    offsets, at = {}, 0
    for name, length in lengths.items():
        offsets[name] = at
        at += -(-length // ALIGNMENT) * ALIGNMENT
    return offsets, max(at, 1)


class CupyLibrary:
    """The real one."""

    def __init__(self, ordinal: int) -> None:
        """ImportError without CuPy."""
        import cupy
        import torch

        self.xp = cupy
        self._cupy, self._torch, self._ordinal = cupy, torch, ordinal
        # Whatever draws on it draws on the pool of torch's that its thread draws on.
        self._allocate = cupy.cuda.PythonFunctionAllocator(self._malloc, self._free).malloc

    def current(self) -> Stream:
        """See `Library`."""
        stream: Stream = self._cupy.cuda.Stream.from_external(self._torch.cuda.current_stream(self._ordinal))
        return stream

    @contextmanager
    def computing(self, stream: Any) -> Iterator[None]:
        """See `Library`."""
        with self._cupy.cuda.Device(self._ordinal), stream, self._cupy.cuda.using_allocator(self._allocate):
            yield

    def _malloc(self, size_bytes: Bytes, device: int) -> int:
        # torch rounds nothing to nothing, which CuPy would take for a failure.
        try:
            address: int = self._torch.cuda.caching_allocator_alloc(
                max(size_bytes, 1), device, self._torch.cuda.current_stream(device)
            )
        except self._torch.OutOfMemoryError as full:
            raise MemoryError(str(full)) from full
        return address

    def _free(self, address: int, _device: int) -> None:
        if address:
            self._torch.cuda.caching_allocator_delete(address)
