"""Tensors that lie in regions of device memory, as a request's parameters name them: frontends have put ids in place of names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gpu_sharing.tensors import TensorSpec
from gpu_sharing.units import Bytes
from gpu_sharing.worker.messages import RegionPart
from services.executor.core.heads import SHARED_MEMORY, Invalid, OutputHead

_REGION, _SIZE, _OFFSET = SHARED_MEMORY
_ID = re.compile(r"[0-9a-f]{32}")
MOST_BYTES: Bytes = 1 << 62


class InRegions(NamedTuple):
    """What of a request lies in regions. sources: its inputs by place; sinks: its outputs, in the order wanted."""

    sources: tuple[RegionPart, ...]
    sinks: tuple[RegionPart, ...]


def is_region(name: str) -> bool:
    """Whether that could be a region's id."""
    return _ID.fullmatch(name) is not None


def part_of(field: str, place: int, given: Mapping[str, object], instead: str) -> RegionPart | None:
    """The part of a region that a tensor's parameters name; None: they name none. given: the values of those of SHARED_MEMORY.

    instead: what to do where they name something else. Raises Invalid.
    """
    if not given:
        return None
    name, size, offset = given.get(_REGION), given.get(_SIZE), given.get(_OFFSET, 0)
    if not isinstance(name, str) or not is_region(name):
        parameter = next(each for each in SHARED_MEMORY if each in given)
        raise Invalid(f"{field}.parameters[{parameter!r}]", f"not supported here; {instead}", unsupported=True)
    for parameter, value in ((_SIZE, size), (_OFFSET, offset)):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MOST_BYTES:
            raise Invalid(f"{field}.parameters[{parameter!r}]", "must be a whole number, 0 or more")
    assert isinstance(size, int)
    assert isinstance(offset, int)
    return RegionPart(place, name, offset, size)


def check_source(field: str, source: RegionPart, spec: TensorSpec, length_bytes: Bytes | None) -> None:
    """Raises Invalid unless the input is exactly what lies there. length_bytes: of the tensor; None for BYTES."""
    if length_bytes is None:
        raise Invalid(
            field,
            f"{spec.datatype} cannot lie in memory of the device, where nobody checks it; send it in raw_input_contents",
            unsupported=True,
        )
    if source.length_bytes != length_bytes:
        raise Invalid(
            f"{field}.parameters[{_SIZE!r}]",
            f"{source.length_bytes} bytes given where the shape needs {length_bytes}",
            expected_bytes=length_bytes,
            got_bytes=source.length_bytes,
        )


def sinks_of(outputs: Sequence[OutputHead], specs: Mapping[str, TensorSpec]) -> tuple[RegionPart, ...]:
    """Where outputs go that go to regions. Raises Invalid."""
    sinks = []
    for place, output in enumerate(outputs):
        field = f"outputs[{place}] {output.name!r}"
        sink = part_of(field, place, output.shared, "leave it out and read raw_output_contents")
        if sink is None:
            continue
        if output.classes is not None:
            raise Invalid(f"{field}.parameters['classification']", "classes go in raw_output_contents, not to a region")
        if specs[output.name].datatype == "BYTES":
            raise Invalid(
                field, "BYTES cannot go to memory of the device; read it from raw_output_contents", unsupported=True
            )
        sinks.append(sink)
    return tuple(sinks)
