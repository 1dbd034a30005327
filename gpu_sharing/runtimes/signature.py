"""Which axis of each tensor requests are joined along: told, inferred from the symbols, then verified on what runs gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from gpu_sharing.runtimes.base import ArtefactRefused
from gpu_sharing.tensors import Signature, TensorSpec

DEFAULT_MAX_ROWS = 64
"""Rows that a batch may hold where neither the operator nor the artefact says."""

Shapes = Mapping[str, Sequence[int]]


def infer(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    batch_axes: Mapping[str, int],
    max_rows: int | None = None,
) -> Signature:
    """The signature with a batch axis for each tensor that has one, as far as names and symbols tell.

    inputs, outputs: specs without batch axes. batch_axes: what the operator said, by tensor name; -1: none.
    max_rows: the limit to use; None: DEFAULT_MAX_ROWS; 0: no batching, whatever the axes.
    Raises ArtefactRefused where `batch_axes` names a tensor or an axis that does not exist or cannot vary.
    """
    _check_told(batch_axes, [*inputs, *outputs])
    symbol = _batch_symbol(inputs, batch_axes)
    taken = [_with_axis(spec, batch_axes, symbol) for spec in inputs]
    given = [_with_axis(spec, batch_axes, symbol) for spec in outputs]
    rows = DEFAULT_MAX_ROWS if max_rows is None else max_rows
    signature = Signature(inputs=tuple(taken), outputs=tuple(given), max_batch_size=rows)
    if rows == 0 or all(spec.batch_axis is None for spec in taken):
        return unbatched(signature)
    return signature


def unbatched(signature: Signature) -> Signature:
    """The same signature for requests that run one at a time."""
    return Signature(
        inputs=tuple(msgspec.structs.replace(spec, batch_axis=None) for spec in signature.inputs),
        outputs=tuple(msgspec.structs.replace(spec, batch_axis=None) for spec in signature.outputs),
    )


def verify(signature: Signature, observed: Mapping[int, Shapes], *, told: Mapping[str, int]) -> tuple[Signature, str]:
    """Holds the outputs of real runs against the signature.

    observed: output shapes by the rows that were run, at least two counts that differ.
    told: the operator's axes, which stand where the runs agree with them.
    Returns the signature with each output's axis as observed, and ""; or one without batching, and the reason.
    """
    outputs = []
    for spec in signature.outputs:
        following = _axes_that_follow(spec.name, observed)
        expected = spec.batch_axis
        if expected is not None and expected not in following:
            seen = ", ".join(f"{rows} rows gave {list(shapes[spec.name])}" for rows, shapes in sorted(observed.items()))
            return unbatched(signature), f"output {spec.name!r}: axis {expected} does not follow the rows ({seen})"
        if told.get(spec.name) != -1 and expected is None:
            if len(following) != 1:
                what = "no axis follows" if not following else f"axes {following} all follow"
                return unbatched(
                    signature
                ), f"output {spec.name!r}: {what} the rows, so a batch could not be taken apart"
            expected = following[0]
        outputs.append(msgspec.structs.replace(spec, batch_axis=expected))
    if not outputs or all(spec.batch_axis is None for spec in outputs):
        return unbatched(signature), "no output has a batch axis"
    return msgspec.structs.replace(signature, outputs=tuple(outputs)), ""


def unverified(signature: Signature, told: Mapping[str, int]) -> tuple[Signature, str]:
    """The signature where no run could be made: batching only where every output's axis is known from the artefact."""
    lacking = [spec.name for spec in signature.outputs if not _is_named(spec) and spec.name not in told]
    if lacking and signature.max_batch_size:
        return unbatched(
            signature
        ), f"output {lacking[0]!r}: its batch axis is not named, and no warm-up run could tell"
    return signature, ""


def _is_named(spec: TensorSpec) -> bool:
    return spec.batch_axis is not None and bool(spec.symbols) and bool(spec.symbols[spec.batch_axis])


def _axes_that_follow(name: str, observed: Mapping[int, Shapes]) -> list[int]:
    ranks = {len(shapes[name]) for shapes in observed.values()}
    if len(ranks) != 1:
        return []
    return [axis for axis in range(ranks.pop()) if all(shapes[name][axis] == rows for rows, shapes in observed.items())]


def _check_told(batch_axes: Mapping[str, int], specs: Sequence[TensorSpec]) -> None:
    known = {spec.name: spec for spec in specs}
    for name, axis in batch_axes.items():
        if name not in known:
            raise ArtefactRefused(f"batch_axes: no tensor is named {name!r}; the model has {', '.join(known)}")
        if axis == -1:
            continue
        free = [at for at, extent in enumerate(known[name].shape) if extent is None]
        if axis not in free:
            allowed = ", ".join(str(at) for at in (*free, -1))
            raise ArtefactRefused(f"batch_axes: {name!r}: axis {axis} cannot vary; allowed: {allowed} (-1: none)")


def _batch_symbol(inputs: Sequence[TensorSpec], batch_axes: Mapping[str, int]) -> str | None:
    """The symbol of the batch extent; "": it is unnamed; None: no input varies along its first axis."""
    for spec in inputs:
        axis = batch_axes.get(spec.name, 0)
        if (
            axis >= 0
            and len(spec.shape) > axis
            and spec.shape[axis] is None
            and (spec.name in batch_axes or not batch_axes)
        ):
            return spec.symbols[axis] if spec.symbols else ""
    return None


def _with_axis(spec: TensorSpec, batch_axes: Mapping[str, int], symbol: str | None) -> TensorSpec:
    if spec.name in batch_axes:
        axis = batch_axes[spec.name]
        return msgspec.structs.replace(spec, batch_axis=None if axis == -1 else axis)
    if symbol and symbol in spec.symbols:
        return msgspec.structs.replace(spec, batch_axis=spec.symbols.index(symbol))
    unnamed = symbol == "" and not batch_axes and bool(spec.shape) and spec.shape[0] is None
    if unnamed and not (spec.symbols and spec.symbols[0]):
        return msgspec.structs.replace(spec, batch_axis=0)
    return spec
