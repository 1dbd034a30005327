"""Inputs for the runs that no caller asked for: warm-up, verification of the batch axes, the first profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from gpu_sharing.runtimes.base import ArtefactRefused, LoadedModel, Run, Tensors
from gpu_sharing.tensors import NUMPY_NAMES, Signature, TensorSpec, WarmupTensor, byte_count

EXTENTS_TRIED: tuple[int, ...] = (16, 32, 1, 64, 512)
"""Extents to try, in this order, for a dimension that nobody has said anything about."""

Ranges = Mapping[str, tuple[int, int | None]]
"""The least and largest legal extent, by symbol."""


@runtime_checkable
class Bounded(Protocol):
    """A model that knows which extents its symbols may have, and which one its last good made-up run used."""

    ranges: Ranges
    preferred_extent: int


def check_warmup(signature: Signature, warmup: Sequence[WarmupTensor]) -> None:
    """Raises ArtefactRefused where the operator's warm-up names no input, or its bytes do not fill its shape."""
    known = {spec.name: spec for spec in signature.inputs}
    for tensor in warmup:
        if tensor.name not in known:
            raise ArtefactRefused(f"warmup: no input is named {tensor.name!r}; the model takes {', '.join(known)}")
        spec = known[tensor.name]
        if len(tensor.shape) != len(spec.shape) or any(extent < 0 for extent in tensor.shape):
            raise ArtefactRefused(f"warmup: {tensor.name!r}: shape {list(tensor.shape)} does not fit {_written(spec)}")
        wanted = byte_count(spec.datatype, tensor.shape)
        if tensor.data and wanted is None:
            raise ArtefactRefused(f"warmup: {tensor.name!r}: data cannot be given for BYTES")
        if tensor.data and len(tensor.data) != wanted:
            raise ArtefactRefused(f"warmup: {tensor.name!r}: {len(tensor.data)} bytes where its shape holds {wanted}")


def requests(warmup: Sequence[WarmupTensor]) -> list[tuple[WarmupTensor, ...]]:
    """The warm-up requests: the n-th has the n-th tensor of each name, and the last of those named less often. One at least."""
    named: dict[str, list[WarmupTensor]] = {}
    for tensor in warmup:
        named.setdefault(tensor.name, []).append(tensor)
    count = max(map(len, named.values()), default=1)
    return [tuple(each[min(index, len(each) - 1)] for each in named.values()) for index in range(count)]


def made_up(
    signature: Signature,
    rows: int,
    *,
    warmup: Sequence[WarmupTensor] = (),
    ranges: Ranges | None = None,
    extent: int = EXTENTS_TRIED[0],
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Inputs of `rows` rows: the operator's where given (each row the same), else made up.

    Made-up integers are ones, which are legal as token ids, masks and indices of nearly every model; floats differ
    from row to row, so that a model whose rows influence one another can be told.
    """
    # Named more than once, a tensor belongs to as many warm-up requests: the first of them counts here.
    given = {tensor.name: tensor for tensor in reversed(warmup)}
    chance = np.random.default_rng(seed)
    inputs = {}
    for spec in signature.inputs:
        if spec.name in given:
            inputs[spec.name] = _repeated(spec, given[spec.name], rows)
        elif not spec.optional:
            inputs[spec.name] = _filled(spec.datatype, extents_of(spec, rows, ranges or {}, extent), chance)
    return inputs


def extents_of(spec: TensorSpec, rows: int, ranges: Ranges, extent: int) -> tuple[int, ...]:
    """A legal shape: `rows` along the batch axis, else `extent` moved into the symbol's range."""
    shape = []
    for axis, fixed in enumerate(spec.shape):
        least, most = ranges.get(spec.symbols[axis], (1, None)) if spec.symbols else (1, None)
        free = max(extent, least, 1) if most is None else max(min(extent, most), least, 1)
        shape.append(rows if axis == spec.batch_axis else free if fixed is None else fixed)
    return tuple(shape)


def rows_of(signature: Signature, inputs: Tensors, start: int, stop: int) -> dict[str, np.ndarray]:
    """The rows from `start` to `stop` of a batch; inputs without a batch axis whole."""
    cut = {}
    for spec in signature.inputs:
        if spec.name in inputs:
            whole = inputs[spec.name]
            if spec.batch_axis is not None:
                whole = whole[(slice(None),) * spec.batch_axis + (slice(start, stop),)]
            cut[spec.name] = whole
    return cut


def finish(run: Run) -> dict[str, np.ndarray]:
    """Runs a batch to its end, past every boundary."""
    try:
        while True:
            next(run)
    except StopIteration as ended:
        return ended.value


def attempts(warmup: Sequence[WarmupTensor]) -> Iterator[int]:
    """The extents worth trying: one where the operator gave the inputs, else several."""
    yield from EXTENTS_TRIED[:1] if warmup else EXTENTS_TRIED


def bounds(model: LoadedModel) -> tuple[Ranges, int]:
    """The ranges of a model's symbols and the extent that is known to run."""
    if isinstance(model, Bounded):
        return model.ranges, model.preferred_extent
    return {}, EXTENTS_TRIED[0]


def _repeated(spec: TensorSpec, tensor: WarmupTensor, rows: int) -> np.ndarray:
    kind = NUMPY_NAMES[spec.datatype]
    if spec.datatype == "BYTES":
        one = np.full(tensor.shape, b"", dtype=object)
    elif tensor.data:
        one = np.frombuffer(tensor.data, dtype=kind).reshape(tensor.shape)
    else:
        one = np.zeros(tensor.shape, dtype=kind)
    return one if spec.batch_axis is None else np.concatenate([one] * rows, axis=spec.batch_axis)


def _filled(datatype: str, shape: tuple[int, ...], chance: np.random.Generator) -> np.ndarray:
    if datatype == "BYTES":
        return np.full(shape, b"a", dtype=object)
    if datatype == "BF16":
        # The upper half of a float32 is a bfloat16.
        return (chance.random(shape, dtype=np.float32).reshape(shape).view(np.uint32) >> 16).astype(np.uint16)
    if datatype.startswith("FP"):
        return np.asarray(chance.random(shape), dtype=NUMPY_NAMES[datatype]).reshape(shape)
    return np.ones(shape, dtype=NUMPY_NAMES[datatype])


def _written(spec: TensorSpec) -> str:
    return f"[{', '.join('?' if extent is None else str(extent) for extent in spec.shape)}]"
