"""Holding what an artefact turned out to be against what was declared of it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gpu_sharing.tensors import Signature, TensorSpec


class Disagreement(Exception):
    """The artefact is not what was declared. The message names the tensor and both sides."""


def agreed(found: Signature, declared: Signature) -> Signature:
    """The artefact's signature, narrowed to what was declared. Raises Disagreement.

    Inputs, or outputs, of which none is declared are left alone. An input that is not declared must be one that requests may
    leave out; an output that is not is served all the same. Which inputs are optional is the artefact's to say.
    """
    return msgspec.structs.replace(
        found,
        inputs=_side("input", found.inputs, declared.inputs, all_needed=True),
        outputs=_side("output", found.outputs, declared.outputs, all_needed=False),
    )


def _side(
    kind: str, found: Sequence[TensorSpec], declared: Sequence[TensorSpec], *, all_needed: bool
) -> tuple[TensorSpec, ...]:
    if not declared:
        return tuple(found)
    told = {spec.name: spec for spec in declared}
    strange = told.keys() - {spec.name for spec in found}
    if strange:
        held = ", ".join(repr(spec.name) for spec in found)
        raise Disagreement(f"{kind} {min(strange)!r} is declared, and the artefact has {held or 'none'}")
    missing = [spec.name for spec in found if spec.name not in told and not spec.optional]
    if missing and all_needed:
        raise Disagreement(f"{kind} {missing[0]!r} of the artefact is not declared")
    return tuple(_narrowed(kind, spec, told[spec.name]) if spec.name in told else spec for spec in found)


def _narrowed(kind: str, found: TensorSpec, told: TensorSpec) -> TensorSpec:
    if found.datatype != told.datatype:
        raise Disagreement(f"{kind} {found.name!r} is declared {told.datatype}, and the artefact has {found.datatype}")
    fits = len(found.shape) == len(told.shape) and all(
        here is None or there is None or here == there for here, there in zip(found.shape, told.shape, strict=True)
    )
    if not fits:
        raise Disagreement(f"{kind} {found.name!r} is declared {_text(told)}, and the artefact has {_text(found)}")
    shape = tuple(
        there if here is None and axis != found.batch_axis else here
        for axis, (here, there) in enumerate(zip(found.shape, told.shape, strict=True))
    )
    return msgspec.structs.replace(found, shape=shape)


def _text(spec: TensorSpec) -> str:
    return f"[{', '.join('any' if extent is None else str(extent) for extent in spec.shape)}]"
