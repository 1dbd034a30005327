"""Where a torch model's tensors live on a GPU: in by one copy, out by one copy, and graphs captured and replayed. Imports without one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from gpu_sharing.memory.gate import GATE
from gpu_sharing.runtimes.lent import LentInputs
from gpu_sharing.runtimes.torch_tensors import DATATYPES
from gpu_sharing.units import Bytes, ComputeUnits

ALIGNMENT: Bytes = 256
"""Of each tensor in a block, as cudaMalloc gives it: vectorised kernels want 16, matrix libraries more."""

_TORCH_TYPES = {name: dtype for dtype, name in DATATYPES.items()}


class Graph(Protocol):
    """Captured work, to be replayed on the stream it was captured on."""

    def replay(self) -> None: ...


class Backend(Protocol):
    """What this room does with CUDA through torch; a double of it runs on a processor."""

    device: str
    pins: bool

    def pool(self) -> Any:
        """A memory pool of its own, for one chain of graphs."""
        ...

    def pool_bytes(self, pool: Any) -> Bytes:
        """What the pool holds of the device's memory."""
        ...

    def allocating(self, pool: Any) -> Any:
        """A context in which this thread's tensors come from the pool."""
        ...

    def capture(self, pool: Any, work: Callable[[], Any]) -> tuple[Graph, Any]:
        """Captures what `work` launches, without running it: the graph, and what `work` returned, which replays fill."""
        ...

    def synchronize(self) -> None:
        """Waits until the calling thread's current stream is empty."""
        ...

    def on_lane(self) -> bool:
        """Whether the calling thread is the lane's, the only one that captures and replays."""
        ...


class Block(NamedTuple):
    """Tensors side by side in one piece of memory. places: of each, its name, type, shape, offset and length in bytes."""

    places: tuple[tuple[str, torch.dtype, tuple[int, ...], int, int], ...]
    size_bytes: Bytes

    @classmethod
    def of(cls, tensors: Sequence[tuple[str, torch.dtype, Sequence[int]]]) -> Block:
        """Laid out in this order, each aligned."""
        places, offset = [], 0
        for name, dtype, shape in tensors:
            length = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            places.append((name, dtype, tuple(shape), offset, length))
            offset += -(-length // ALIGNMENT) * ALIGNMENT
        return cls(tuple(places), offset)

    def views(self, memory: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors, in memory of at least `size_bytes` bytes."""
        return {
            name: memory[start : start + length].view(dtype).reshape(shape)
            for name, dtype, shape, start, length in self.places
        }


def block_of(inputs: Mapping[str, np.ndarray], datatypes: Mapping[str, str]) -> Block:
    """Of a batch's inputs."""
    return Block.of([(name, _TORCH_TYPES[datatypes[name]], value.shape) for name, value in inputs.items()])


def staged(backend: Backend, block: Block, inputs: Mapping[str, np.ndarray]) -> torch.Tensor:
    """The inputs gathered in pinned memory: what one asynchronous copy brings in. torch keeps it until that copy has ended.

    Between tensors it is zero: torch gives such memory to everybody in turn, and a program can look beyond the view that it gets.
    """
    memory = torch.empty(block.size_bytes, dtype=torch.uint8, pin_memory=backend.pins)
    flat = memory.numpy()
    for name, _, shape, start, length in block.places:
        if length and not (isinstance(inputs, LentInputs) and inputs.is_whole(name)):
            source = inputs[name]
            flat[start : start + length].view(source.dtype).reshape(shape)[...] = source
            flat[start + length : start + length + -length % ALIGNMENT] = 0
    return memory


def bring_in(backend: Backend, block: Block, inputs: Mapping[str, np.ndarray], entry: torch.Tensor) -> None:
    """Fills `entry`, of the block's size, on the calling thread's stream: from the host by one copy, and with what lies on the
    device already."""
    if not isinstance(inputs, LentInputs):
        entry.copy_(staged(backend, block, inputs), non_blocking=True)
        return
    if not all(inputs.is_whole(name) for name in inputs):
        entry.copy_(staged(backend, block, inputs), non_blocking=True)
    for name, _, _, start, _ in block.places:
        for piece in inputs.lent.get(name, ()):
            if piece.length_bytes:
                begins = start + piece.at
                source = torch.as_tensor(piece.bytes, device=backend.device)
                entry[begins : begins + piece.length_bytes].copy_(source, non_blocking=True)


def brought_back(backend: Backend, outputs: Sequence[tuple[str, Any]]) -> dict[str, np.ndarray]:
    """Arrays over pinned memory that one asynchronous copy fills: they are there once the stream has come so far."""
    tensors = [(name, value) for name, value in outputs if isinstance(value, torch.Tensor)]
    dense = {name: value.detach().resolve_neg().resolve_conj().contiguous() for name, value in tensors}
    block = Block.of([(name, value.dtype, value.shape) for name, value in dense.items()])
    host = torch.empty(block.size_bytes, dtype=torch.uint8, pin_memory=backend.pins)
    if block.size_bytes:
        host.copy_(_packed(block, dense), non_blocking=True)
    views = block.views(host)
    arrays = {name: _array(views[name]) for name, _ in tensors}
    # Plain numbers are on the processor already.
    return {name: arrays[name] if name in arrays else np.asarray(value) for name, value in outputs}


def _packed(block: Block, dense: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if len(dense) == 1:
        (only,) = dense.values()
        flat = only.reshape(-1).view(torch.uint8)
        if flat.numel() == block.size_bytes:
            return flat
    device = next(iter(dense.values())).device
    memory = torch.empty(block.size_bytes, dtype=torch.uint8, device=device)
    for name, view in block.views(memory).items():
        view.copy_(dense[name])
    return memory


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view(torch.uint16).numpy() if tensor.dtype is torch.bfloat16 else tensor.numpy()


CAPTURING = threading.Lock()
"""One capture at a time in a process: what libraries are told of SMs holds for all their threads."""


class CudaBackend:
    """The real one, for one lane. The thread that calls `enter_lane` is the lane's."""

    pins = True

    def __init__(self, compute: int, loading: int, *, sms: ComputeUnits, ordinal: int = 0) -> None:
        """compute, loading: the lane's streams, as numbers. sms: that they run on."""
        self.device = f"cuda:{ordinal}"
        self._compute = torch.cuda.ExternalStream(compute, device=ordinal)
        self._loading = torch.cuda.ExternalStream(loading, device=ordinal)
        self._ordinal, self._sms = ordinal, sms
        self._lane_thread: int | None = None

    def enter_lane(self) -> None:
        """This thread's work goes to the stream of slices from now on."""
        self._lane_thread = threading.get_ident()
        self._enter(self._compute)

    def enter_loading(self) -> None:
        """This thread's work goes to the stream of loads from now on."""
        self._enter(self._loading)

    def _enter(self, stream: Any) -> None:
        torch.cuda.set_device(self._ordinal)
        torch.cuda.set_stream(stream)
        self._warm_libraries()

    def _warm_libraries(self) -> None:
        """Matrix libraries set memory aside for each thread and stream when they are first used, and keep it: not on a tenant's pool."""
        small = torch.ones(16, 16, device=self.device)
        with CAPTURING, torch.inference_mode():
            before = torch.backends.cuda.preferred_blas_library()
            for name in ("cublas", "cublaslt"):
                torch.backends.cuda.preferred_blas_library(name)
                torch.addmm(small[0], small, small)
                torch.mm(small, small)
            torch.backends.cuda.preferred_blas_library(before)
        self.synchronize()

    def on_lane(self) -> bool:
        """See `Backend`."""
        return threading.get_ident() == self._lane_thread

    def synchronize(self) -> None:
        """See `Backend`."""
        torch.cuda.current_stream(self._ordinal).synchronize()

    def reclaim(self) -> None:
        """Has torch give back what it keeps of pools that are gone. Makes the driver wait for the device: at loads and unloads."""
        torch.cuda.empty_cache()

    def pool(self) -> Any:
        """See `Backend`."""
        return torch.cuda.MemPool()

    def pool_bytes(self, pool: Any) -> Bytes:
        """See `Backend`."""
        return sum(int(segment["total_size"]) for segment in pool.snapshot())

    @contextmanager
    def allocating(self, pool: Any) -> Iterator[None]:
        """See `Backend`."""
        with GATE, torch.cuda.use_mem_pool(pool, device=self._ordinal):
            yield

    def capture(self, pool: Any, work: Callable[[], Any]) -> tuple[Graph, Any]:
        """See `Backend`. Quietly: torch.cuda.graph would wait for the whole device, and give its memory back, first."""
        graph = torch.cuda.CUDAGraph()
        with CAPTURING, self._told_of_sms(), GATE:
            graph.capture_begin(pool=pool.id, capture_error_mode="thread_local")
            try:
                made = work()
            except BaseException:
                self._end_broken(graph)
                raise
            graph.capture_end()
        return graph, made

    @staticmethod
    def _end_broken(graph: Any) -> None:
        # A capture that broke is ended all the same, or its stream would never run anything again.
        try:
            graph.capture_end()
        except RuntimeError:
            return

    @contextmanager
    def _told_of_sms(self) -> Iterator[None]:
        """Matrix libraries size their grids for the SMs of the lane, not for the device's. Private in torch: where it is there."""
        carve = getattr(torch._C, "_set_sm_carveout_experimental", None)
        total = torch.cuda.get_device_properties(self._ordinal).multi_processor_count
        if carve is None or self._sms >= total:
            yield
            return
        before = torch.backends.cuda.preferred_blas_library()
        torch.backends.cuda.preferred_blas_library("cublaslt")
        carve(total - self._sms)
        try:
            yield
        finally:
            carve(None)
            torch.backends.cuda.preferred_blas_library(before)
