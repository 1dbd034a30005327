"""Whether a request fits its model's signature, and what follows for the worker. One pass, plain data in and out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gpu_sharing.tensors import ITEM_BYTES, NUMPY_NAMES, Signature, TensorSpec
from gpu_sharing.units import Bytes
from services.executor.core.typed import AS_THEY_ARE, BYTES_KIND, MOST_CONVERTED, TYPED_KINDS, Values, to_bytes

MAX_EXTENT = 1 << 40
"""No dimension is larger than this: it keeps products of extents far from where arithmetic gets slow."""

MOST_CLASSES = 65_536

TEXT_AT_ONCE = 1 << 20
"""Bytes of text that are checked before others get a turn: about a millisecond."""

_SHARED_MEMORY = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


class Invalid(Exception):
    """A request that cannot be served as it is.

    field: as the protocol spells it, with the tensor's name: "inputs[1] 'state'.shape". problem: what is wrong, with the
    limit. unsupported: the protocol allows it, this server does not.
    """

    def __init__(self, field: str, problem: str, *, unsupported: bool = False, **facts: object) -> None:
        super().__init__(f"{field}: {problem}")
        self.field, self.problem, self.unsupported, self.facts = field, problem, unsupported, facts


class Limits(NamedTuple):
    """What one request may be, whatever its model does. element_bytes: the longest element of BYTES.

    utf8: elements of BYTES are text to the model's runtime, as onnxruntime's strings are: it takes and gives them as UTF-8,
    and one element that is none would fail the whole batch.
    """

    rows: int = 4096
    element_bytes: Bytes = 16 << 20
    utf8: bool = False


class InputHead(NamedTuple):
    """One input as the request names it.

    typed: the fields of `contents` that hold anything, with their values; None: there is no `contents`.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...] = ()
    typed: dict[str, Values] | None = None


class OutputHead(NamedTuple):
    """One output as the request asks for it. classes: the value of its parameter `classification`, if there is one."""

    name: str
    parameters: tuple[str, ...] = ()
    classes: object = None


class PlannedInput(NamedTuple):
    """An input that fits.

    place: its index in the signature. length_bytes: None for BYTES, whose elements have to be walked. elements: how many.
    field: what to call it in a message. typed: its bytes, where they came as typed contents. most_bytes, utf8: of an element
    of BYTES, see Limits.
    """

    place: int
    shape: tuple[int, ...]
    elements: int
    length_bytes: Bytes | None
    field: str
    typed: bytes | None
    most_bytes: Bytes = Limits().element_bytes
    utf8: bool = False


class Plan(NamedTuple):
    """A request's head, checked. Requests with equal heads have equal plans.

    outputs: indices in the signature, in the order wanted. rows: extent at the batch axis. shapes_key: what shapes add to
    the key of a batch. keyed: positions of the inputs whose bytes add to it too. classes: for each output, how many of its
    largest values are wanted in its place, 0 standing for the output itself; empty: none is wanted so.
    """

    inputs: tuple[PlannedInput, ...]
    outputs: tuple[int, ...]
    rows: int
    shapes_key: bytes
    keyed: tuple[int, ...]
    raw: bool
    classes: tuple[int, ...] = ()


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
            raise Invalid(f"{field}.name", f"the model has no such input; its inputs are {_names(signature.inputs)}")
        if given.name in seen:
            raise Invalid(f"{field}.name", "the input is given twice")
        seen.add(given.name)
        spec = signature.inputs[index]
        _check_head(field, given, spec, extents)
        rows = _check_rows(field, given.shape, spec, most_rows, rows)
        planned.append(_planned(field, given, index, limits, raw=raw))
    missing = [spec.name for spec in signature.inputs if spec.name not in seen and not spec.optional]
    if missing:
        raise Invalid("inputs", f"{_quoted(missing)} missing; the model needs {_names(signature.inputs)}")
    keyed = tuple(at for at, each in enumerate(planned) if signature.inputs[each.place].batch_axis is None)
    return Plan(
        inputs=tuple(planned),
        outputs=_wanted(outputs, signature),
        rows=rows[0] if rows else 1,
        shapes_key=_shapes_key(planned, signature),
        keyed=keyed if signature.max_batch_size else (),
        raw=raw,
        classes=_classes(outputs, signature),
    )


def check_length(planned: PlannedInput, got_bytes: Bytes) -> None:
    """Raises Invalid unless a raw content is as long as its tensor."""
    expected = planned.length_bytes
    if expected is not None and expected != got_bytes:
        raise Invalid(
            f"raw_input_contents of {planned.field}",
            f"{got_bytes} bytes given where shape {list(planned.shape)} needs {expected}",
            expected_bytes=expected,
            got_bytes=got_bytes,
        )


def walk_elements(planned: PlannedInput, content: bytes | memoryview, every: int) -> Iterator[None]:
    """Checks a raw content of BYTES, stopping after each `every` elements, or TEXT_AT_ONCE bytes of text, so that others get
    a turn. Raises Invalid."""
    field, end, at, text_ends = f"raw_input_contents of {planned.field}", len(content), 0, TEXT_AT_ONCE
    if planned.elements * 4 > end:
        raise Invalid(field, f"{end} bytes cannot hold {planned.elements} elements of BYTES, each with a 4-byte length")
    for element in range(planned.elements):
        if end - at < 4:
            raise Invalid(field, f"ends inside the length of element {element} of {planned.elements}")
        length = int.from_bytes(content[at : at + 4], "little")
        at += 4 + length
        if length > planned.most_bytes:
            raise too_long(field, element, length, planned.most_bytes)
        if at > end:
            left = end - at + length
            raise Invalid(field, f"element {element} claims {length} bytes where {left} are left")
        if planned.utf8:
            check_text(field, element, content[at - length : at])
        if element % every == every - 1 or (planned.utf8 and at >= text_ends):
            text_ends = at + TEXT_AT_ONCE
            yield
    if at != end:
        raise Invalid(field, f"{end - at} bytes are left over behind {planned.elements} elements")


def _check_head(field: str, given: InputHead, spec: TensorSpec, extents: dict[str, tuple[int, str]]) -> None:
    for parameter in given.parameters:
        if parameter in _SHARED_MEMORY:
            raise Invalid(
                f"{field}.parameters[{parameter!r}]",
                "not supported here; send the tensor in raw_input_contents",
                unsupported=True,
            )
    if given.datatype != spec.datatype:
        raise Invalid(f"{field}.datatype", f"{given.datatype!r} given where the model takes {spec.datatype}")
    shape = given.shape
    if len(shape) != len(spec.shape):
        wanted = _shape_text(spec)
        raise Invalid(f"{field}.shape", f"{list(shape)} has {len(shape)} axes where the model takes {wanted}")
    for axis, (extent, fixed) in enumerate(zip(shape, spec.shape, strict=True)):
        if not 0 <= extent <= MAX_EXTENT:
            raise Invalid(f"{field}.shape", f"axis {axis} has extent {extent}; it must lie within 0 to {MAX_EXTENT}")
        if fixed is not None and extent != fixed and axis != spec.batch_axis:
            raise Invalid(f"{field}.shape", f"axis {axis} has extent {extent} where the model takes {fixed}")
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


def too_long(field: str, element: int, length: Bytes, most_bytes: Bytes) -> Invalid:
    """The refusal of a string that is longer than the operator allows."""
    return Invalid(field, f"element {element} has {length} bytes, more than {most_bytes}", limit=most_bytes)


def check_text(field: str, element: int, value: bytes | memoryview) -> None:
    """Raises Invalid unless an element of BYTES is UTF-8."""
    try:
        str(value, "utf-8")
    except UnicodeDecodeError as wrong:
        raise Invalid(
            field,
            f"element {element} is not UTF-8 (byte {wrong.start}: {wrong.reason}), and the model takes text; "
            "send other bytes as UINT8, or as base64",
            element=element,
            byte=wrong.start,
        ) from None


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
        for element, value in enumerate(values):
            if len(value) > limits.element_bytes:
                raise too_long(f"{field}.contents.{kind}", element, len(value), limits.element_bytes)
            if limits.utf8:
                check_text(f"{field}.contents.{kind}", element, value)
    try:
        return to_bytes(values, None if kind == BYTES_KIND else np.dtype(NUMPY_NAMES[given.datatype]))
    except OverflowError as error:
        raise Invalid(f"{field}.contents.{kind}", f"{error} does not fit {given.datatype}") from None


def _wanted(outputs: Sequence[OutputHead], signature: Signature) -> tuple[int, ...]:
    if not outputs:
        return tuple(range(len(signature.outputs)))
    places = {spec.name: index for index, spec in enumerate(signature.outputs)}
    wanted: list[int] = []
    for position, output in enumerate(outputs):
        field = f"outputs[{position}] {output.name!r}"
        index = places.get(output.name)
        if index is None:
            raise Invalid(f"{field}.name", f"the model has no such output; its outputs are {_names(signature.outputs)}")
        if index in wanted:
            raise Invalid(f"{field}.name", "the output is asked for twice")
        for parameter in output.parameters:
            if parameter in _SHARED_MEMORY:
                raise Invalid(
                    f"{field}.parameters[{parameter!r}]",
                    "not supported here; leave it out and read raw_output_contents",
                    unsupported=True,
                )
        wanted.append(index)
    return tuple(wanted)


def _classes(outputs: Sequence[OutputHead], signature: Signature) -> tuple[int, ...]:
    """How many classes of each output are wanted; empty where none is asked for."""
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


def _names(specs: Sequence[TensorSpec]) -> str:
    return _quoted([spec.name for spec in specs]) or "none"


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:16])
