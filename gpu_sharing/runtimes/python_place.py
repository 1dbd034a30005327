"""What an operator's Python model gets to compute with: where it is, a stream, a pool, and tensors that are there."""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from gpu_sharing.runtimes.ragged import Ragged, pad, starts_of, unpad
from gpu_sharing.tensors import NUMPY_NAMES, TensorSpec
from gpu_sharing.units import Bytes

ROW_ITEMS: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind) for name, kind in NUMPY_NAMES.items() if name not in ("BYTES", "BOOL")
}
"""What the elements of a BYTES tensor may be rows of."""


class Stream(Protocol):
    """Where work is queued. ptr: of the CUDA stream, for libraries; 0 on a processor, which queues nothing."""

    ptr: int

    def synchronize(self) -> None:
        """Waits for what is queued."""
        ...


class Pool(Protocol):
    """Memory with a budget: MemoryError beyond it, for this model alone. limit_bytes: None: there is none."""

    @property
    def limit_bytes(self) -> Bytes | None: ...

    @property
    def used_bytes(self) -> Bytes: ...

    def empty(self, shape: int | Sequence[int], dtype: Any) -> Any:
        """An array of this place's library, drawn from the pool; its content is whatever was there."""
        ...


class Place:
    """A processor: arrays are NumPy's, and the tensors of requests lie where the executor wrote them, not to be written to.

    device: "cpu", "cuda:0". xp: numpy, or cupy on a GPU. threads: of the processor, that a slice may use. compute_units: of the lane.
    """

    device = "cpu"
    xp: Any = np

    def __init__(self, *, threads: int = 1, compute_units: int = 1, limit_bytes: Bytes | None = None) -> None:
        """limit_bytes: of the pool."""
        self.threads, self.compute_units = threads, compute_units
        self.pool: Pool = HostPool(limit_bytes)

    @property
    def stream(self) -> Stream:
        """Of the calling thread, within a load or a slice."""
        return _Nothing()

    def torch(self, array: Any) -> Any:
        """A torch tensor over the same memory. BF16 arrays are bits: `.view(torch.bfloat16)`."""
        import torch

        return torch.from_dlpack(array if not isinstance(array, np.ndarray) or array.flags.writeable else array.copy())

    def array(self, tensor: Any) -> Any:
        """An array over a torch tensor's memory. torch's bfloat16 comes as its bits."""
        import torch

        dense = tensor.detach().contiguous()
        return self.xp.from_dlpack(dense.view(torch.uint16) if dense.dtype is torch.bfloat16 else dense)

    # The runtime's side.

    def working(self) -> AbstractContextManager[Any]:
        """Within it, what this thread launches and allocates is the model's."""
        return contextlib.nullcontext()

    def settle(self) -> None:
        """Waits for what this thread has launched."""
        self.stream.synchronize()

    def arrive(self, pieces: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Arrays of this place with what those on the processor hold."""
        return dict(pieces)

    def leave(self, pieces: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Arrays on the processor: filled once the stream has come so far."""
        return {name: np.asarray(value) for name, value in pieces.items()}


class _Nothing:
    ptr = 0

    def synchronize(self) -> None:
        """Nothing is queued."""


class HostPool:
    """Counts what is drawn by `empty`, until it is collected. What a model allocates by itself is not counted."""

    def __init__(self, limit_bytes: Bytes | None) -> None:
        self.limit_bytes, self.used_bytes = limit_bytes, 0
        # Arrays may be collected anywhere, also while this very thread holds the lock.
        self._lock = threading.RLock()

    def empty(self, shape: int | Sequence[int], dtype: Any) -> np.ndarray:
        """See `Pool`."""
        size_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        with self._lock:
            if self.limit_bytes is not None and self.used_bytes + size_bytes > self.limit_bytes:
                raise MemoryError(
                    f"{size_bytes} bytes asked for, {self.used_bytes} of the pool's {self.limit_bytes} are taken"
                )
            made = np.empty(shape, dtype)
            self.used_bytes += size_bytes
        weakref.finalize(made, self._give_back, size_bytes)
        return made

    def _give_back(self, size_bytes: Bytes) -> None:
        with self._lock:
            self.used_bytes -= size_bytes


Rows = Mapping[str, np.dtype[Any]]
"""What the elements of BYTES tensors are rows of, by the tensor's name; those that are not here: of bytes."""

_BYTE = np.dtype("u1")


def brought(place: Place, specs: Sequence[TensorSpec], rows: Rows, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A batch's inputs as the model gets them: all in one go; rows of different lengths padded where it computes."""
    ragged = {spec.name for spec in specs if spec.datatype == "BYTES" and spec.name in inputs}
    pieces: dict[str, np.ndarray] = {}
    lengths: dict[str, np.ndarray] = {}
    for name, value in inputs.items():
        if name in ragged:
            pieces[name], lengths[name] = _side_by_side(value, rows.get(name, _BYTE))
            pieces[_starts(name)] = starts_of(lengths[name])
        else:
            pieces[name] = value
    there = place.arrive(pieces)
    given: dict[str, Any] = {}
    for name, value in inputs.items():
        given[name] = there[name]
        if name in ragged:
            longest = int(lengths[name].max(initial=0))
            padded = pad(there[name], there[_starts(name)], longest)
            given[name] = Ragged(padded, lengths[name], value.shape)
    return given


def taken_back(place: Place, specs: Sequence[TensorSpec], outputs: Any) -> dict[str, np.ndarray]:
    """A batch's outputs on the processor. Waits for the device where one of them is of rows of different lengths.

    TypeError, ValueError, naming the output, for what cannot be one.
    """
    if not isinstance(outputs, Mapping):
        raise TypeError(f"the model returned {type(outputs).__name__}, not its outputs by name")
    pieces: dict[str, Any] = {}
    ragged: dict[str, Ragged] = {}
    strings: dict[str, np.ndarray] = {}
    for spec in specs:
        if spec.name not in outputs:
            continue
        value = outputs[spec.name]
        if isinstance(value, Ragged):
            ragged[spec.name] = value
            pieces[spec.name] = _flat(place, spec.name, value)
        elif spec.datatype == "BYTES":
            strings[spec.name] = np.asarray(value, dtype=object)
        else:
            pieces[spec.name] = value if hasattr(value, "dtype") else place.xp.asarray(value)
    arrays = place.leave(pieces)
    if ragged:
        place.settle()
    for name, value in ragged.items():
        arrays[name] = _taken_apart(arrays[name], value)
    return {**arrays, **strings}


def _side_by_side(value: np.ndarray, item: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The elements' items in one array, and how many each has; an element that ends within an item is filled up with zeros."""
    elements: list[bytes] = value.ravel().tolist()
    size = item.itemsize
    whole = [each if len(each) % size == 0 else each + bytes(-len(each) % size) for each in elements]
    lengths = np.array([len(each) // size for each in whole], dtype=np.int64)
    return np.frombuffer(b"".join(whole), item), lengths


def _flat(place: Place, name: str, value: Ragged) -> Any:
    lengths = np.asarray(value.lengths, dtype=np.int64)
    if value.padded.ndim != 2 or len(lengths) != value.padded.shape[0]:
        raise ValueError(f"output {name!r}: {len(lengths)} lengths for rows of the shape {list(value.padded.shape)}")
    if int(lengths.max(initial=0)) > value.padded.shape[1]:
        raise ValueError(
            f"output {name!r}: a row of {int(lengths.max())} items in an array of {value.padded.shape[1]} columns"
        )
    starts = starts_of(lengths)
    there = place.arrive({"starts": starts})["starts"]
    return unpad(value.padded, there, int(starts[-1]))


def _taken_apart(flat: np.ndarray, value: Ragged) -> np.ndarray:
    starts = starts_of(value.lengths)
    made = np.empty(len(starts) - 1, dtype=object)
    made[:] = [flat[start:stop].tobytes() for start, stop in itertools.pairwise(starts)]
    return made if value.shape is None else made.reshape(value.shape)


def _starts(name: str) -> str:
    # No tensor's name holds this character.
    return f"{name}\0starts"


PlaceFor = Callable[..., Place]
"""Makes the place of one model: with `threads` and `compute_units`."""
