"""Tries the batch axes of a freshly loaded model: do its outputs follow the rows, and does each row stand alone?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from gpu_sharing.runtimes.base import ArtefactRefused, LoadConfig, Tensors
from gpu_sharing.runtimes.signature import unbatched, unverified, verify
from gpu_sharing.runtimes.warmup import EXTENTS_TRIED, Ranges, attempts, check_warmup, made_up, rows_of
from gpu_sharing.tensors import Signature, TensorSpec

Execute = Callable[[Tensors], dict[str, np.ndarray]]

TRIED_ROWS: tuple[int, ...] = (3, 2)
"""Two counts, since an axis may have one of them by chance, and neither is 1, since extents of 1 broadcast."""

TOLERANCES: Mapping[str, float] = {"FP64": 1e-4, "FP32": 1e-3, "FP16": 5e-2}
"""How far a row may differ, relative to the largest value, between a batch and alone: kernels sum in other orders."""


@dataclass(frozen=True)
class Verdict:
    """What trying a model told.

    extent: of free dimensions, for made-up inputs. unbatched_because: "" where it is batched, or never could be.
    ran: a made-up input, or the operator's, was accepted.
    """

    signature: Signature
    extent: int
    unbatched_because: str
    ran: bool


def verified(signature: Signature, execute: Execute, config: LoadConfig, ranges: Ranges) -> Verdict:
    """Runs a few rows and settles the signature by what they gave; only one row where it was settled by an earlier load.

    Raises ArtefactRefused where the operator's own warm-up input is wrong or is rejected by the model.
    """
    check_warmup(signature, config.warmup)
    known = _settled_before(config.signature, signature)
    failure = ""
    for extent in attempts(config.warmup):
        try:
            settled, reason = _observe(signature, execute, config, ranges, extent, known)
        except ArtefactRefused:
            raise
        except Exception as broken:  # whatever the model's kernels raise for shapes they do not like
            failure = failure or _first_line(broken)
            continue
        return Verdict(settled, extent, reason, ran=True)
    if config.warmup:
        raise ArtefactRefused(f"warmup: the model rejects it: {failure}")
    settled, reason = unverified(signature, config.batch_axes)
    return Verdict(settled, EXTENTS_TRIED[0], reason and f"{reason} (it was rejected: {failure})", ran=False)


def _settled_before(known: Signature | None, found: Signature) -> Signature | None:
    """What the artefact says, with the batch axes of a signature that was settled before; None where the two do not agree."""
    if known is None or known.max_batch_size not in (0, found.max_batch_size):
        return None
    inputs, outputs = _with_axes(known.inputs, found.inputs), _with_axes(known.outputs, found.outputs)
    if inputs is None or outputs is None:
        return None
    return Signature(inputs, outputs, known.max_batch_size)


def _with_axes(known: Sequence[TensorSpec], found: Sequence[TensorSpec]) -> tuple[TensorSpec, ...] | None:
    if len(known) != len(found) or any(
        (one.name, one.datatype, one.shape) != (other.name, other.datatype, other.shape)
        for one, other in zip(known, found, strict=True)
    ):
        return None
    return tuple(replace(other, batch_axis=one.batch_axis) for one, other in zip(known, found, strict=True))


def _observe(
    signature: Signature, execute: Execute, config: LoadConfig, ranges: Ranges, extent: int, known: Signature | None
) -> tuple[Signature, str]:
    single = made_up(signature, 1, warmup=config.warmup, ranges=ranges, extent=extent)
    _check_outputs(signature, execute(single))
    if known is not None:
        return known, ""
    counts = [rows for rows in TRIED_ROWS if rows <= signature.max_batch_size]
    if not counts:
        return signature if signature.max_batch_size == 0 else unbatched(signature), ""
    observed = {1: {name: value.shape for name, value in execute(single).items()}} if len(counts) == 1 else {}
    batches = {}
    try:
        for rows in counts:
            batches[rows] = made_up(signature, rows, warmup=config.warmup, ranges=ranges, extent=extent)
            observed[rows] = {name: value.shape for name, value in execute(batches[rows]).items()}
    except Exception as broken:  # one row ran, so the model is sound and only its batch axis is fixed inside
        return unbatched(signature), f"{rows} rows are rejected: {_first_line(broken)}"
    settled, reason = verify(signature, observed, told=config.batch_axes)
    if reason:
        return settled, reason
    return _stands_alone(settled, execute, batches[counts[0]], counts[0])


def _check_outputs(signature: Signature, outputs: Tensors) -> None:
    missing = [spec.name for spec in signature.outputs if spec.name not in outputs]
    if missing:
        raise ArtefactRefused(f"output {missing[0]!r} is declared, but a run did not give it")


def _stands_alone(signature: Signature, execute: Execute, batch: Tensors, rows: int) -> tuple[Signature, str]:
    """Refuses to batch a model whose rows influence one another, such as one that normalises over the batch."""
    together = execute(batch)
    for row in range(rows):
        alone = execute(rows_of(signature, batch, row, row + 1))
        for spec in signature.outputs:
            whole = together[spec.name]
            part = whole if spec.batch_axis is None else np.take(whole, [row], axis=spec.batch_axis)
            if not _alike(part, alone[spec.name], spec.datatype):
                return unbatched(signature), f"output {spec.name!r}: a row's result depends on the other rows"
    return signature, ""


def _alike(one: np.ndarray, other: np.ndarray, datatype: str) -> bool:
    if one.shape != other.shape:
        return False
    if datatype not in TOLERANCES:
        # Integers may tip at a tie between two floats, and BF16 arrives as bits: shapes must do.
        return True
    largest = float(np.nanmax(np.abs(np.where(np.isfinite(one), one, 0)), initial=1e-6))
    return bool(np.allclose(one, other, rtol=0, atol=TOLERANCES[datatype] * max(largest, 1e-6), equal_nan=True))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
