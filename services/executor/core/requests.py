"""Whether a request fits its model's signature, and what follows for the worker. One pass, plain data in and out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gpu_sharing.tensors import ITEM_BYTES, NUMPY_NAMES, Signature, TensorSpec
from gpu_sharing.units import Bytes
from gpu_sharing.worker.messages import RegionPart
from services.executor.core.elements import check_values
from services.executor.core.heads import (
    InputHead,
    Invalid,
    Limits,
    OutputHead,
    Plan,
    PlannedInput,
    names_of,
    quoted,
)
from services.executor.core.outputs import wanted_classes, wanted_outputs
from services.executor.core.regions import check_source, part_of, sinks_of
from services.executor.core.typed import AS_THEY_ARE, BYTES_KIND, MOST_CONVERTED, TYPED_KINDS, to_bytes

MAX_EXTENT = 1 << 40
"""No dimension is larger than this: it keeps products of extents far from where arithmetic gets slow."""


def plan(
    inputs: Sequence[InputHead],
    outputs: Sequence[OutputHead],
    raw_count: int,
    signature: Signature,
    limits: Limits | None = None,
) -> Plan:
    """Checks a head against the signature. raw_count: how many raw contents came with it. Raises Invalid."""
    limits = limits or Limits()
    raw = raw_count > 0
    if raw and raw_count != len(inputs):
        raise Invalid("raw_input_contents", f"{raw_count} given for {len(inputs)} inputs; send one for each")
    places = {spec.name: index for index, spec in enumerate(signature.inputs)}
    seen: set[str] = set()
    extents: dict[str, tuple[int, str]] = {}
    rows: tuple[int, str] | None = None
    planned: list[PlannedInput] = []
    most_rows = min(signature.max_batch_size, limits.rows)
    for position, given in enumerate(inputs):
        field = f"inputs[{position}] {given.name!r}"
        index = places.get(given.name)
        if index is None:
            raise Invalid(f"{field}.name", f"the model has no such input; its inputs are {names_of(signature.inputs)}")
        if given.name in seen:
            raise Invalid(f"{field}.name", "the input is given twice")
        seen.add(given.name)
        spec = signature.inputs[index]
        source = _check_head(field, position, given, spec, extents)
        rows = _check_rows(field, given.shape, spec, most_rows, rows)
        each = _planned(field, given, index, limits, raw=raw)
        if source is not None:
            check_source(field, source, spec, each.length_bytes)
            each = each._replace(source=source, length_bytes=0)
        planned.append(each)
    missing = [spec.name for spec in signature.inputs if spec.name not in seen and not spec.optional]
    if missing:
        raise Invalid("inputs", f"{quoted(missing)} missing; the model needs {names_of(signature.inputs)}")
    wanted = wanted_outputs(outputs, signature)
    sinks = sinks_of(outputs, {spec.name: spec for spec in signature.outputs})
    keyed = tuple(at for at, each in enumerate(planned) if signature.inputs[each.place].batch_axis is None)
    return Plan(
        inputs=tuple(planned),
        outputs=wanted,
        rows=rows[0] if rows else 1,
        shapes_key=_shapes_key(planned, signature),
        keyed=keyed if signature.max_batch_size else (),
        raw=raw,
        classes=wanted_classes(outputs, signature),
        sinks=sinks,
        in_regions=bool(sinks) or any(each.source is not None for each in planned),
    )


def check_length(planned: PlannedInput, got_bytes: Bytes) -> None:
    """Raises Invalid unless a raw content is as long as its tensor."""
    expected = planned.length_bytes
    if expected is not None and expected != got_bytes:
        raise Invalid(
            f"raw_input_contents of {planned.field}",
            f"{got_bytes} bytes given where shape {list(planned.shape)} needs {expected}"
            if planned.source is None
            else f"{got_bytes} bytes given beside shared memory; send a tensor one way only",
            expected_bytes=expected,
            got_bytes=got_bytes,
        )


def _check_head(
    field: str, position: int, given: InputHead, spec: TensorSpec, extents: dict[str, tuple[int, str]]
) -> RegionPart | None:
    """Where in a region the tensor lies; None: it does not."""
    source = part_of(field, position, given.shared, "send the tensor in raw_input_contents")
    if given.datatype != spec.datatype:
        raise Invalid(f"{field}.datatype", f"{given.datatype!r} given where the model takes {spec.datatype}")
    _check_shape(field, given.shape, spec)
    _check_symbols(field, given.shape, spec, extents)
    return source


def _check_shape(field: str, shape: tuple[int, ...], spec: TensorSpec) -> None:
    if len(shape) != len(spec.shape):
        wanted = _shape_text(spec)
        raise Invalid(f"{field}.shape", f"{list(shape)} has {len(shape)} axes where the model takes {wanted}")
    for axis, (extent, fixed) in enumerate(zip(shape, spec.shape, strict=True)):
        if not 0 <= extent <= MAX_EXTENT:
            raise Invalid(f"{field}.shape", f"axis {axis} has extent {extent}; it must lie within 0 to {MAX_EXTENT}")
        if fixed is not None and extent != fixed and axis != spec.batch_axis:
            raise Invalid(f"{field}.shape", f"axis {axis} has extent {extent} where the model takes {fixed}")


def _check_symbols(field: str, shape: tuple[int, ...], spec: TensorSpec, extents: dict[str, tuple[int, str]]) -> None:
    """Axes of one symbol are equal in all inputs. extents: of each symbol so far, and the input that told it."""
    for axis, symbol in enumerate(spec.symbols):
        if symbol:
            extent, first = extents.setdefault(symbol, (shape[axis], field))
            if extent != shape[axis]:
                raise Invalid(
                    f"{field}.shape",
                    f"axis {axis} ({symbol}) has extent {shape[axis]} where {first} has {extent}; they must be equal",
                )


def _check_rows(
    field: str, shape: tuple[int, ...], spec: TensorSpec, most: int, rows: tuple[int, str] | None
) -> tuple[int, str] | None:
    """The request's rows and the input that told them, this input counted in."""
    axis = spec.batch_axis
    if axis is None or not most:
        return rows
    got = shape[axis]
    if not 1 <= got <= most:
        raise Invalid(
            f"{field}.shape", f"axis {axis} holds {got} rows; one request may hold 1 to {most}", rows=got, max_rows=most
        )
    if rows is not None and rows[0] != got:
        raise Invalid(f"{field}.shape", f"axis {axis} holds {got} rows where {rows[1]} holds {rows[0]}")
    return rows or (got, field)


def _planned(field: str, given: InputHead, index: int, limits: Limits, *, raw: bool) -> PlannedInput:
    elements = math.prod(given.shape)
    item = ITEM_BYTES.get(given.datatype)
    length = None if item is None else item * elements
    if raw:
        if given.typed:
            raise Invalid(f"{field}.contents", "given beside raw_input_contents; send a request's tensors one way only")
        return PlannedInput(index, given.shape, elements, length, field, None, limits.element_bytes, limits.utf8)
    typed = _typed_bytes(field, given, elements, limits)
    return PlannedInput(index, given.shape, elements, length, field, typed, limits.element_bytes)


def _typed_bytes(field: str, given: InputHead, elements: int, limits: Limits) -> bytes:
    kind = TYPED_KINDS.get(given.datatype)
    if kind is None:
        raise Invalid(f"{field}.contents", f"{given.datatype} has no typed contents; send raw_input_contents")
    typed = given.typed or {}
    for other in typed:
        if other != kind:
            raise Invalid(f"{field}.contents.{other}", f"{given.datatype} is sent in contents.{kind}")
    values = typed.get(kind, ())
    if len(values) != elements:
        raise Invalid(
            f"{field}.contents.{kind}",
            f"{len(values)} elements given where shape {list(given.shape)} needs {elements}",
            expected=elements,
            got=len(values),
        )
    if elements > MOST_CONVERTED and kind not in AS_THEY_ARE:
        raise Invalid(
            f"{field}.contents.{kind}",
            f"{elements} elements given; more than {MOST_CONVERTED} go in raw_input_contents",
        )
    if kind == BYTES_KIND:
        check_values(f"{field}.contents.{kind}", values, limits)
    try:
        return to_bytes(values, None if kind == BYTES_KIND else np.dtype(NUMPY_NAMES[given.datatype]))
    except OverflowError as error:
        raise Invalid(f"{field}.contents.{kind}", f"{error} does not fit {given.datatype}") from None


def _shapes_key(planned: Sequence[PlannedInput], signature: Signature) -> bytes:
    """Shapes without their batch axes, by input: equal for requests that may share a batch."""
    parts: list[str] = []
    for each in sorted(planned, key=lambda planned_input: planned_input.place):
        axis = signature.inputs[each.place].batch_axis
        extents = (str(extent) for at, extent in enumerate(each.shape) if at != axis)
        parts.append(f"{each.place}:{'x'.join(extents)}")
    return ",".join(parts).encode()


def _shape_text(spec: TensorSpec) -> str:
    return f"{len(spec.shape)}: [{', '.join('any' if extent is None else str(extent) for extent in spec.shape)}]"
