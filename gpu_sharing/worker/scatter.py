"""From a batch's outputs to each request's own, in the worker's arena."""

from __future__ import annotations

import struct
import threading
from collections.abc import Mapping, Sequence

import numpy as np

from gpu_sharing.memory.arena import Arena
from gpu_sharing.memory.extents import ALIGNMENT_BYTES
from gpu_sharing.tensors import NUMPY_NAMES, Signature, TensorSpec
from gpu_sharing.units import Bytes
from gpu_sharing.worker.messages import TensorRef

_DTYPES = {datatype: np.dtype(name) for datatype, name in NUMPY_NAMES.items()}
_LENGTH = struct.Struct("<I")
_BF16_INFINITY = 0x7F80


class OutputInvalid(Exception):
    """A model gave something else than its signature says. The message names the output."""


class OutputsFull(Exception):
    """The arena has no room for a call's outputs. asked_bytes, free_bytes, capacity_bytes: the numbers."""

    def __init__(self, asked_bytes: Bytes, free_bytes: Bytes, capacity_bytes: Bytes) -> None:
        super().__init__(f"the outputs need {asked_bytes} bytes; {free_bytes} of {capacity_bytes} are free")
        self.facts = {
            "asked_bytes": str(asked_bytes),
            "free_bytes": str(free_bytes),
            "capacity_bytes": str(capacity_bytes),
        }


class BatchOutputs:
    """What a batch's run returned, as the signature promises it."""

    def __init__(self, signature: Signature, outputs: object, rows: int) -> None:
        """outputs: as the model gave them. Raises OutputInvalid where they are not what its signature says."""
        if not isinstance(outputs, Mapping):
            raise OutputInvalid(f"the model returned {type(outputs).__name__}, not its outputs by name")
        self._specs = signature.outputs
        self._tensors = [_checked(spec, outputs.get(spec.name), rows) for spec in signature.outputs]
        self._nan: dict[int, bool] = {}

    def part(self, indices: Sequence[int], start: int, stop: int) -> list[tuple[int, str, np.ndarray]]:
        """What one request gets: its rows of each output wanted, for `Outputs.put`.

        Raises OutputInvalid where one of them holds NaN: a model that has lost its way says so, rather than give nonsense.
        """
        wanted = []
        for index in indices:
            spec = self._specs[index]
            part = rows_of(spec, self._tensors[index], start, stop)
            if self._any_nan(index) and holds_nan(part, spec.datatype):
                raise OutputInvalid(f"output {spec.name!r} holds NaN (not a number)")
            wanted.append((index, spec.datatype, part))
        return wanted

    def _any_nan(self, index: int) -> bool:
        """Whether anybody's rows hold NaN: looked at once for the whole batch, which hardly costs more than one row's."""
        found = self._nan.get(index)
        if found is None:
            found = self._nan[index] = holds_nan(self._tensors[index], self._specs[index].datatype)
        return found


def holds_nan(tensor: np.ndarray, datatype: str) -> bool:
    """Whether any element is NaN."""
    if datatype == "BF16":
        return bool(((tensor & 0x7FFF) > _BF16_INFINITY).any())
    # The least of some numbers is NaN where one of them is: several times faster than looking at each.
    return datatype.startswith("FP") and tensor.size > 0 and bool(np.isnan(tensor.min()))


def rows_of(spec: TensorSpec, output: np.ndarray, start: int, stop: int) -> np.ndarray:
    """One request's part of an output: its rows along the batch axis; all of it where there is none."""
    if spec.batch_axis is None or (start == 0 and stop == output.shape[spec.batch_axis]):
        return output
    return output[(slice(None),) * spec.batch_axis + (slice(start, stop),)]


class Outputs:
    """The arena that calls' outputs lie in until the executor releases them. Any thread."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._lock = threading.Lock()
        self._offsets: dict[int, int] = {}

    def put(self, call: int, tensors: Sequence[tuple[int, str, np.ndarray]], tenant: str = "") -> tuple[TensorRef, ...]:
        """Copies a call's outputs, given as (index, data type, tensor), into one extent. OutputsFull where none is free."""
        ready = [(index, _flat(datatype, tensor), tensor.shape) for index, datatype, tensor in tensors]
        lengths = [len(data) if isinstance(data, bytes) else data.nbytes for _, data, _ in ready]
        padded_bytes = sum(-(-length // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for length in lengths)
        start = self._reserve(call, padded_bytes, tenant)
        refs = []
        view = self._arena.view
        for (index, data, shape), length in zip(ready, lengths, strict=True):
            if isinstance(data, bytes):
                view[start : start + length] = data
            elif length:
                np.frombuffer(view, data.dtype, data.size, start).reshape(shape)[...] = data
            refs.append(TensorRef(index, tuple(shape), start, length))
            start += -(-length // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return tuple(refs)

    def release(self, call: int) -> None:
        """The call's outputs have been read. Nothing happens where it has none."""
        with self._lock:
            offset = self._offsets.pop(call, None)
            if offset is not None:
                self._arena.free(offset)

    def _reserve(self, call: int, length_bytes: Bytes, tenant: str) -> int:
        with self._lock:
            offset = self._arena.allocate(length_bytes, self._arena.owner(tenant))
            if offset is None:
                free_bytes = self._arena.capacity_bytes - self._arena.used_bytes
                raise OutputsFull(length_bytes, free_bytes, self._arena.capacity_bytes)
            self._offsets[call] = offset
            return offset


def _checked(spec: TensorSpec, output: object, rows: int) -> np.ndarray:
    if not isinstance(output, np.ndarray):
        what = "is missing" if output is None else f"is {type(output).__name__}, not an array"
        raise OutputInvalid(f"output {spec.name!r} {what}")
    if output.dtype != _DTYPES[spec.datatype]:
        raise OutputInvalid(f"output {spec.name!r} is {output.dtype}, not {spec.datatype}")
    expected = [rows if axis == spec.batch_axis else extent for axis, extent in enumerate(spec.shape)]
    fits = len(expected) == output.ndim and all(
        want is None or want == have for want, have in zip(expected, output.shape, strict=True)
    )
    if not fits:
        wanted = [-1 if extent is None else extent for extent in expected]
        raise OutputInvalid(f"output {spec.name!r} has the shape {list(output.shape)}, not {wanted}")
    return output


def _flat(datatype: str, tensor: np.ndarray) -> np.ndarray | bytes:
    """What is copied: the tensor itself; for BYTES each element behind its length. OutputInvalid for elements not bytes."""
    if datatype != "BYTES":
        return tensor
    parts = []
    for element in tensor.ravel():
        if not isinstance(element, bytes):
            raise OutputInvalid(f"an element of a BYTES output is {type(element).__name__}, not bytes")
        parts.append(_LENGTH.pack(len(element)))
        parts.append(element)
    return b"".join(parts)
