"""From requests' bytes in the executor's arena to the inputs of one batch."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from gpu_sharing.tensors import NUMPY_NAMES, Signature, TensorSpec
from gpu_sharing.worker.messages import Submit, TensorRef

_DTYPES = {datatype: np.dtype(name) for datatype, name in NUMPY_NAMES.items()}
_LENGTH = struct.Struct("<I")


class TensorInvalid(ValueError):
    """A tensor's bytes are not what its spec says. The message names the tensor."""


def join(signature: Signature, requests: Sequence[Submit], arena: memoryview) -> dict[str, np.ndarray]:
    """The inputs of a batch: the requests' tensors joined along each one's batch axis, in order.

    A batch of one reads where the executor wrote. Inputs without a batch axis are the first request's: equal shape keys say
    that they are equal in all. Raises TensorInvalid.
    """
    first = requests[0]
    inputs: dict[str, np.ndarray] = {}
    for place, ref in enumerate(first.inputs):
        spec = signature.inputs[ref.index]
        if len(requests) == 1 or spec.batch_axis is None:
            inputs[spec.name] = read(arena, ref, spec)
        else:
            parts = [read(arena, request.inputs[place], spec) for request in requests]
            inputs[spec.name] = np.concatenate(parts, axis=spec.batch_axis)
    return inputs


def read(arena: memoryview, ref: TensorRef, spec: TensorSpec) -> np.ndarray:
    """One tensor: a view of the arena, except for BYTES, and where the bytes are not aligned. Raises TensorInvalid."""
    if spec.datatype == "BYTES":
        return _read_bytes(arena[ref.offset : ref.offset + ref.length_bytes], ref, spec)
    dtype = _DTYPES[spec.datatype]
    try:
        flat = np.frombuffer(arena, dtype, ref.length_bytes // dtype.itemsize, ref.offset)
        tensor = flat.reshape(ref.shape)
    except ValueError as error:
        raise TensorInvalid(
            f"input {spec.name!r}: {ref.length_bytes} bytes are not {list(ref.shape)}: {error}"
        ) from error
    return tensor if tensor.flags.aligned else tensor.copy()


def _read_bytes(data: memoryview, ref: TensorRef, spec: TensorSpec) -> np.ndarray:
    elements: list[bytes] = []
    position = 0
    while position < len(data):
        end = position + _LENGTH.size
        if end > len(data):
            raise TensorInvalid(f"input {spec.name!r}: ends inside the length of element {len(elements)}")
        (length,) = _LENGTH.unpack_from(data, position)
        if end + length > len(data):
            raise TensorInvalid(f"input {spec.name!r}: ends inside element {len(elements)}")
        elements.append(bytes(data[end : end + length]))
        position = end + length
    tensor = np.empty(len(elements), dtype=object)
    tensor[:] = elements
    try:
        return tensor.reshape(ref.shape)
    except ValueError as error:
        raise TensorInvalid(f"input {spec.name!r}: {len(elements)} elements are not {list(ref.shape)}") from error
