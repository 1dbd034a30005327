"""Which outputs a request wants, and of which of them only the largest values."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_sharing.tensors import Signature
from services.executor.core.heads import Invalid, OutputHead, names_of

MOST_CLASSES = 65_536


def wanted_outputs(outputs: Sequence[OutputHead], signature: Signature) -> tuple[int, ...]:
    """Their indices in the signature, in the order wanted; all of them where none is named. Raises Invalid."""
    if not outputs:
        return tuple(range(len(signature.outputs)))
    places = {spec.name: index for index, spec in enumerate(signature.outputs)}
    wanted: list[int] = []
    for position, output in enumerate(outputs):
        field = f"outputs[{position}] {output.name!r}"
        index = places.get(output.name)
        if index is None:
            raise Invalid(
                f"{field}.name", f"the model has no such output; its outputs are {names_of(signature.outputs)}"
            )
        if index in wanted:
            raise Invalid(f"{field}.name", "the output is asked for twice")
        wanted.append(index)
    return tuple(wanted)


def wanted_classes(outputs: Sequence[OutputHead], signature: Signature) -> tuple[int, ...]:
    """How many classes of each output are wanted; empty where none is asked for. Raises Invalid."""
    if not any(output.classes is not None for output in outputs):
        return ()
    specs = {spec.name: spec for spec in signature.outputs}
    wanted = []
    for position, output in enumerate(outputs):
        field = f"outputs[{position}] {output.name!r}.parameters['classification']"
        count = output.classes
        if count is None:
            wanted.append(0)
            continue
        if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= MOST_CLASSES:
            raise Invalid(field, f"must be a whole number of classes, 1 to {MOST_CLASSES}", limit=MOST_CLASSES)
        if specs[output.name].datatype == "BYTES":
            raise Invalid(field, "the output is of type BYTES; only numbers can be ranked")
        wanted.append(count)
    return tuple(wanted)
